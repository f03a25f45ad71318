"""Chats from a pipe and at a terminal, on a run that is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forty2.cli import main
from forty2.cli.chat import Conversation, read_messages
from forty2.data.formats import read_chats
from forty2.data.records import Chat
from forty2.inference.chat import chat as make_session


@pytest.fixture
def there(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a tiny model, an adapter and a finished run."""
    monkeypatch.chdir(good)


def chat(text: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["chat", *arguments, "--max-tokens", "4"], input=text)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("target", ["done", "done/sft", "done/phase1_sft", "tiny"])
def test_a_run_or_a_model_is_enough(target: str) -> None:
    result = chat("Hello.\n\nAgain.\n", target)
    assert result.exit_code == 0, result.output
    assert chat("Hello.\n\nAgain.", target).output == result.output


@pytest.mark.usefixtures("there")
def test_commands_in_a_chat(tmp_path: Path) -> None:
    file = tmp_path / "my chats.jsonl"
    script = f'Hello.\n/save "{file}"\n/system Be brief.\nMore.\\\nA line.\n/save "{file}"\n/undo\n'
    script += "/compare\nHi.\n/reset\n/help\n/quit\nnot read\n"
    result = chat(script, "done", "--temperature", "1")
    assert result.exit_code == 0, result.output
    first, second = read_chats(file)
    assert isinstance(first, Chat) and isinstance(second, Chat)
    assert [m["role"] for m in first.messages] == ["user", "assistant"]
    assert [m["role"] for m in second.messages] == ["system"] + ["user", "assistant"] * 2
    assert second.messages[3]["content"] == "More.\nA line."
    said = result.output.splitlines()
    assert "(took back: More. A line.)" in said and "(the chat is empty)" in said
    assert said.index("base:") < said.index("tuned:")


@pytest.mark.usefixtures("there")
def test_a_better_answer_is_saved_in_place_of_the_reply(tmp_path: Path) -> None:
    file = tmp_path / "my prompts.json"
    script = f'Hello.\n/save "{file}"\n/save "{file}"  18 euros, "no more"\n/quit\n'
    result = chat(script, "done", "--temperature", "1")
    assert "own reply; /save FILE ANSWER stores a better one)" in result.output
    outputs = json.loads(file.read_text("utf-8"))["expected_outputs"]
    assert outputs == {"chat_1": '18 euros, "no more"'}


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        ("done", "Hello.\n/sav x", "standard input:2: /sav: no such command, did you mean /save;"),
        ("done", "/save x.jsonl", "nothing to save yet"),
        ("done", "/save", "/save: name a file, such as"),
        ("done", "Hello.\n/save my chats.jsonl", "my: end the name in .jsonl"),
        ("done", '/save "x', "/save: a quote is not closed"),
        ("done", "/undo", "the chat is empty"),
        ("tiny", "/compare", "the model has no adapter"),
        ("done", 'Hello.\n"""a\nb', 'standard input:2: the message lacks a closing """'),
        ("done", "a\\", "standard input:1: the message lacks the line after the backslash"),
        ("done", "x" * 3000, "standard input:1: the message and a reply: "),
        ("done -a adapter", "", "done: has an adapter of its own"),
        ("done/dpx", "", "done/dpx: no finished phase of this name; the run has sft"),
        ("adapter", "", "adapter: does not record which model it is for"),
        ("./none", "", "no such model"),
    ],
)
def test_mistakes_are_one_line(arguments: str, text: str, message: str) -> None:
    result = chat(text, *arguments.split())
    assert result.exit_code == 2 and message in result.output, result.output


def test_messages_of_several_lines() -> None:
    lines = iter(['"""one\n', "two\\\n", '"""\n', "a\\\r\n", "b\r\n", '"""c"""\n', "\n"])
    found = list(read_messages(lambda going_on: next(lines, None)))
    assert found == [(1, "one\ntwo\\\n"), (4, "a\nb"), (6, "c"), (7, "")]


@pytest.mark.usefixtures("there")
def test_ctrl_c_stops_the_reply_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = make_session("tiny", max_tokens=8, temperature=1.0)
    stream = session.stream

    def stopped(message: str) -> Iterator[str]:
        for piece in stream(message):
            yield piece
            if message == "Stop me.":
                raise KeyboardInterrupt

    monkeypatch.setattr(session, "stream", stopped)
    lines = iter(["Stop me.", "Hello.", "/sav", "/quit"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    Conversation(session).run()
    shown = capsys.readouterr()
    assert shown.out.count("(stopped)") == 1
    assert "did you mean /save" in shown.err  # and the chat goes on
    assert [exchange.message for exchange in session.exchanges] == ["Stop me.", "Hello."]


@pytest.mark.usefixtures("there")
def test_both_replies_of_a_comparison_appear_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each piece is on the screen before the next is computed; Ctrl-C stops one of the two alone."""
    session = make_session("done", max_tokens=8, temperature=1.0, seed=3)
    shown: list[str] = []

    def watched(stream: Callable[[str], Iterator[str]]) -> Callable[[str], Iterator[str]]:
        def pieces(message: str) -> Iterator[str]:
            for number, piece in enumerate(stream(message)):
                yield piece
                shown.append(capsys.readouterr().out)
                assert shown[-1].endswith(piece)
                if (message, number) == ("Stop me.", 1):
                    raise KeyboardInterrupt

        return pieces

    for name in ("stream", "stream_of_base"):
        monkeypatch.setattr(session, name, watched(getattr(session, name)))
    lines = iter(["/compare", "Hello.", "Stop me.", "/quit"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    Conversation(session).run()
    text = "".join([*shown, capsys.readouterr().out])
    plain = make_session("done", max_tokens=8, temperature=1.0, seed=3)
    base, tuned = plain.reply_of_base("Hello."), plain.reply("Hello.")
    assert f"base:\n{base}\n\ntuned:\n{tuned}\nbase:\n" in text
    assert text.count("(stopped)") == 2  # the base's reply, and the tuned model's


@pytest.mark.usefixtures("there")
def test_ctrl_c_twice_at_the_prompt_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = make_session("tiny", max_tokens=4)
    typed: Iterator[str | type[BaseException]] = iter(
        [KeyboardInterrupt, "Hello.", KeyboardInterrupt, KeyboardInterrupt, "Not read."]
    )

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", read)
    Conversation(session).run()
    assert capsys.readouterr().out.count("Ctrl-C again") == 2
    assert [exchange.message for exchange in session.exchanges] == ["Hello."]
    assert next(typed) == "Not read."
