"""`forty2 chat`."""

from __future__ import annotations

import contextlib
import difflib
import io
import shlex
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.columns import cut
from forty2.cli.echo import echo, echo_pieces
from forty2.cli.flags import with_flags
from forty2.cli.signals import Terminated
from forty2.errors import DataError, Forty2Error
from forty2.text_layout import terminal_width

if TYPE_CHECKING:
    from forty2.inference.chat import ChatSession
    from forty2.model.chat_template import TemplateSettings

HELP = """\
/compare             let the base model answer first, then the tuned one;
                     again: off
/save FILE [ANSWER]  add the chat to FILE: .jsonl training data, .json eval
                     prompts; with ANSWER in place of the last reply
/system TEXT         set the system message; without TEXT: show it
/undo                take back the last message and its reply
/reset               forget the chat; the system message stays
/help                this list
/quit                leave; so does Ctrl-D
Ctrl-C stops a reply. A message of several lines: end each but the last in \\,
or write \"\"\" before the first and after the last."""
QUOTES = '"""'


@click.command("chat")
@shared_options.runs_model
@click.argument("target", metavar="RUN|MODEL")
@click.option("--adapter", "-a", help="Adapter folder or run folder, if RUN|MODEL is a model.")
@click.option(
    "--system",
    help="System message. Default: the one of most rows that the run trained on, if any.",
)
@shared_options.temperature
@click.option(
    "--max-tokens",
    default=512,
    show_default=True,
    type=click.IntRange(1),
    help="Longest reply in tokens.",
)
@shared_options.seed_option(type=click.IntRange(0), help="Seed of the sampling.")
@shared_options.template
@shared_options.trust_remote_code
def chat_command(
    target: str,
    adapter: str | None,
    system: str | None,
    temperature: float,
    max_tokens: int,
    seed: int,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Talk to a model, or to the result of a run.

    RUN is a run folder (its last phase) or RUN/PHASE: the model and the chat template are those of the
    run. MODEL is a folder, a hub name or smollm2. /help lists the commands inside the chat. Without a
    terminal, each line of standard input is a message or a command.
    """
    from forty2.inference.chat import chat

    session = chat(
        target,
        adapter=adapter,
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        template=template,
        trust_remote_code=trust_remote_code,
    )
    Conversation(session).run()


class Conversation:
    """A chat session at a terminal, or fed from a pipe."""

    def __init__(self, session: ChatSession) -> None:
        self.session = session
        self.comparing = False
        self.interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Answer messages and obey commands until the end of the input."""
        if self.interactive:
            with contextlib.suppress(ImportError):  # some Pythons are built without it
                import readline  # noqa: F401  (line editing and history for input())
            echo("/help lists the commands; /quit or Ctrl-D leaves.")
            if self.session.system:
                echo(
                    cut(f"System message: {self.session.system}", terminal_width(sys.stdout) or 80)
                )
        for line, text in read_messages(self._read_line):
            try:
                if text.startswith("/"):
                    if not self._obey(text):
                        return
                elif text.strip():
                    self._answer(text)
            except Forty2Error as error:
                if not self.interactive:
                    raise DataError(f"standard input:{line}: {error}") from error
                echo(with_flags(str(error)), err=True)

    def _read_line(self, going_on: bool) -> str | None:
        """Read a line; None at the end of the input, and after Ctrl-C twice at the prompt."""
        if not self.interactive:
            return sys.stdin.readline() or None
        interrupted = False
        while True:
            try:
                return input("... " if going_on else "> ") + "\n"
            except EOFError:
                echo()
                return None
            except Terminated:
                raise
            except KeyboardInterrupt:
                echo()
                if interrupted:
                    return None
                interrupted = True
                echo("Ctrl-C again, Ctrl-D or /quit leaves.")

    def _answer(self, message: str) -> None:
        dropped = self.session.make_room(message)
        if dropped:
            turns = "message and its reply" if dropped == 1 else f"{dropped} messages and replies"
            echo(f"(the context is full: the oldest {turns} dropped)", err=True)
        if self.comparing:
            if behind := self.session.base_is_behind:
                earlier = "the message" if behind == 1 else f"the {behind} messages"
                echo(f"(the base answers {earlier} before it, too, for a chat of its own)")
            echo("base:")
            self._write(self.session.stream_of_base(message))
            echo("\ntuned:")
        self._write(self.session.stream(message))

    def _write(self, reply: Generator[str]) -> None:
        """Write a reply as it comes; Ctrl-C at the terminal stops it alone."""
        try:
            with contextlib.closing(reply) as pieces:
                echo_pieces(pieces)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            echo("\n(stopped)")

    def _obey(self, text: str) -> bool:
        """Carry out a command; return whether the chat goes on."""
        name, _, rest = text[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "compare": self._compare,
            "save": self._save,
            "system": self._system,
            "undo": self._undo,
            "reset": self._reset,
            "help": lambda _: echo(HELP),
        }
        if name in ("quit", "exit"):
            return False
        if name not in commands:
            close = difflib.get_close_matches(name, [*commands, "quit"], 1)
            hint = f"did you mean /{close[0]}" if close else "see /help"
            raise DataError(f"/{name}: no such command, {hint}; a space before / sends it as text")
        commands[name](rest.strip())
        return True

    def _compare(self, _: str) -> None:
        if not self.session.has_adapter:
            raise DataError("/compare: the model has no adapter, so there is no base beside it")
        self.comparing = not self.comparing
        echo(f"(comparing with the base model: {'on' if self.comparing else 'off'})")

    def _save(self, rest: str) -> None:
        from forty2.data.saved_chats import save_chat

        text = io.StringIO(rest)
        words = shlex.shlex(text, posix=True)
        words.whitespace_split, words.commenters = True, ""
        try:
            name = words.get_token()
        except ValueError as error:
            raise DataError("/save: a quote is not closed") from error
        if not name:
            raise DataError("/save: name a file, such as /save chats.jsonl")
        answer = text.read().strip()
        done = save_chat(self.session.messages, Path(name), answer or None)
        hint = "" if answer else "; /save FILE ANSWER stores a better one"
        echo(f"({name}: {done}{hint})")

    def _system(self, rest: str) -> None:
        if rest:
            self.session.system = rest
        echo(f"(system message: {self.session.system or 'none'})")

    def _undo(self, _: str) -> None:
        taken = self.session.undo()
        if taken is None:
            raise DataError("/undo: the chat is empty")
        echo(f"(took back: {textwrap.shorten(taken.message, 60, placeholder=' …')})")

    def _reset(self, _: str) -> None:
        self.session.reset()
        echo("(the chat is empty)")


def read_messages(read_line: Callable[[bool], str | None]) -> Iterator[tuple[int, str]]:
    r"""Join lines into messages; yield each one's first line number, from 1, and its text.

    A line that ends in a backslash goes on in the next line; so does everything from a line that
    begins with three quotes to the next three.

    Args:
        read_line: returns a line, None at the end; told whether the line continues a message.

    Raises:
        DataError: the input ends within a message.
    """
    number = 0
    while (line := read_line(False)) is not None:
        number += 1
        first, text = number, line.rstrip("\r\n")
        quoted = text.startswith(QUOTES)
        text = text.removeprefix(QUOTES)
        while (quoted and not text.rstrip().endswith(QUOTES)) or (
            not quoted and text.endswith("\\")
        ):
            more = read_line(True)
            if more is None:
                missing = 'a closing """' if quoted else "the line after the backslash"
                raise DataError(f"standard input:{first}: the message lacks {missing}")
            number += 1
            text = f"{text if quoted else text[:-1]}\n{more.rstrip(chr(13) + chr(10))}"
        yield first, text.rstrip().removesuffix(QUOTES) if quoted else text
