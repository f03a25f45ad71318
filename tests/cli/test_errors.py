"""Errors at the command line: one message and an exit code; a bug keeps its traceback."""

from __future__ import annotations

import signal
import warnings

import pytest

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
