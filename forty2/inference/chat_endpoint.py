"""A client of OpenAI-compatible chat endpoints: one user turn in, the reply out."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from forty2.errors import BenchmarkError

MAX_BODY = 4 << 20
"""Most bytes of a response that are read."""
LONGEST_WAIT = 60.0
"""Most seconds between two tries, even if the endpoint asks for more."""
_PASSING = (408, 409, 425, 429)
"""Refusals below 500 after which the same request may be answered."""

Role = Literal["judge", "teacher"]
_SETTINGS: dict[Role, str] = {
    "judge": "`judge_model` and `api_key_env`",
    "teacher": "`teacher_model` and `api_key_env`",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ChatReply(NamedTuple):
    """A reply of a chat model."""

    text: str
    model: str | None
    """Model that answered according to the server, which may not be the one requested."""
    tokens: tuple[int, int] | None = None
    """Tokens of the prompt and of the reply; None: the server does not say."""


class RequestFailed(Exception):
    """A request that failed for good; the message says why."""


class NothingWorked(BenchmarkError):
    """The same, of an endpoint that has not answered any request yet: the fault may be the endpoint's."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would send the key to another place."""

    def redirect_request(self, *_: object) -> None:
        return None


class ChatEndpoint:
    """`/v1/chat/completions` of one server, for one model."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 120.0,
        tries: int = 5,
        role: Role = "judge",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Check the address; nothing is sent yet.

        Args:
            url: the server's base, such as http://127.0.0.1:8080/v1, or the whole address.
            model: the server's name of the model.
            api_key_env: name of the environment variable that holds the key.
            timeout: seconds without a byte after which a try counts as failed.
            tries: most tries of each request, after waits of 1, 2, 4, … seconds or as the server asks.
            role: what the model is for; errors name its settings.
            sleep: function that waits for a number of seconds.

        Raises:
            BenchmarkError: the address is not valid, or the variable is not set.
        """
        _check_address(url)
        base = url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.model = model
        self._key = _key(api_key_env)
        self._timeout, self._tries, self._sleep = timeout, tries, sleep
        self._role = role
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urlsplit(url).hostname in _LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy would ask itself
        self._opener = urllib.request.build_opener(*handlers)
        self._worked = False

    def ask(self, text: str, *, temperature: float, max_tokens: int, seed: int) -> ChatReply:
        """Send one user turn, and return the reply.

        Raises:
            BenchmarkError: the endpoint cannot be reached or refuses the key or the model.
            NothingWorked: this one request failed for good, and none has worked before.
            RequestFailed: this one request failed for good.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        try:
            reply = self._without_key(_reply(self._post(json.dumps(body).encode())))
        except RequestFailed as error:
            if not self._worked:
                raise NothingWorked(
                    f"{self.url}: {error}; check the address and the model"
                ) from error
            raise
        self._worked = True
        return reply

    def _post(self, body: bytes) -> object:
        """Send a request, again after failures, and return the parsed response."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, body, headers)
        wrong = ""
        for attempt in range(self._tries):
            wait = 2.0**attempt
            try:
                with self._opener.open(request, timeout=self._timeout) as response:
                    return json.loads(_read(response, self._timeout))
            except urllib.error.HTTPError as error:
                wrong = self._refusal(error)
                wait = max(wait, _retry_after(error))
            except OSError as error:
                wrong = self._no_response(error, last=attempt + 1 == self._tries)
            except (ValueError, RecursionError, http.client.HTTPException) as error:
                wrong = self._hide_key(f"the response is not readable: {error!r}"[:200])
            if attempt + 1 < self._tries:
                self._sleep(min(wait, LONGEST_WAIT))
        raise RequestFailed(f"{wrong} (tried {self._tries} times)")

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """Return why the server refused, if the request may be tried again; otherwise raise."""
        wrong = self._status(error)
        if error.code in (401, 403, 404):
            raise BenchmarkError(
                f"{self.url}, model {self.model!r}: refused ({wrong}); check the address, "
                + _SETTINGS[self._role]
            ) from None
        if error.code not in _PASSING and error.code < 500:
            raise RequestFailed(wrong) from None
        return wrong

    def _no_response(self, error: OSError, *, last: bool) -> str:
        """Return why there was no response, if trying again may help; otherwise raise."""
        reason = getattr(error, "reason", error)
        gone = last and not isinstance(reason, TimeoutError)
        if gone or (isinstance(reason, ConnectionRefusedError) and not self._worked):
            raise BenchmarkError(
                f"{self.url}: cannot be reached ({reason}); is the server running?"
            ) from None
        return f"no response: {reason}"

    def _status(self, error: urllib.error.HTTPError) -> str:
        """Return the status and the beginning of the server's message on one line, without the key."""
        try:
            text = " ".join(error.read(MAX_BODY).decode("utf-8", "replace").split())
        except (OSError, http.client.HTTPException):
            text = ""
        text = self._hide_key(text)
        return f"HTTP {error.code}" + (f": {text[:200]}" if text else "")

    def _without_key(self, reply: ChatReply) -> ChatReply:
        """Remove the key from what will be stored, should the server send it back."""
        return reply._replace(
            text=self._hide_key(reply.text),
            model=None if reply.model is None else self._hide_key(reply.model),
        )

    def _hide_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        bad |= not url.isascii() or not url.isprintable() or " " in url
    except ValueError:
        bad = True
    if bad:
        raise BenchmarkError(f"endpoint {url!r}: give http://HOST:PORT/v1 or https://…")
    if parts.username is not None or parts.query or parts.fragment:
        raise BenchmarkError(
            f"endpoint at {parts.hostname}: nothing secret goes into an address; name the "
            "key's environment variable with `api_key_env`, and leave out what follows ? or #"
        )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise BenchmarkError(f"environment variable {variable}: not set; put the API key into it")
    if not (key.isascii() and key.isprintable()):
        raise BenchmarkError(
            f"environment variable {variable}: holds characters that a header cannot carry; put "
            "the API key into it"
        )
    return key


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Return the seconds that the server asks to wait; 0 if it does not say, or gives a date."""
    value = error.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _read(response: http.client.HTTPResponse, seconds: float) -> bytes:
    """Read the body of a response, for so long in all: the bytes of one may drip without end.

    Raises:
        TimeoutError: it takes longer.
    """
    end = time.monotonic() + seconds
    parts: list[bytes] = []
    while (left := MAX_BODY - sum(map(len, parts))) > 0:
        part = response.read1(min(left, 1 << 16))
        if not part:
            break
        parts.append(part)
        if time.monotonic() > end:
            raise TimeoutError("the response does not end")
    return b"".join(parts)


def _reply(response: object) -> ChatReply:
    try:
        content = response["choices"][0]["message"]["content"]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        raise RequestFailed("the response holds no chat message") from None
    if not isinstance(content, str):
        raise RequestFailed("the response's message holds no text")
    about = response if isinstance(response, dict) else {}
    model = about.get("model")
    named = _whole(model) if isinstance(model, str) else None
    return ChatReply(_whole(content), named, _tokens(about))


def _whole(text: str) -> str:
    """Replace halves of characters, which JSON can express and no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _tokens(response: Mapping[str, object]) -> tuple[int, int] | None:
    """Return the tokens that a response was charged with: prompt and reply."""
    usage = response.get("usage")
    if not isinstance(usage, Mapping):
        return None
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(reply) is not int or min(prompt, reply) < 0:
        return None
    return prompt, reply
