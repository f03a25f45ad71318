"""No page of a stranger may ask: neither under its own name nor under one that leads here."""

from __future__ import annotations

import socket

import pytest

from forty2.serve.origins import is_loopback, refusal

OWN = socket.gethostname().lower()


@pytest.mark.parametrize(
    ("listening", "named", "accepted"),
    [
        ("127.0.0.1", "127.0.0.1:8042", True),
        ("127.0.0.1", "localhost:8042", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "localhost:9000", True),  # a port of a tunnel
        ("::1", "[::1]:8042", True),
        ("127.0.0.1", "evil.example:8042", False),
        ("127.0.0.1", "localhost.evil.example:8042", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost@evil.example", False),
        ("127.0.0.1", "192.168.1.7:8042", False),
        ("127.0.0.1", "[::1", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", None, False),
        ("0.0.0.0", "192.168.1.7:8042", True),
        ("0.0.0.0", f"{OWN}:8042", True),
        ("mac.local", "mac.local:8042", True),
        ("0.0.0.0", "evil.example:8042", False),
    ],
)
def test_the_host_must_be_this_server_s(listening: str, named: str | None, accepted: bool) -> None:
    assert (refusal({"Host": named, "Origin": None}, listening) is None) is accepted


@pytest.mark.parametrize(
    ("origin", "accepted"),
    [
        (None, True),
        ("http://localhost:8042", True),
        ("https://localhost:8042", False),
        ("http://localhost", False),
        ("http://localhost:3000", False),
        ("http://127.0.0.1:8042", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_the_origin_must_be_this_server_s(origin: str | None, accepted: bool) -> None:
    headers = {"Host": "localhost:8042", "Origin": origin}
    assert (refusal(headers, "127.0.0.1") is None) is accepted


def test_loopback_is_this_machine_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "mac.local", "")))
