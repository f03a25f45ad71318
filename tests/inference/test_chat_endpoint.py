"""A chat endpoint: waits, redirects and addresses."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.chat_server import Reply, said, server

from forty2.errors import BenchmarkError
from forty2.files import JsonObject
from forty2.inference.chat_endpoint import ChatEndpoint, RequestFailed

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_busy_server_is_asked_again_after_the_time_it_names() -> None:
    replies = {1: (429, {}, {"Retry-After": "7"}), 2: (503, {}, {}), 3: (200, b"{", {})}
    waits: list[float] = []
    with server(lambda number, _: replies.get(number, said("B"))) as (url, seen):
        endpoint = ChatEndpoint(url, "m", sleep=waits.append)
        assert endpoint.ask("?", temperature=0, max_tokens=4, seed=0).text == "B"
    assert waits == [7, 2, 4] and len(seen) == 4


def raw_server(*responses: bytes, pause: float = 0.0) -> Iterator[str]:
    """A server that sends these bytes to one client after another, some at a time, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for response in responses:
                client, _ = listening.accept()
                with client, client.makefile("rb") as asked, contextlib.suppress(OSError):
                    asked.readline()
                    headers = http.client.parse_headers(asked)
                    asked.read(int(headers["Content-Length"]))
                    for place in range(0, len(response), 40):
                        client.sendall(response[place : place + 40])
                        time.sleep(pause)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


OK = b"HTTP/1.1 200 OK\r\n"
BODY = json.dumps({"choices": [{"message": {"content": "B"}}]}).encode()
RIGHT = OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
WRONG = {
    "chunks that are none": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "closed within a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{",
    "closed within the body": OK + b"Content-Length: 999\r\n\r\n" + BODY[:-1],
    "compressed": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(BODY),
    "no HTTP": b"220 mail.example.org\r\n",
    "another encoding": OK + b"\r\n\xff\xfe" + BODY,
    "an endless line": b"HTTP/1.1 " + b"2" * 70_000,
    "nothing": b"",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_response_is_asked_for_again(wrong: bytes) -> None:
    with contextlib.contextmanager(raw_server)(wrong, RIGHT) as url:
        endpoint = ChatEndpoint(url, "m", timeout=20, sleep=lambda _: None)
        assert endpoint.ask("?", temperature=0, max_tokens=4, seed=0).text == "B"


def test_a_body_that_drips_without_end_is_left() -> None:
    dripping = OK + b"\r\n" + b" " * 40 * 1000
    with contextlib.contextmanager(raw_server)(dripping, RIGHT, pause=0.02) as url:
        started = time.monotonic()
        endpoint = ChatEndpoint(url, "m", timeout=1.0, sleep=lambda _: None)
        assert endpoint.ask("?", temperature=0, max_tokens=4, seed=0).text == "B"
    assert time.monotonic() - started < 15


def test_a_key_that_a_broken_response_repeats_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    echoed = f"you sent Bearer {SECRET}\r\n".encode()
    with (
        contextlib.contextmanager(raw_server)(echoed) as url,
        pytest.raises(BenchmarkError, match=r"not readable: .*\*\*\*") as error,
    ):
        endpoint = ChatEndpoint(url, "m", api_key_env="JUDGE_KEY", tries=1)
        endpoint.ask("?", temperature=0, max_tokens=4, seed=0)
    assert SECRET not in str(error.value)


def test_halves_of_characters_are_replaced() -> None:
    with server(lambda *_: (200, {**said("a \ud800 b")[1], "model": "m\udfff"}, {})) as (url, _):
        reply = ChatEndpoint(url, "m").ask("?", temperature=0, max_tokens=4, seed=0)
    assert reply[:2] == ("a ? b", "m?")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 529])
def test_passing_refusals_are_waited_for(status: int) -> None:
    def once(number: int, _: JsonObject) -> Reply:
        return (status, {}, {}) if number == 1 else said("B")

    with server(once) as (url, seen):
        endpoint = ChatEndpoint(url, "m", sleep=lambda _: None)
        endpoint.ask("?", temperature=0, max_tokens=4, seed=0)
    assert len(seen) == 2


NO_CHAT: list[object] = [
    [],
    None,
    "B",
    {},
    {"choices": []},
    {"choices": {}},
    {"choices": [None]},
    {"choices": [{"message": "B"}]},
    {"choices": [{"message": {"content": None}}]},
    {"choices": [{"message": {"content": [{"text": "B"}]}}]},
    {"choices": [{"text": "B"}]},
    {"error": {"message": "overloaded"}},
]


@pytest.mark.parametrize("value", NO_CHAT, ids=json.dumps)
def test_json_that_is_no_chat_is_no_reply(value: object) -> None:
    def answer(number: int, _: JsonObject) -> Reply:
        return said("B") if number == 1 else (200, value, {})

    with server(answer) as (url, _):
        endpoint = ChatEndpoint(url, "m")
        endpoint.ask("?", temperature=0, max_tokens=4, seed=0)
        with pytest.raises(RequestFailed, match="the response"):
            endpoint.ask("?", temperature=0, max_tokens=4, seed=1)


def test_a_redirect_does_not_take_the_key_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with server(lambda *_: said("Verdict: yes")) as (there, seen):
        moved: Reply = (302, {}, {"Location": there})
        with (
            server(lambda *_: moved) as (url, _),
            pytest.raises(BenchmarkError, match="HTTP 302"),
        ):
            endpoint = ChatEndpoint(url, "m", api_key_env="JUDGE_KEY")
            endpoint.ask("?", temperature=0, max_tokens=4, seed=0)
        assert not seen


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("localhost:8080", "give http://HOST:PORT/v1"),
        ("file:///etc/passwd", "give http://HOST:PORT/v1"),
        ("http://", "give http://HOST:PORT/v1"),
        ("http://h:99999/v1", "give http://HOST:PORT/v1"),
        ("http://h/v 1", "give http://HOST:PORT/v1"),
        ("http://me:pw@h/v1", "nothing secret goes into an address"),
        ("http://h/v1?key=1", "nothing secret goes into an address"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, match: str) -> None:
    with pytest.raises(BenchmarkError, match=match) as error:
        ChatEndpoint(url, "m")
    assert "pw" not in str(error.value)
