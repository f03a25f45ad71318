"""Chat models that a step asks: servers by their address, and local models, served while they are needed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forty2.errors import ServeError
from forty2.inference.chat_endpoint import ChatEndpoint, Role

LOCAL = "local:"
_SERVER = "forty2.serve.until_closed"
_SECONDS = 10.0
"""Time that a local server has to end."""
_PATIENCE = 3600.0
"""Seconds that a local model has for a reply at least: on a CPU, requests wait for each other, and a
server of ours that has ended is noticed at once."""


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A chat model, and how it is reached."""

    name: str
    """Address of an OpenAI-compatible server, http://HOST/v1, or `local:MODEL`, where MODEL is a folder,
    a hub name, `smollm2` or a run."""
    model: str = "default"
    """Name of the model on the server."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    timeout: float = 120.0
    """Seconds without a byte after which a try counts as failed."""
    tries: int = 8
    """Tries of each request; with the waits between them, two minutes of refusals are survived."""
    role: Role = "teacher"
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.name.startswith(LOCAL):
            self._endpoint(self.name, self.model)  # what is wrong with the address is said at once

    @property
    def source(self) -> str:
        """Name that is recorded as the source of its rows."""
        return self.name if self.name.startswith(LOCAL) else self.model

    def about(self) -> dict[str, str]:
        """Return what is recorded of it."""
        return {"name": self.name, "model": self.model}

    @contextlib.contextmanager
    def open(self) -> Iterator[ChatEndpoint]:
        """Return its endpoint; a local model is loaded first, and its server ends with the context.

        Raises:
            ServeError: a local model cannot be loaded.
            BenchmarkError: the address is not valid, or the key's variable is not set.
        """
        if not self.name.startswith(LOCAL):
            yield self._endpoint(self.name, self.model)
            return
        with _served(self.name.removeprefix(LOCAL)) as (url, model):
            yield self._endpoint(url, model, max(self.timeout, _PATIENCE))

    def _endpoint(self, url: str, model: str, timeout: float | None = None) -> ChatEndpoint:
        return ChatEndpoint(
            url,
            model,
            api_key_env=self.api_key_env,
            timeout=timeout or self.timeout,
            tries=self.tries,
            role=self.role,
            sleep=self.sleep,
        )


@contextlib.contextmanager
def _served(model: str) -> Iterator[tuple[str, str]]:
    """Serve a model on the loopback; return the server's address and its name of the model.

    The server ends when its input is closed, which the system does even if this process is killed.
    """
    command = [sys.executable, "-m", _SERVER, model]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C reaches this process alone, which ends the server
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
        except ValueError:
            said = {"error": f"its server ended with exit code {process.wait(_SECONDS)}"}
        if "error" in said:
            raise ServeError(f"{LOCAL}{model}: {said['error']}")
        yield said["url"], said["model"]
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
