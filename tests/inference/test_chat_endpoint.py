"""A chat endpoint: waits, redirects and addresses."""

from __future__ import annotations

import pytest
from support.chat_server import Reply, said, server

from forty2.errors import BenchmarkError
from forty2.inference.chat_endpoint import ChatEndpoint

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
