"""A chat server on the loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]


def said(text: Any, status: int = 200, tokens: tuple[int, int] | None = None) -> Reply:
    """A response with a reply, and perhaps the tokens of prompt and reply."""
    body: dict[str, Any] = {"model": "judge-1", "choices": [{"message": {"content": text}}]}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return status, body, {}


@contextmanager
def server(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[tuple[str, list[Any]]]:
    """A server on the loopback; `answer` gets the number of the request and its body."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
            status, value, headers = answer(len(seen), body)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, header in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, header)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1", seen
        finally:
            http.shutdown()
