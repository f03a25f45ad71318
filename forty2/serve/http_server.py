"""HTTP around mlx-lm's server: addresses, who may ask, and limits on what one client can take.

mlx-lm's handler writes the replies. Before it sees a request, the request was read within limits and
checked; what it refuses or fails at becomes an error in OpenAI's form.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from http.server import ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from mlx_lm.server import (
    APIHandler,
    CompletionRequest,
    GenerationArguments,
    GenerationContext,
    Response,
)

from forty2.errors import ServeError, first_line
from forty2.files import JsonObject
from forty2.serve.models import ServedModels
from forty2.serve.origins import refusal
from forty2.serve.replies import Replies, Stopped
from forty2.serve.request_body import Refused, read_body, unknown_model
from forty2.serve.sources import Sources

MOST_TOKENS = 4096
"""Longest reply that a request may ask for, in tokens."""
MOST_REQUESTS = 32
"""Requests that are answered or wait for it."""
_MOST_CONNECTIONS = 128
_MOST_BYTES = 2 * 2**20
"""Largest body of a request."""
_READ_SECONDS = 10.0
"""Time that a client has to send its whole request."""
_WRITE_SECONDS = 30.0
"""Time that a client has to take a piece of the reply."""
_DRAINED_BYTES = 16 * 2**20
_DRAIN_SECONDS = 1.0
"""How much of a refused body is read and thrown away, so that its sender can read the refusal."""
_RETRY = {"Retry-After": "1"}
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_PAGES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
"""The only files that are sent, by path; all are the package's own."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFETY = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_OVERLOADED = Refused(
    503, "too many connections at once; try again in a second", code="overloaded", headers=_RETRY
)


class ModelServer(ThreadingHTTPServer):
    """Listens at an address, with the models loaded, and answers until it is interrupted."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        sources: Sources,
        *,
        host: str = "127.0.0.1",
        port: int = 8042,
        trust_remote_code: bool = False,
        most_tokens: int = MOST_TOKENS,
        most_requests: int = MOST_REQUESTS,
    ) -> None:
        """Take the address, and load the models; clients that connect meanwhile wait.

        Args:
            port: 0 for any that is free.
            most_tokens: longest reply that a request may ask for, in tokens.
            most_requests: requests that are answered or wait for it; others are refused with 429.

        Raises:
            ServeError: the address cannot be listened at.
            ModelError: a model is missing or damaged.
        """
        self.host = host
        self.most_tokens = most_tokens
        self.slots = threading.BoundedSemaphore(most_requests)
        self._connections = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self.started = int(time.time())
        self.fingerprint = "forty2"
        with _address_errors(host, port):
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, _, _, _, address = found[0]
            super().__init__(cast(tuple[str, int], address), _Handler)
        try:
            self.models = ServedModels(
                sources, trust_remote_code=trust_remote_code, most_tokens=most_tokens
            )
        except BaseException:
            self.server_close()
            raise
        self.replies = Replies(self.models)

    @property
    def url(self) -> str:
        """Address for a browser on this machine."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        name = everywhere.get(self.host, self.host)
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.server_port}/"

    def server_bind(self) -> None:
        """Take the address, without asking the name service for this machine's name as http does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def service_actions(self) -> None:
        """End the server if the thread that answers has ended, which is a fault."""
        if not self.replies.is_healthy:
            raise ServeError("the thread that writes replies ended with an error; start again")

    def end(self) -> None:
        """Close the address and stop all replies."""
        self.server_close()
        self.replies.end()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, if there are not too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        body = json.dumps(_OVERLOADED.to_json()).encode()
        head = f"HTTP/1.0 503 Overloaded\r\nRetry-After: 1\r\nContent-Length: {len(body)}\r\n"
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection, then count it no more."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; anything else is a fault and keeps its traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def _address_errors(host: str, port: int) -> Iterator[None]:
    """Raise errors about an address as ours."""
    try:
        yield
    except socket.gaierror as error:
        raise ServeError(f"{host}: no address of this machine; name another `host`") from error
    except OverflowError as error:
        raise ServeError(f"{port}: no port; name one from 1 to 65535 as `port`") from error
    except OSError as error:
        remedies = {
            errno.EADDRNOTAVAIL: "this machine does not have the address; name another `host`",
            errno.EACCES: "name another `port`, from 1024 on",
        }
        otherwise = "name another `port`, or end the program that listens there"
        raise ServeError(
            f"{host}:{port}: {error.strerror or first_line(error)}; "
            f"{remedies.get(error.errno or 0, otherwise)}"
        ) from error


class _Request(io.RawIOBase):
    """What a client sends, which must all be there by a deadline; a timeout alone starts anew each byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + _READ_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(_WRITE_SECONDS)


class _Handler(APIHandler):  # type: ignore[misc]  # mlx-lm has no types
    """Answers one request."""

    server: ModelServer
    rfile: Any
    path: str
    timeout = _WRITE_SECONDS
    _begun = False
    """Whether the status line was sent, so that an error cannot be one of HTTP any more."""

    def __init__(self, request: Any, client_address: Any, server: ModelServer) -> None:
        asked = _Asked(server.replies, request)
        super().__init__(
            asked, request, client_address, server, system_fingerprint=server.fingerprint
        )

    # --- what comes in ---

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Request(self.connection))

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        headers = {name: self.headers.get(name) for name in ("Host", "Origin")}
        why = refusal(headers, self.server.host)
        if why is not None:
            self._send_refusal(Refused(403, why))
        return why is None

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in _PAGES:
            name, kind = _PAGES[path]
            self._send(200, files(__package__).joinpath(name).read_bytes(), kind)
        elif path == "/run":
            sources = self.server.models.sources
            about = {"name": sources.name, "models": sources.ids, "system": sources.system}
            self._send_json(200, {**about, "most_tokens": self.server.most_tokens})
        elif path == "/health":
            self._send_json(200, {"status": "ok"})
        elif path == "/v1/models":
            models = [self._model(name) for name in self.server.models.sources.ids]
            self._send_json(200, {"object": "list", "data": models})
        elif path.startswith("/v1/models/"):
            ids, name = self.server.models.sources.ids, unquote(path.removeprefix("/v1/models/"))
            if name in ids:
                self._send_json(200, self._model(name))
            else:
                self._send_refusal(unknown_model(name, ids))
        else:
            self._send_refusal(Refused(404, "there is nothing at this address"))

    def do_OPTIONS(self) -> None:
        self._send_refusal(Refused(405, "other sites may not ask", headers={"Allow": "GET, POST"}))

    def do_POST(self) -> None:
        try:
            body = self._read_request()
            with self._slot():
                data = json.dumps(body).encode()
                self.rfile = io.BytesIO(data)
                self.headers.replace_header("Content-Length", str(len(data)))
                super().do_POST()
        except Refused as refused:
            self._send_refusal(refused)
        except (OSError, Stopped):  # nobody reads the reply any more, or the server ends
            self.close_connection = True
        except Exception as error:
            self._send_refusal(Refused(500, f"the reply failed: {first_line(error)}"))

    def _read_request(self) -> JsonObject:
        """Read the body and check it."""
        path = urlsplit(self.path).path
        if path not in (_CHAT, _TEXT):
            raise Refused(404, f"there is nothing at this address; there is {_CHAT} and {_TEXT}")
        self.path = path
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") is not None or len(lengths) != 1:
            raise Refused(411, "send the body with one Content-Length, not in chunks")
        if not (lengths[0].isascii() and lengths[0].isdigit()):
            raise Refused(400, "Content-Length is not a number")
        if len(lengths[0]) > 15 or int(lengths[0]) > _MOST_BYTES:
            raise Refused(413, f"the body is larger than {_MOST_BYTES:,} bytes")
        try:
            data = self.rfile.read(int(lengths[0]))
        except TimeoutError as error:
            raise Refused(408, f"the body did not come within {_READ_SECONDS:g} s") from error
        if len(data) < int(lengths[0]):
            raise ConnectionAbortedError
        return read_body(
            data,
            chat=path == _CHAT,
            models=self.server.models.sources.ids,
            most_tokens=self.server.most_tokens,
        )

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        """Hold one of the places for requests that are answered or wait for it."""
        if not self.server.slots.acquire(blocking=False):
            raise Refused(429, "too many requests at once; try again in a second", headers=_RETRY)
        try:
            yield
        finally:
            self.server.slots.release()

    # --- what goes out ---

    def _set_completion_headers(self, status_code: int = 200) -> None:
        """Begin a reply of mlx-lm's handler; raise its errors, for which it writes a form of its own."""
        if status_code < 400:
            super()._set_completion_headers(status_code)
            return
        error = sys.exc_info()[1]
        if error is None:
            raise Refused(status_code, "the request cannot be understood")
        raise error if status_code == 404 else Refused(status_code, first_line(error))

    def _set_cors_headers(self) -> None:
        """Let no page of another site read what is sent."""

    def end_headers(self) -> None:
        for name, value in _SAFETY.items():
            self.send_header(name, value)
        self._begun = True
        super().end_headers()

    def version_string(self) -> str:
        return "forty2"

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: a log would hold what people ask."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no HTTP; the base class would write a page."""
        self._send_refusal(Refused(int(code), message or "this is no request of HTTP"))

    def _model(self, name: str) -> JsonObject:
        return {"id": name, "object": "model", "created": self.server.started, "owned_by": "forty2"}

    def _send_json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(
        self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        about = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
        }
        for name, value in {**about, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _send_refusal(self, refused: Refused) -> None:
        """Send an error, and end the connection; in a stream, as its last event."""
        self.close_connection = True
        self.request_version = "HTTP/1.0"  # what names none would be answered without headers
        data = json.dumps(refused.to_json()).encode()
        with contextlib.suppress(OSError):
            if self._begun:
                self.wfile.write(b"data: " + data + b"\n\n")
                return
            self._headers_buffer: list[bytes] = []  # a reply may have been begun
            self._send(refused.status, data, "application/json", refused.headers)
            self._drain()

    def _drain(self) -> None:
        """Read on for a moment: a connection closed with unread bytes takes the refusal along."""
        self.connection.shutdown(socket.SHUT_WR)
        deadline, left = time.monotonic() + _DRAIN_SECONDS, _DRAINED_BYTES
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            self.connection.settimeout(seconds)
            data = self.connection.recv(65536)
            if not data:
                return
            left -= len(data)


class _Asked:
    """What mlx-lm's handler asks for replies, for one client: they stop when it goes away."""

    def __init__(self, replies: Replies, connection: socket.socket) -> None:
        self._replies = replies
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replies, name)

    def generate(
        self,
        request: CompletionRequest,
        generation_args: GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[GenerationContext, Iterator[Response]]:
        """Ask for a reply, as `Replies.generate` does."""
        context, responses = self._replies.generate(request, generation_args, progress_callback)
        return context, self._while_there(responses)

    def _while_there(self, responses: Iterator[Response]) -> Generator[Response]:
        for response in responses:
            if self._is_gone():
                raise ConnectionAbortedError
            yield response

    def _is_gone(self) -> bool:
        """Return whether the client has closed the connection."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0)) and not self._connection.recv(1, socket.MSG_PEEK)
