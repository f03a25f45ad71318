"""Local models: served while they are needed, and ended with the process that needs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.small_run import make_inputs

from forty2.errors import BenchmarkError, ServeError
from forty2.failures.chat_models import ChatModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_inputs(tmp_path_factory.mktemp("local") / "inputs") / "model")


def is_open(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0


def until_closed(url: str) -> bool:
    """Wait up to ten seconds for a server to end."""
    end = time.monotonic() + 10
    while is_open(url) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_open(url)


def test_a_local_model_answers_past_a_proxy_and_ends_with_the_context(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with ChatModel(name=f"local:{model}").open() as endpoint:
        one, again = (
            endpoint.ask("Hello?", temperature=1.0, max_tokens=8, seed=seed) for seed in (3, 3)
        )
        assert is_open(endpoint.url)
    assert one == again and one.tokens is not None and one.tokens[1] <= 8
    assert until_closed(endpoint.url)


def test_a_model_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(ServeError, match=r"local:nowhere: .*no such"):  # noqa: SIM117
        with ChatModel(name="local:nowhere").open():
            pass


def test_a_wrong_address_is_refused_at_once() -> None:
    with pytest.raises(BenchmarkError, match="give http://HOST"):
        ChatModel(name="example.org/v1")
    with pytest.raises(BenchmarkError, match="MISSING_KEY: not set"):
        ChatModel(name="http://127.0.0.1:9/v1", api_key_env="MISSING_KEY")


HOLDS = """
import sys, time
from forty2.failures.chat_models import ChatModel
with ChatModel(name=f"local:{sys.argv[1]}").open() as endpoint:
    print(endpoint.url, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_server_ends_with_a_process_that_is_killed_or_interrupted(
    model: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, model],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ},
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert is_open(url)
    process.send_signal(number)
    process.wait(20)
    process.stdout.close()
    assert until_closed(url)


def test_what_is_recorded_names_the_model_and_no_address_of_the_moment(tmp_path: Path) -> None:
    local = ChatModel(name="local:smollm2")
    assert local.source == "local:smollm2"
    assert ChatModel(name="http://127.0.0.1:9/v1", model="m").source == "m"
