"""The thread that writes replies: mlx-lm's response generator, with prompts encoded as forty2 encodes them.

Requests without a seed run in batches; those with a seed run one after another, so that a seed gives
the same reply again, the one of `forty2 generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from queue import Queue
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import LRUPromptCache, can_trim_prompt_cache, trim_prompt_cache
from mlx_lm.server import (
    CompletionRequest,
    GenerationArguments,
    GenerationContext,
    Response,
    ResponseGenerator,
)
from mlx_lm.tokenizer_utils import TokenizerWrapper

from forty2.errors import Forty2Error
from forty2.serve.models import ServedModel, ServedModels
from forty2.serve.request_body import Refused

_CACHED_PROMPTS = 10
_CACHED_BYTES = 2**30
"""Most memory of the prompts that are kept, beside those that are being answered."""


class Stopped(Exception):
    """A request is not wanted any more: its client has gone, or the server ends."""


class Replies(ResponseGenerator):  # type: ignore[misc]  # mlx-lm has no types
    """Writes replies of the served models in a thread of its own."""

    model_provider: ServedModels

    def __init__(self, models: ServedModels) -> None:
        self._running: dict[int, GenerationContext] = {}
        super().__init__(models, _ReadPrompts(_CACHED_PROMPTS, _CACHED_BYTES))

    @property
    def ending(self) -> bool:
        """Whether `end` was called."""
        return bool(self._stop)

    def generate(
        self,
        request: CompletionRequest,
        generation_args: GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[GenerationContext, Iterator[Response]]:
        """Ask for a reply; return its context and, as they come, its tokens.

        Raises:
            Refused: the prompt is empty, too long or refused by the chat template.
        """
        context, responses = super().generate(request, generation_args, progress_callback)
        return context, self._noted(context, responses)

    def _noted(
        self, context: GenerationContext, responses: Iterator[Response]
    ) -> Generator[Response]:
        """Yield responses, and remember the context meanwhile, so that `end` can stop it."""
        self._running[id(context)] = context
        try:
            yield from responses
        finally:
            del self._running[id(context)]

    def end(self) -> None:
        """Stop all replies, and wait for the thread to end.

        It cannot stop while it reads a fused model's weights, or within 2,048 tokens of a prompt.
        """
        self._stop = True
        while self._generation_thread.is_alive():
            for context in list(self._running.values()):
                context.stop()
            self._generation_thread.join(0.05)

    def _generate(self) -> None:
        """Answer until the end, then give back the thread's streams, as mlx asks of threads that end."""
        super()._generate()
        mx.synchronize()
        mx.clear_streams()

    def _tokenize(
        self, tokenizer: TokenizerWrapper, request: CompletionRequest, args: GenerationArguments
    ) -> tuple[list[int], list[list[int]], list[str], str, None]:
        """Encode a prompt as `forty2 generate` does, in mlx-lm's form, and bound what is asked for.

        All that can fail with a request fails here: later, it would end the thread.
        """
        served = self.model_provider.current
        try:
            prompt = _encode(served, request)
            served.limit.refuse(len(prompt) + 1, "the prompt and a reply")
        except Forty2Error as error:
            raise Refused(400, str(error)) from error
        args.max_tokens = min(args.max_tokens, served.limit.tokens - len(prompt))
        if args.sampling.top_k >= served.vocabulary:  # it leaves no token out
            args.sampling.top_k = 0
        self._make_state_machine(self.model_provider.model_key, tokenizer, args.stop_words)
        return prompt, [prompt], ["assistant"], _first_state(tokenizer, prompt), None

    def _serve_single(self, request: tuple[Any, ...], stream: object) -> None:
        """Answer one request outside of batches; also reading its prompt can be stopped."""
        responses, *rest = request
        super()._serve_single((_Stoppable(responses, self), *rest), stream)


class _ReadPrompts(LRUPromptCache):  # type: ignore[misc]  # mlx-lm has no types
    """Key-value caches of prompts that were read, by model and tokens."""

    def fetch_nearest_cache(
        self, model: object, tokens: list[int]
    ) -> tuple[list[Any] | None, list[int]]:
        """Return the cache of the longest known beginning, and the tokens after it: at least one.

        mlx-lm returns none for a prompt that is known as a whole, and its batches cannot begin with
        none: such a prompt is an earlier one with its reply.
        """
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if cache is None or rest:
            return cache, rest
        if not can_trim_prompt_cache(cache):
            return None, tokens
        trim_prompt_cache(cache, 1)
        return cache, tokens[-1:]


class _Stoppable:
    """The queue of a reply, in the place of which mlx-lm reports how much of the prompt is read."""

    def __init__(self, responses: Queue[object], replies: Replies) -> None:
        self._responses = responses
        self._replies = replies
        self._context: GenerationContext | None = None

    def put(self, response: object) -> None:
        """Pass on a response.

        Raises:
            Stopped: the prompt is still being read, and nobody waits for the reply.
        """
        if isinstance(response, GenerationContext):
            self._context = response
        unwanted = self._context is not None and self._context._should_stop
        if isinstance(response, tuple) and (unwanted or self._replies.ending):
            raise Stopped
        self._responses.put(response)


def _encode(served: ServedModel, request: CompletionRequest) -> list[int]:
    """Encode a prompt: a chat without the control tokens that its texts spell, or a text as it is."""
    if request.request_type != "chat":
        prompt: list[int] = served.loaded.tokenizer.encode(request.prompt)
        if not prompt:
            raise Refused(400, "prompt: holds no token", param="prompt")
        return prompt
    if served.encoder is None:
        raise Refused(
            400, "this model has no chat template: use /v1/completions, or serve it with one"
        )
    return served.encoder.prompt(request.messages, request.tools or ())


def _first_state(tokenizer: TokenizerWrapper, prompt: list[int]) -> str:
    """Return whether a reply begins within a thought, as mlx-lm names it."""
    state = "normal"
    if tokenizer.has_thinking:
        opened, closed = tokenizer.rfind_think_start(prompt), tokenizer.rfind_think_end(prompt)
        state = "reasoning" if opened > closed else "normal"
    return tokenizer.response_initial_state or state
