"""A conversation with a model. What the model has read stays in its key-value cache.

A turn runs only the tokens that are new: those after the longest common beginning of the rendered
conversation and of what is in the cache. So a chat template that rewrites earlier turns is right too;
there, more is read again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from forty2.errors import ModelError
from forty2.inference.generation import common_prefix_length
from forty2.model.adapter import choose_system, has_adapter, without_adapter
from forty2.model.base_model import find_model_and_adapter
from forty2.model.chat_template import TemplateSettings
from forty2.model.loading import LoadedModel, load
from forty2.text.encoder import Encoder

MAX_TOKENS = 512
"""Longest reply, in tokens."""


class Exchange(NamedTuple):
    """A message of the user, and the model's reply."""

    message: str
    reply: str


class _Cache:
    """A model's key-value cache, and the token ids that are in it."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._layers: list[object] | None = None
        self.ids: list[int] = []
        self.tokens_read = 0
        """Tokens read for the last prompt; the cache held its others."""

    def stream(
        self, prompt: list[int], *, max_tokens: int, temperature: float, seed: int
    ) -> Generator[str]:
        """Read what is new of a prompt, and yield the reply piece by piece."""
        from mlx_lm.generate import stream_generate
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.sample_utils import make_sampler

        common = self._keep_common(prompt)
        self.tokens_read = len(prompt) - common
        layers = self._layers or make_prompt_cache(self._loaded.model)
        self._layers, self.ids = None, []  # unless the reply ends well, the cache is not used again
        mx.random.seed(seed)
        pieces = stream_generate(
            self._loaded.model,
            self._loaded.tokenizer,
            prompt[common:],
            max_tokens=max_tokens,
            sampler=make_sampler(temp=temperature),
            prompt_cache=layers,
        )
        ids = list(prompt)
        for piece in pieces:
            ids.append(int(piece.token))
            yield piece.text
        self._layers, self.ids = layers, ids

    def _keep_common(self, prompt: Sequence[int]) -> int:
        """Cut the cache to the ids that a prompt begins with; return their number.

        The last id of a prompt is always read again: the reply begins with its logits.
        """
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        if self._layers is None:
            return 0
        common = min(common_prefix_length([self.ids, list(prompt)]), len(prompt) - 1)
        surplus = len(self.ids) - common
        if surplus and not can_trim_prompt_cache(self._layers):
            self._layers = None
            return 0
        trim_prompt_cache(self._layers, surplus)
        return common


class ChatSession:
    """A conversation with one loaded model; nothing here prints."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = MAX_TOKENS,
        seed: int = 42,
    ) -> None:
        """Begin an empty conversation.

        Args:
            system: system message.
            temperature: sampling temperature; 0: greedy, always the likeliest token.
            max_tokens: longest reply, in tokens.
            seed: seed of the first reply's sampling; the next reply takes the next number.

        Raises:
            ModelError: the tokenizer has no chat template.
        """
        self.system = system
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.seed = seed
        self.exchanges: list[Exchange] = []
        self._loaded = loaded
        self._encoder = Encoder(loaded.tokenizer)
        self._cache = _Cache(loaded)
        self._base_cache = _Cache(loaded)
        self._base_replies: list[str] = []
        """What the base says to the first messages, in a conversation of its own."""
        self._base_next: Exchange | None = None
        """The message that the base has answered before the model."""
        self._replies = 0

    @property
    def tokens_read(self) -> int:
        """Tokens that the model had to read for the last reply; its cache held the others."""
        return self._cache.tokens_read

    @property
    def has_adapter(self) -> bool:
        """True if the model has an adapter, so that its base can be compared."""
        return has_adapter(self._loaded.model)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, as rows of training data hold it."""
        return self._turns([exchange.reply for exchange in self.exchanges])

    @property
    def base_is_behind(self) -> int:
        """Messages of the conversation that the base has not answered."""
        return len(self.exchanges) - len(self._base_replies)

    def make_room(self, message: str) -> int:
        """Drop the oldest exchanges until the conversation, a message and a reply fit the context.

        Returns:
            How many were dropped.

        Raises:
            ModelError: the message alone does not fit.
        """
        replies = [exchange.reply for exchange in self.exchanges]
        dropped, prompt = self._fitting(message, replies)
        self._loaded.row_limit.refuse(len(prompt) + 1, "the message and a reply")
        del self.exchanges[:dropped], self._base_replies[:dropped]
        return dropped

    def stream(self, message: str) -> Generator[str]:
        """Reply to a message, piece by piece; the exchange is part of the conversation at the end.

        If the caller closes the generator, the reply so far is kept.

        Raises:
            ModelError: the message alone does not fit the model's context.
        """
        self.make_room(message)
        said: list[str] = []
        replies = [exchange.reply for exchange in self.exchanges]
        base, self._base_next = self._base_next, None
        try:
            for piece in self._stream(self._cache, message, replies, self._replies):
                said.append(piece)
                yield piece
        finally:
            if said:
                if base is not None and base.message == message and not self.base_is_behind:
                    self._base_replies.append(base.reply)
                self._replies += 1
                self.exchanges.append(Exchange(message, "".join(said)))

    def reply(self, message: str) -> str:
        """Reply to a message; the exchange is part of the conversation."""
        return "".join(self.stream(message))

    def stream_of_base(self, message: str) -> Generator[str]:
        """Reply to a message without the adapter, piece by piece; the conversation does not change.

        The base has a conversation of its own: the same messages, and its own replies to them, which it
        gives first where it has not yet. The adapter is back when the generator ends or is closed.
        `stream` of the same message draws with the same seed.

        Raises:
            ModelError: the model has no adapter, or the message does not fit.
        """
        if not self.has_adapter:
            raise ModelError(f"{self._loaded.name}: has no adapter, so there is nothing to compare")
        self.make_room(message)
        said: list[str] = []
        with without_adapter(self._loaded.model):
            while behind := self.base_is_behind:
                earlier = self.exchanges[-behind].message
                reply = self._stream(
                    self._base_cache, earlier, self._base_replies, self._replies - behind
                )
                self._base_replies.append("".join(reply))
            pieces = self._stream(self._base_cache, message, self._base_replies, self._replies)
            with contextlib.closing(pieces):
                try:
                    for piece in pieces:
                        said.append(piece)
                        yield piece
                finally:
                    self._base_next = Exchange(message, "".join(said)) if said else None

    def reply_of_base(self, message: str) -> str:
        """Reply to a message without the adapter; the conversation does not change."""
        return "".join(self.stream_of_base(message))

    def undo(self) -> Exchange | None:
        """Take back the last exchange and return it; None: there is none."""
        if not self.exchanges:
            return None
        taken = self.exchanges.pop()
        del self._base_replies[len(self.exchanges) :]
        self._base_next = None
        return taken

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.exchanges.clear()
        self._base_replies.clear()
        self._base_next = None

    def _turns(self, replies: Sequence[str], first: int = 0) -> list[dict[str, str]]:
        """Write the conversation from a message on, with these replies to its messages."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for exchange, reply in zip(self.exchanges[first:], replies[first:], strict=False):
            turns.append({"role": "user", "content": exchange.message})
            turns.append({"role": "assistant", "content": reply})
        return turns

    def _fitting(self, message: str, replies: Sequence[str]) -> tuple[int, list[int]]:
        """Encode as much of the conversation, a message after it, as leaves room for a reply.

        Returns:
            How many of the oldest messages are left out, and the prompt.
        """
        limit = self._loaded.row_limit.tokens
        room = min(self.max_tokens, limit // 4)
        for first in range(len(replies) + 1):
            turns = [*self._turns(replies, first), {"role": "user", "content": message}]
            prompt = self._encoder.prompt(turns)
            if len(prompt) + room <= limit:
                break
        return first, prompt

    def _stream(
        self, cache: _Cache, message: str, replies: Sequence[str], number: int
    ) -> Generator[str]:
        """Reply to a message after as many earlier ones as there are replies to.

        Args:
            number: of the reply, from 0, for its seed.
        """
        _, prompt = self._fitting(message, replies)
        pieces = cache.stream(
            prompt,
            max_tokens=min(self.max_tokens, self._loaded.row_limit.tokens - len(prompt)),
            temperature=self.temperature,
            seed=self.seed + number,
        )
        with contextlib.closing(pieces):
            yield from pieces


def chat(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    system: str | None = None,
    temperature: float = 0.0,
    max_tokens: int = MAX_TOKENS,
    seed: int = 42,
    template: TemplateSettings | None = None,
    trust_remote_code: bool = False,
) -> ChatSession:
    """Load a model and begin a conversation with it.

    Args:
        model: a model's folder or hub name, or `smollm2`; or a run folder, RUN/PHASE or adapter folder,
            whose model is recorded.
        adapter: adapter on the model.
        system: system message; None: the one that the run trained most of its rows with; "": none.
        temperature: sampling temperature; 0: greedy, always the likeliest token.
        max_tokens: longest reply, in tokens.
        seed: seed of the sampling.

    Raises:
        ModelError: there is no such model, or it cannot chat.
    """
    name, adapter = find_model_and_adapter(model, adapter)
    loaded = load(name, adapter, template=template, trust_remote_code=trust_remote_code)
    return ChatSession(
        loaded,
        system=choose_system(system, adapter),
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
