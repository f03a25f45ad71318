"""Requests to a served run: whole ones, and such as no honest client sends."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

from forty2.serve.http_server import ModelServer

CHAT = "/v1/chat/completions"


def ask(
    server: ModelServer,
    path: str = CHAT,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """Send a body, or GET without one; return the status and the JSON of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        method = "GET" if body is None else "POST"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def reply(server: ModelServer, model: str, prompt: str, **settings: Any) -> str:
    """Return a model's reply to a message."""
    message = {"role": "user", "content": prompt}
    status, answer = ask(server, body={"model": model, "messages": [message], **settings})
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"] or "")


def head(*lines: str, path: str = CHAT, method: str = "POST") -> bytes:
    """The beginning of a request, with the lines of its headers."""
    given = (f"{method} {path} HTTP/1.1", "Host: localhost", *lines)
    return "\r\n".join((*given, "", "")).encode("latin-1")


def connect(server: ModelServer, sent: bytes = b"") -> socket.socket:
    """Open a connection, and send some bytes."""
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
    connection.sendall(sent)
    return connection


def raw(server: ModelServer, sent: bytes) -> tuple[int, bytes]:
    """Send bytes; return the status, 0 for no answer, and all that comes back."""
    with connect(server, sent) as connection:
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    answer = b"".join(parts)
    return int(answer.split()[1] if answer else 0), answer
