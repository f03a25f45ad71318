"""`forty2 serve` as a user meets it: what it prints, how it ends, and that it writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.cli import forty2, refused

from forty2.serve.http_server import ModelServer


@pytest.fixture
def place(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(shop, tmp_path / "adapters" / "shop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def started(place: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A server in a process of its own, and what it printed."""
    # Started in the background of a shell, this process ignores SIGINT, and so would a child.
    heed = "import signal; signal.signal(2, signal.default_int_handler); from forty2.cli import main; main()"
    command = [sys.executable, "-c", heed, "serve", "shop", "--port", "0", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=place,
        env={**os.environ, "HOME": str(place / "home")},
    ) as child:
        assert child.stdout is not None
        said: dict[str, str] = {}
        for line in child.stdout:
            first, _, rest = line.partition(" ")
            said[first] = rest.strip()
            if first == "Ctrl-C":
                break
        try:
            yield child, said
        finally:
            child.kill()


def test_ctrl_c_ends_it_at_once_also_within_a_reply(place: Path) -> None:
    (place / "home").mkdir()
    before = sorted(place.rglob("*"))
    with started(place, "--host", "localhost") as (child, said):
        assert said["models"] == "base, sft, dpo, fused"
        body = {"model": "sft", "prompt": "One", "max_tokens": 480, "stream": True, "seed": 1}
        address = f"{said['programs']}/completions"
        request = urllib.request.Request(address, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=20) as reply:
            while not reply.readline().startswith(b"data: "):
                pass
            start = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.wait(10) == 0
            assert time.monotonic() - start < 2
        assert child.stdout is not None and child.stdout.read() == ""
    assert sorted(place.rglob("*")) == before  # no log, no cache


def test_other_machines_are_let_in_with_a_warning_and_sigterm_ends_it(place: Path) -> None:
    with started(place, "--host", "0.0.0.0") as (child, said):
        assert said["warning:"].endswith("can use the models: there is no password")
        assert said["page"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{said['programs']}/models", timeout=20) as answer:
            assert answer.status == 200
        child.terminate()
        assert child.wait(10) == 0


def test_mistakes_end_with_one_line_and_code_2(server: ModelServer, place: Path) -> None:
    taken = refused("serve", "shop", "--port", str(server.server_port))
    assert taken.count("\n") == 1 and "name another --port" in taken
    assert "name another --host" in refused("serve", "shop", "--host", "no.such.host.invalid")
    assert "did you mean adapters/shop?" in refused("serve", "shp")
    assert "no finished phase of this name" in refused("serve", "adapters/shop/sfd")
    (place / "adapters/shop/phase1_sft/adapters.safetensors").write_bytes(b"")
    broken = refused("serve", "shop", "--port", "0")
    assert broken.count("\n") == 1 and "adapters.safetensors" in broken


def test_the_help_has_an_example() -> None:
    assert "forty2 serve shop\n" in forty2("serve", "--help").output
