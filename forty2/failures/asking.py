"""Many requests to one chat model: some at once, each answer on disk when it is there, within a budget.

What a request may cost is set aside before it is sent: its prompt, estimated from its bytes, and the
longest reply that it allows. If that exceeds what is left, nothing is sent until the requests under
way say what they cost; and if it still does, asking ends. So the budget is kept, and where asking ends
does not depend on which reply came first.

A request that fails for good is stored as such. Until one has worked, failures are held back: the fault
may be the server's, and after five, or if there is nothing else to ask, asking stops with the first one's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from forty2.benchmark.partial_results import PartialResults
from forty2.errors import DataError
from forty2.failures.chat_models import ChatModel
from forty2.files import JsonObject
from forty2.inference.chat_endpoint import ChatEndpoint, NothingWorked, RequestFailed
from forty2.progress import Progress

_BYTES = 3
"""Bytes of UTF-8 a token, for estimates; English text has four, so they are rather too high."""
_MILLION = 1_000_000
_DOUBTED = 5
"""Requests that fail before one has worked, after which the fault is the server's."""


class Request(NamedTuple):
    """One question to a chat model."""

    key: str
    """Its name in the journal."""
    text: str


class Tokens(NamedTuple):
    """Tokens that were read and written."""

    prompt: int = 0
    reply: int = 0

    def plus(self, other: Tokens) -> Tokens:
        """Add up."""
        return Tokens(self.prompt + other.prompt, self.reply + other.reply)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How fast a model is asked, and what it may cost."""

    at_once: int = 4
    """Most requests under way at a time."""
    per_minute: float | None = None
    """Most requests begun in a minute; None: no limit."""
    tokens: int | None = None
    """Most tokens in all, prompts and replies; None: no limit."""
    cost: float | None = None
    """Most money in all; None: no limit."""
    price_in: float | None = None
    """Price of a million tokens of prompts; None: not known."""
    price_out: float | None = None
    """Price of a million tokens of replies."""
    timeout: float | None = None
    """Seconds without a byte after which a request is sent again; None: as the model has it."""

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise DataError("at_once: at least one request has to be under way")
        if not all(part is None or part > 0 for part in (self.per_minute, self.timeout)):
            raise DataError("per_minute and timeout: give more than 0")
        if (self.price_in is None) != (self.price_out is None):
            raise DataError("prices: give both `price_in` and `price_out`")
        if self.cost is not None and self.price_in is None:
            raise DataError("a budget in money needs prices: give `price_in` and `price_out`")

    def price(self, tokens: Tokens) -> float | None:
        """Return what tokens cost; None: the prices are not known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens.prompt * self.price_in + tokens.reply * self.price_out) / _MILLION

    def allow(self, tokens: Tokens) -> bool:
        """Return whether tokens are within the budget."""
        cost = self.price(tokens)
        within = self.tokens is None or sum(tokens) <= self.tokens
        return within and (self.cost is None or cost is None or cost <= self.cost)

    def less(self, spent: Tokens) -> Limits:
        """Return the limits with what is left of the budget."""
        tokens = None if self.tokens is None else max(0, self.tokens - sum(spent))
        paid = self.price(spent)
        cost = None if self.cost is None or paid is None else max(0.0, self.cost - paid)
        return replace(self, tokens=tokens, cost=cost)

    def budget(self) -> str:
        """Say what the budget is."""
        parts = [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        return " and ".join(parts + ([] if self.cost is None else [f"{self.cost:g} in money"]))


def estimate(text: str) -> int:
    """Estimate the tokens of a text."""
    return math.ceil(len(text.encode(errors="replace")) / _BYTES)


class Asker:
    """Asks one chat model, and stores what it answers.

    Args:
        endpoint: returns the model's endpoint; called when there is something to ask.
        partial: the journal, of which an answered request is never asked again.
        stage: what the progress is called.
        seed: seed of all requests; each has its own, from this and its key.
    """

    def __init__(
        self,
        endpoint: Callable[[], ChatEndpoint],
        partial: PartialResults,
        *,
        stage: str,
        seed: int,
        temperature: float,
        max_tokens: int,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._endpoint, self._partial = endpoint, partial
        self._stage, self._progress = stage, progress
        self._seed, self._temperature, self._max_tokens = seed, temperature, max_tokens
        self._limits = limits
        self._results: queue.SimpleQueue[tuple[Request, JsonObject | BaseException]] = (
            queue.SimpleQueue()
        )
        self._under_way: dict[str, Tokens] = {}
        self._next_start = 0.0
        self._error: BaseException | None = None
        self._held_back: dict[str, tuple[Request, NothingWorked]] = {}
        """Failures that are not stored, because nothing has worked yet."""
        self._worked, self._answered = False, False
        """Whether the server has answered this process, and whether it has answered at all, also before a stop."""
        self.spent = Tokens()
        self.estimated = 0
        """Answers whose tokens the server did not say."""
        self.ended = False
        """Whether the budget is used up."""

    def ask(self, requests: Sequence[Request]) -> list[JsonObject]:
        """Ask, and return the answers in the order of the requests; fewer if the budget ended.

        Each holds `said`, `model`, `tokens`, `estimated` and `error`; of `said` and `error` one is None.

        Raises:
            BenchmarkError: the endpoint does not work; what was answered is stored.
        """
        answers = 0
        for done, request in enumerate(requests):
            if request.key in self._partial:
                self._count(request)
            elif not self._send(request):
                break
            answers = done + 1
            self._progress(self._stage, done + 1 - len(self._under_way), len(requests), {})
        while self._under_way:
            self._collect(None)
            self._progress(self._stage, answers - len(self._under_way), len(requests), {})
        if self._answered:
            self._let_go()
        self._doubt(0)
        if self._error is not None:
            raise self._error
        return [self._partial[request.key] for request in requests[:answers]]

    def costs(self) -> JsonObject:
        """Return the tokens of all answers so far, how many of them are estimated, and their price."""
        return {
            "tokens": {**self.spent._asdict(), "estimated": self.estimated},
            "cost": self._limits.price(self.spent),
        }

    def _send(self, request: Request) -> bool:
        """Begin a request as soon as limits and budget allow; return whether they did."""
        if self.ended:
            return False
        most = Tokens(estimate(request.text), self._max_tokens)
        while len(self._under_way) >= self._limits.at_once or not self._within(most):
            if not self._under_way:
                self.ended = True
                return False
            self._collect(None)
        while (wait := self._next_start - time.monotonic()) > 0:
            if self._under_way:
                self._collect(wait)
            else:
                time.sleep(wait)
        if self._error is not None:
            return False
        if self._limits.per_minute is not None:
            self._next_start = time.monotonic() + 60 / self._limits.per_minute
        self._under_way[request.key] = most
        endpoint = self._endpoint()
        # a daemon: after Ctrl-C nobody waits for a reply that is under way
        threading.Thread(target=self._run, args=(endpoint, request), daemon=True).start()
        return True

    def _within(self, more: Tokens) -> bool:
        total = self.spent.plus(more)
        for reserved in self._under_way.values():
            total = total.plus(reserved)
        return self._limits.allow(total)

    def _run(self, endpoint: ChatEndpoint, request: Request) -> None:
        digest = hashlib.blake2b(f"{self._seed} {request.key}".encode(), digest_size=4).digest()
        result: JsonObject | BaseException
        try:
            reply = endpoint.ask(
                request.text,
                temperature=self._temperature,
                max_tokens=self._max_tokens,
                seed=int.from_bytes(digest) >> 1,
            )
        except RequestFailed as error:
            result = _answer(None, None, Tokens(), str(error))
        except BaseException as error:
            result = error
        else:
            tokens = None if reply.tokens is None else Tokens(*reply.tokens)
            result = _answer(reply.text, reply.model, tokens, None)
            if tokens is None:
                result["tokens"] = [estimate(request.text), estimate(reply.text)]
        self._results.put((request, result))

    def _collect(self, timeout: float | None) -> None:
        """Wait for one answer, and store it. After an error nothing new is sent."""
        try:
            request, result = self._results.get(timeout=timeout)
        except queue.Empty:
            return
        del self._under_way[request.key]
        if isinstance(result, NothingWorked) and not self._worked:
            self._held_back[request.key] = request, result
            self._doubt(_DOUBTED - 1)
            return
        if isinstance(result, BaseException) and not isinstance(result, NothingWorked):
            self._error = self._error or result
            return
        self._store(request, result)
        if self._worked:
            self._let_go()

    def _let_go(self) -> None:
        """Store the failures that were held back as what they are: each request's own."""
        if self._error is None:
            for request, failure in self._held_back.values():
                self._store(request, failure)
            self._held_back.clear()

    def _doubt(self, most: int) -> None:
        """Blame the server if more requests failed than that, and none has worked."""
        if len(self._held_back) > most:
            _, first = next(iter(self._held_back.values()))
            self._error = self._error or first

    def _store(self, request: Request, result: JsonObject | NothingWorked) -> None:
        if isinstance(result, NothingWorked):
            result = _answer(None, None, Tokens(), str(result))
        else:
            self._worked |= result["said"] is not None
        self._partial.add(request.key, result)
        self._count(request)

    def _count(self, request: Request) -> None:
        answer = self._partial[request.key]
        self.spent = self.spent.plus(Tokens(*answer["tokens"]))
        self.estimated += answer["estimated"]
        self._answered |= answer["said"] is not None


@contextlib.contextmanager
def open_asker(
    model: ChatModel, partial: PartialResults, *, limits: Limits, **settings: Any
) -> Iterator[Asker]:
    """Make an asker of a model, which is reached, or loaded, when there is something to ask.

    Args:
        settings: as `Asker` takes them.
    """
    if limits.timeout is not None:
        model = replace(model, timeout=limits.timeout)
    with contextlib.ExitStack() as stack:
        endpoint = functools.cache(functools.partial(stack.enter_context, model.open()))
        yield Asker(endpoint, partial, limits=limits, **settings)


def _answer(
    said: str | None, model: str | None, tokens: Tokens | None, error: str | None
) -> JsonObject:
    """Return what is stored of a request."""
    return {
        "said": said,
        "model": model,
        "tokens": None if tokens is None else list(tokens),
        "estimated": tokens is None,
        "error": error,
    }
