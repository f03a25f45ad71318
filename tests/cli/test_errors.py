"""Errors at the command line: one message and an exit code; a bug keeps its traceback."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from support.cli import forty2

from forty2.cli import main
from forty2.cli.errors import CommandError, plain_errors, plain_warnings
from forty2.cli.signals import Terminated, terminable
from forty2.errors import DataError, Interrupted


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DataError("rows.jsonl:3: prompt is empty"), 2, "rows.jsonl:3: prompt is empty"),
        (Interrupted("sft: stopped", signal.SIGTERM), 143, "sft: stopped"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; no file is half-written"),
        (Terminated(), 143, "stopped by SIGTERM; no file is half-written"),
        (
            RuntimeError("[malloc] Unable to allocate 9 bytes."),
            2,
            "memory ran out ([malloc] Unable",
        ),
        (MemoryError(), 2, "memory ran out (MemoryError); close other programs"),
    ],
)
def test_what_a_user_can_act_on_ends_with_a_message_and_a_code(
    error: BaseException, code: int, says: str
) -> None:
    with pytest.raises(CommandError) as failure, plain_errors():
        raise error
    assert failure.value.exit_code == code
    assert failure.value.message.startswith(says)


def groups_and_commands(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    """The words that are typed for each group and each command."""
    yield names
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from groups_and_commands(below, *names, name)


def test_wrong_use_of_every_command_is_one_line_on_standard_error() -> None:
    for names in groups_and_commands(main):
        result = CliRunner().invoke(main, [*names, "--no-such-option"], prog_name="forty2")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: No such option"), names
        assert f" See {' '.join(('forty2', *names))} " in result.stderr, names
        assert result.stderr.endswith(" --help\n")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("compare one.json --json", "Missing argument 'AFTER'. See"),
        ("rnu", "did you mean run? See"),
        ("logprobs --dtype f8 --json", "--dtype"),
        ("export gguf m --out f.gguf --type q4_k", "q4_k"),
        ("init x", "Give at least one file: --chats, --pairs or --thumbs. See"),
        ("runs list --since yesterday --json", "give a day as 2026-11-30, or a time as 12h"),
    ],
)
def test_wrong_use_is_one_line_whoever_finds_it(typed: str, says: str) -> None:
    result = forty2(*typed.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr and result.stderr.count("\n") == 1


def test_a_group_alone_shows_its_commands() -> None:
    result = forty2("data")
    assert "lint" in result.output and not result.output.startswith("Error")


def test_a_bug_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), plain_errors():
        raise ZeroDivisionError


def test_sigterm_stops_a_command_and_is_as_before_afterwards() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Terminated), terminable():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_is_there_is_left_alone() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_warning_is_one_line_while_a_command_runs() -> None:
    with plain_warnings():
        text = warnings.formatwarning("careful", UserWarning, "file.py", 3, "code")
    assert text == "warning: careful\n"
    assert "file.py" in warnings.formatwarning("careful", UserWarning, "file.py", 3, "code")
