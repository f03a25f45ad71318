"""OpenAI's client is served as it expects, and no client can hold up the others or reach further."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from support.serve_client import CHAT, ask, connect, head, raw, reply
from support.served_run import SYSTEM, serving

from forty2.errors import ServeError
from forty2.serve import http_server
from forty2.serve.http_server import ModelServer
from forty2.serve.sources import find_sources

HI = {"role": "user", "content": "Hi."}
ASK = {"model": "base", "messages": [HI], "max_tokens": 4}
LONG = {"model": "base", "prompt": "One", "max_tokens": 490}
GIGABYTE = f"Content-Length: {10**9}"


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as one:
        yield one


# --- OpenAI's client ---


def test_openai_s_client_lists_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "sft", "dpo", "fused"]
    assert client.models.retrieve("dpo").id == "dpo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("../base")
    assert caught.value.code == "model_not_found"


def test_openai_s_client_gets_one_reply_whole_and_in_pieces(client: openai.OpenAI) -> None:
    for model in ("base", "sft"):
        ask_for = {"role": "user", "content": "Count to 3, please."}
        asked = {"model": model, "messages": [ask_for], "max_tokens": 12}
        whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
        text, choice = whole.choices[0].message.content, whole.choices[0]
        assert text and choice.finish_reason in ("stop", "length")
        assert whole.model == model and whole.usage.completion_tokens <= 12
        usage = {"stream_options": {"include_usage": True}}
        pieces = list(client.chat.completions.create(**asked, **usage, stream=True))  # type: ignore[call-overload]
        said = [p.choices[0].delta.content or "" for p in pieces if p.choices]
        assert "".join(said) == text and len(said) > 1
        assert pieces[-1].usage == whole.usage.model_copy(
            update={"prompt_tokens_details": pieces[-1].usage.prompt_tokens_details}
        )


def test_openai_s_client_completes_a_text(client: openai.OpenAI) -> None:
    done = client.completions.create(model="dpo", prompt="One two", max_tokens=3)
    assert done.usage is not None and done.usage.completion_tokens == 3


@pytest.mark.parametrize("name", ["gpt-4", "/etc", "../../adapters/shop", "default_model"])
def test_openai_s_client_is_told_of_an_unknown_model(name: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here; there is base, sft, dpo"):
        client.chat.completions.create(model=name, messages=[HI])  # type: ignore[list-item]


def test_openai_s_client_is_told_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="adapters: is not supported") as caught:
        client.chat.completions.create(**ASK, extra_body={"adapters": "/etc"})  # type: ignore[call-overload]
    assert caught.value.param == "adapters"
    with pytest.raises(openai.APIStatusError, match="larger than") as large:
        client.completions.create(model="base", prompt="x" * 3_000_000)
    assert large.value.status_code == 413


# --- many clients, and bad ones ---


def test_64_clients_at_once_are_answered_rightly_or_told_to_wait(server: ModelServer) -> None:
    names = ["base", "sft", "dpo"] * 22
    wanted = {name: reply(server, name, "Hi.", max_tokens=6) for name in names[:3]}

    def one(name: str) -> int:
        status, answer = ask(server, body={**ASK, "model": name, "max_tokens": 6})
        if status == 200:
            assert answer["choices"][0]["message"]["content"] == wanted[name]
        return status

    with ThreadPoolExecutor(64) as pool:
        statuses = Counter(pool.map(one, names[:64]))
    assert set(statuses) <= {200, 429, 503} and statuses[200] >= 1, statuses


def test_more_requests_than_are_allowed_are_told_when_to_come_back(shop: Path) -> None:
    with serving(shop / "sft", most_requests=1) as server:
        body = json.dumps({**LONG, "stream": True}).encode()
        sent = head(f"Content-Length: {len(body)}", path="/v1/completions") + body
        with connect(server, sent) as busy:
            assert busy.recv(12) == b"HTTP/1.0 200"
            status, answer = raw(server, head("Content-Length: 0"))
            assert status == 400  # what needs no model is answered
            data = json.dumps(ASK).encode()
            status, answer = raw(server, head(f"Content-Length: {len(data)}") + data)
            assert status == 429 and b"Retry-After: 1\r\n" in answer
            assert b"rate_limit_error" in answer
        assert waits_for(lambda: ask(server, body=ASK)[0] == 200)


def waits_for(condition: object, seconds: float = 10) -> bool:
    """Return whether a condition comes true in time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_clients_that_hang_are_timed_out_and_hold_up_nobody(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_READ_SECONDS", 0.5)
    with serving(shop / "sft", most_requests=1) as server:
        beginnings = [
            b"",
            b"POST /v1",
            head("Content-Length: 100"),
            head("Content-Length: 100") + b"{",
        ]
        hanging = [connect(server, sent) for sent in beginnings]
        assert ask(server, body=ASK)[0] == 200
        start = time.monotonic()
        answers = [connection.recv(65536) for connection in hanging]
        assert time.monotonic() - start < 5
        assert answers[:2] == [b"", b""]
        assert [answer.split()[1] for answer in answers[2:]] == [b"408", b"408"]
        for connection in hanging:
            connection.close()


def test_a_client_that_sends_byte_by_byte_is_timed_out_too(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_READ_SECONDS", 0.5)
    with serving(shop / "sft") as server, connect(server, head("Content-Length: 100")) as slow:
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - start < 5:
                slow.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - start < 4


@pytest.mark.parametrize("stream", [False, True])
def test_the_reply_to_a_client_that_went_away_is_not_written_to_its_end(
    stream: bool, shop: Path
) -> None:
    with serving(shop / "sft", most_requests=1) as server:
        written = 0
        take = server.replies.generate

        def generate(*arguments: object) -> object:
            nonlocal written
            context, responses = take(*arguments)  # type: ignore[arg-type]

            def counted() -> Iterator[object]:
                nonlocal written
                for response in responses:
                    written += 1
                    begun.set()
                    yield response

            return context, counted()

        begun = threading.Event()
        server.replies.generate = generate  # type: ignore[assignment, method-assign]
        body = json.dumps({**LONG, "stream": stream}).encode()
        sent = head(f"Content-Length: {len(body)}", path="/v1/completions") + body
        connection = connect(server, sent)
        assert begun.wait(10)
        connection.close()
        assert waits_for(lambda: ask(server, body=ASK)[0] == 200)
        assert written < 480


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((GIGABYTE,), 413),
        ((GIGABYTE, "Expect: 100-continue"), 413),
        ((f"Content-Length: {'9' * 400}",), 413),
        (("Transfer-Encoding: chunked",), 411),
        (("Transfer-Encoding: chunked", "Content-Length: 4"), 411),
        (("Content-Length: 4", "Content-Length: 5"), 411),
        ((), 411),
        (("Content-Length: -1",), 400),
        (("Content-Length: 1e3",), 400),
        (("Content-Length: ²",), 400),
    ],
)
def test_bodies_without_a_bound_are_refused_before_they_are_read(
    lines: tuple[str, ...], status: int, server: ModelServer
) -> None:
    start = time.monotonic()
    found, answer = raw(server, head(*lines))  # nothing of the body is sent
    assert time.monotonic() - start < 3
    assert found == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
)
def test_what_is_no_request_of_http_does_no_harm(sent: bytes, server: ModelServer) -> None:
    answer = raw(server, sent + b"\r\n\r\n")[1]
    assert answer == b"" or json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert b"<" not in answer


# --- who may ask, and for what ---


@pytest.mark.parametrize("path", ["/", "/run", "/v1/models", CHAT])
@pytest.mark.parametrize(
    "line",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://evil.example", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_pages_of_strangers_get_nothing(
    line: dict[str, str], path: str, server: ModelServer
) -> None:
    status, answer = ask(server, path, ASK if path == CHAT else None, line)
    assert status == 403 and answer["error"]["type"] == "permission_error"


def test_no_site_is_let_in_by_cors(server: ModelServer) -> None:
    evil = "Origin: http://evil.example"
    own = f"Origin: http://localhost:{server.server_port}"
    for line, wanted in ((evil, 403), (own.replace("localhost", "evil.example"), 403)):
        for method in ("OPTIONS", "GET", "POST"):
            status, answer = raw(server, head(line, "Content-Length: 0", method=method))
            assert status == wanted and b"access-control" not in answer.lower()
    status, answer = raw(server, head(method="OPTIONS"))
    assert status == 405 and b"access-control" not in answer.lower()
    data = json.dumps(ASK).encode()
    asked = head(f"Content-Length: {len(data)}") + data
    assert b"access-control" not in raw(server, asked)[1].lower()


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.html",
        "/http_server.py",
        "/page.js/../http_server.py",
        "/v1/models/%2fetc%2fpasswd",
        "/v1/models/",
        "file:///etc/passwd",
    ],
)
def test_no_file_can_be_read_but_those_of_the_page(path: str, server: ModelServer) -> None:
    status, answer = raw(server, head(path=path, method="GET"))
    assert status == 404 and b"root:" not in answer and b"import" not in answer


def test_the_page_asks_no_other_host_and_is_in_no_frame(server: ModelServer) -> None:
    for path in ("/", "/page.css", "/page.js"):
        status, answer = raw(server, head(path=path, method="GET"))
        before, _, page = answer.decode().partition("\r\n\r\n")
        assert status == 200 and "http://" not in page and "https://" not in page
        assert "default-src 'none'" in before and "frame-ancestors 'none'" in before
        assert "unsafe" not in before and "nosniff" in before


def test_the_system_message_is_the_page_s_and_not_forced(server: ModelServer) -> None:
    assert ask(server, "/run")[1]["system"] == SYSTEM
    bare = ask(server, body=ASK)[1]["usage"]["prompt_tokens"]
    with_system = [{"role": "system", "content": SYSTEM}, HI]
    assert ask(server, body={**ASK, "messages": with_system})[1]["usage"]["prompt_tokens"] > bare


def test_a_fused_model_that_cannot_be_loaded_is_an_error_and_the_others_go_on(
    shop: Path, tmp_path: Path
) -> None:
    with serving(shop) as server:
        lost = server.models.sources.models[-1]
        object.__setattr__(lost, "model", str(tmp_path))
        status, answer = ask(server, body={**ASK, "model": "fused"})
        assert status == 500 and "no config.json" in answer["error"]["message"]
        assert ask(server, body=ASK)[0] == 200


def test_a_fault_in_the_thread_that_answers_ends_the_server(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(timeout: float | None = None) -> None:
        raise AssertionError("a fault")

    server = ModelServer(find_sources(shop / "sft"), port=0)
    server.replies._next_request = fail
    with pytest.raises(ServeError, match="ended with an error; start again"):
        server.serve_forever(0.02)
    server.end()
    assert "a fault" in caplog.text


def test_an_address_that_cannot_be_listened_at_is_said_in_a_line(
    server: ModelServer, shop: Path
) -> None:
    for host, port, says in (
        ("127.0.0.1", server.server_port, "Address already in use; name another `port`"),
        ("203.0.113.1", 0, "this machine does not have the address; name another `host`"),
        ("no.such.host.invalid", 0, "no address of this machine; name another `host`"),
    ):
        with pytest.raises(ServeError, match=says) as caught:
            ModelServer(server.models.sources, host=host, port=port)
        assert "\n" not in str(caught.value)
