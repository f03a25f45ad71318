"""Errors: one line with what matters, no credentials in it, and memory errors recognised."""

from __future__ import annotations

import pytest

from forty2.errors import (
    DataError,
    Forty2Error,
    Interrupted,
    MemoryRanOut,
    OtherProcessEnded,
    first_line,
    is_out_of_memory,
    redact,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n  one\nand two"), "one"),
        (KeyError("name"), "'name'"),
        (ValueError(), "ValueError"),
        (OSError(" \n "), "OSError"),
    ],
)
def test_the_first_line_says_something_of_every_error(error: Exception, expected: str) -> None:
    assert first_line(error) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pass@hub.example/x", "https://***@hub.example/x"),
        ("https:/me:pass@hub.example/x", "https:/***@hub.example/x"),  # a path joins its slashes
        ("hub:me@there", "hub:me@there"),  # an address of ours, without a password
        ("with hf_0123456789abcdefgh.", "with ***."),
        ("sk-0123456789abcdefgh", "***"),
        ("a short sk-learn", "a short sk-learn"),
    ],
)
def test_credentials_are_redacted_and_other_text_is_not(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_secrets_of_the_environment_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", " correct horse ")
    monkeypatch.setenv("SHORT_TOKEN", "the")
    monkeypatch.setenv("HARMLESS", "battery staple")
    assert str(DataError("the correct horse, battery staple")) == "the ***, battery staple"


def test_what_a_message_quotes_from_a_file_can_be_seen() -> None:
    error = DataError("a.tsv:2: rename complet\ufeffion; '\t' expected\x1b[2J\nb")
    assert str(error) == "a.tsv:2: rename complet\\ufeffion; '\\t' expected\\x1b[2J\nb"


def test_an_interrupted_command_exits_as_the_shell_expects() -> None:
    assert Interrupted("stopped").exit_code == 130
    assert Interrupted("stopped", 15).exit_code == 143


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[malloc] Unable to allocate 8 bytes."), True),
        (RuntimeError("[METAL] Insufficient Memory (00000008)"), True),
        (RuntimeError("[matmul] shapes do not fit"), False),
        (ValueError("out of memory"), False),
        (MemoryRanOut("said already"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_every_error_of_ours_is_of_a_standard_type_too() -> None:
    for kind in Forty2Error.__subclasses__():
        if kind not in (Interrupted, OtherProcessEnded):
            assert kind.__mro__[2] is not Exception, kind
