"""The command line: thin files that call the package and print. Commands load when first used."""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import click

from forty2.errors import Forty2Error, OtherProcessEnded, is_out_of_memory

COMMANDS = {
    "demo": "run",
    "run": "run",
    "train": "run",
    "ablate": "run",
    "plan": "run",
    "report": "run",
    "recipe": "recipe",
    "data": "data",
    "fuse": "model",
    "generate": "model",
    "model": "model",
    "logprobs": "model",
    "benchmark": "benchmark",
    "compare": "benchmark",
    "bench": "speed",
}
HELP = {
    "demo": "The whole job on the starter model: data, three phases, fuse, benchmark, report.",
    "run": "Run a recipe: its phases in order, fusing, measuring, reporting.",
    "train": "Run a recipe as far as one phase.",
    "ablate": "What each phase of a recipe bought and cost, over several seeds.",
    "plan": "What a recipe would do: steps, exposures, memory. Runs nothing.",
    "report": "Write a run's report again.",
    "recipe": "List, show, copy and check recipes.",
    "data": "Build and look at training data.",
    "fuse": "Merge an adapter into its base, checked.",
    "generate": "Answer a prompt.",
    "model": "Fetch, import and describe models.",
    "logprobs": "Log-probabilities of both responses of preference pairs.",
    "benchmark": "Measure a model.",
    "compare": "Paired statistics and a verdict on two results.",
    "bench": "Time and memory beside other trainers, on this machine.",
}


class _Lazy(click.Group):
    """Imports a command's file when the command runs, so that --help imports nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"forty2.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP[name]) for name in COMMANDS])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable(), _plain_warnings():
                return super().invoke(ctx)
        except OtherProcessEnded:
            ctx.exit(OtherProcessEnded.exit_code)
        except Forty2Error as error:
            raise _Refused(str(error), error.exit_code) from error
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
            raise _Refused(
                f"stopped by {number.name}; no file is half-written: give the command again, a run "
                "that was under way with --resume",
                128 + number,
            ) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise _Refused(
                f"memory ran out ({(str(error).splitlines() or ['MemoryError'])[0]}); close other "
                "programs, or take a smaller or quantised model",
                Forty2Error.exit_code,
            ) from error


class _Refused(click.ClickException):
    """An error of ours at the command line: one message and an exit code, no traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click's own is for all of a class


class _Terminated(KeyboardInterrupt):
    """SIGTERM came, and ends a command as Ctrl-C does: what is open is closed and cleared away."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM raise `_Terminated`, where Python allows it and nobody else has a say."""

    def end(number: int, frame: object) -> None:
        raise _Terminated

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Have a warning be one line, without the line of code that gives it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forty2", prog_name="forty2")
def main() -> None:
    """Align a language model on your own laptop, and believe the result.

    \b
    forty2 demo                            everything, on the starter model
    forty2 run forty2-spark --model M      the published recipe on a model of yours
    forty2 benchmark truthfulqa --model M  TruthfulQA, item by item
    """


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply
