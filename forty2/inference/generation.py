"""Replies of a model to prompts: many in a batch, or one as it is generated.

Batches use mlx-lm's batch generator. The common beginning of all prompts runs through the model
once, and a new prompt enters the batch as soon as a place is free.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.errors import BenchmarkError
from forty2.model.adapter import choose_system
from forty2.model.base_model import find_model_and_adapter
from forty2.model.chat_template import TemplateSettings
from forty2.model.loading import LoadedModel, load
from forty2.model.surgery import sample_ids, scores_agree
from forty2.progress import Progress, bars, draws_bars, silent
from forty2.text.encoder import Encoder

if TYPE_CHECKING:
    from mlx_lm.generate import BatchGenerator, GenerationBatch
    from mlx_lm.tokenizer_utils import TokenizerWrapper

WORTH_SHARING = 8
"""Tokens; a forward pass of its own costs more than it saves for a shorter common beginning."""
BATCH_SIZE = 16
"""Replies generated at once."""
PREFILL_BATCH_SIZE = 8
"""Prompts read at once."""
_BEFORE = ":"
"""Text that stands before a reply while it is decoded."""


# --- prefixes -------------------------------------------------------------------------------------


def common_prefix_length(rows: Sequence[list[int]]) -> int:
    """Count the ids that all rows begin with."""
    pairs = zip(min(rows), max(rows), strict=False)  # all rows lie between these two
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def prefix_cache(model: nn.Module, ids: Sequence[int]) -> list[object]:
    """Run a prefix and return mlx-lm's cache of it, one entry for each layer.

    Batches copy the cache, so any number of them can follow the same prefix.
    """
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    if ids:
        _ = model(mx.array([list(ids)]), cache=cache)  # lazy: the head is not computed
        mx.eval([layer.state for layer in cache])
    return list(cache)


def logits_after(
    model: nn.Module, cache: Sequence[object], rows: Sequence[Sequence[int]], last: int
) -> mx.array:
    """Compute the logits of each row's last tokens after a prefix, rows of any lengths in one batch.

    Args:
        cache: cache of the prefix, from `prefix_cache`.
        rows: ids of B rows, at least `last` each.
        last: number of tokens at the end of each row for which the head runs.

    Returns:
        (B, last, V)
    """
    from mlx_lm.generate import PromptProcessingBatch

    batch = PromptProcessingBatch(model, list(range(len(rows))), [cache] * len(rows))
    batch.prompt([list(row[:-last]) for row in rows])
    ends = mx.array([list(row[-last:]) for row in rows])
    logits: mx.array = model(ends, cache=batch.prompt_cache)
    return logits


def supports_batches(model: nn.Module) -> bool:
    """Return whether rows of unequal length can run together: tried, not guessed.

    Some of mlx-lm's models fail with a mask for each row, or take it for a mask for each head.
    """
    ids = np.asarray(sample_ids(model, 6)).tolist()
    rows = (ids[:4], ids[4:])
    try:
        together = logits_after(model, prefix_cache(model, []), rows, 1)[:, 0]
        alone = [model(mx.array([row]))[0, -1] for row in rows]
        return scores_agree(model, together, mx.stack(alone))
    except (ValueError, TypeError, AttributeError, IndexError):
        return False


# --- replies --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply to a prompt."""

    text: str
    """Text up to the first stop string, without control tokens."""
    tokens: int
    """Number of tokens generated, including a stop string and tokens after it."""
    stopped: bool
    """Whether a stop string or an end token ended it, not the limit of tokens."""
    ids: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """All ids generated, including control tokens and a stop string, but not the end token."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings for drawing tokens; the temperature is applied before top_p, as in transformers."""

    temperature: float
    top_p: float = 1.0
    """Total probability of the likeliest tokens to draw from, 0 to 1."""


class _Running(NamedTuple):
    """A reply that is being generated."""

    number: int
    """Index of the prompt."""
    ids: list[int]


Message = Mapping[str, Any]
Question = str | Sequence[Message]
"""The user's message, or the messages of a conversation, the user's last."""


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    model: str | Path,
    prompts: str,
    *,
    adapter: str | Path | None = ...,
    system: str | None = ...,
    max_tokens: int = ...,
    temperature: float = ...,
    seed: int = ...,
    template: TemplateSettings | None = ...,
    trust_remote_code: bool = ...,
    progress: Progress = ...,
) -> Reply: ...


@overload
def generate(
    model: str | Path,
    prompts: Sequence[Question],
    *,
    adapter: str | Path | None = ...,
    system: str | None = ...,
    max_tokens: int = ...,
    temperature: float = ...,
    seed: int = ...,
    template: TemplateSettings | None = ...,
    trust_remote_code: bool = ...,
    progress: Progress = ...,
) -> list[Reply]: ...


@draws_bars
def generate(
    model: str | Path,
    prompts: str | Sequence[Question],
    *,
    adapter: str | Path | None = None,
    system: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 42,
    template: TemplateSettings | None = None,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> Reply | list[Reply]:
    """Load a model and answer a prompt, or each prompt of a list.

    Args:
        model: a model's folder or hub name, or `smollm2`; or a run folder, RUN/PHASE or adapter folder,
            whose model is recorded.
        prompts: the user's message; or a list of prompts, each a message or a list of messages with
            `role` and `content`.
        adapter: adapter on the model.
        system: system message before prompts that are texts; None: the one that the run trained most of
            its rows with; "": none.
        max_tokens: longest reply, in tokens.
        temperature: sampling temperature; 0: greedy, always the likeliest token.
        seed: seed of the first reply's sampling; the next prompt takes the next number.

    Returns:
        The reply; for a list of prompts, their replies in its order.

    Raises:
        ModelError: there is no such model, it cannot chat, or a prompt does not fit its context.
    """
    name, adapter = find_model_and_adapter(model, adapter)
    loaded = load(name, adapter, template=template, trust_remote_code=trust_remote_code)
    system = choose_system(system, adapter)
    encoder = Encoder(loaded.tokenizer)
    asked = [prompts] if isinstance(prompts, str) else prompts
    replies = generate_replies(
        loaded,
        [encoder.prompt(_messages(prompt, system)) for prompt in asked],
        max_tokens=max_tokens,
        sampling=Sampling(temperature) if temperature else None,
        seeds=range(seed, seed + len(asked)),
        progress=progress,
    )
    found = [reply for _, reply in sorted(replies, key=lambda numbered: numbered[0])]
    return found[0] if isinstance(prompts, str) else found


def _messages(prompt: Question, system: str | None) -> Sequence[Message]:
    """Write a prompt as messages; a text gets the system message."""
    if not isinstance(prompt, str):
        return prompt
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]


def generate_replies(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    *,
    stop: Sequence[str] = (),
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    seeds: Sequence[int] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> Iterator[tuple[int, Reply]]:
    """Answer prompts, the longest first; yield each one's index and reply when it is done.

    A reply depends only on its own prompt and seed, not on the others in the batch.

    Args:
        prompts: token ids of each prompt.
        stop: strings that end a reply.
        max_tokens: most tokens of a reply.
        sampling: how tokens are drawn; None: greedy, always the likeliest token.
        seeds: a seed for each prompt, when sampling.
        batch_size: prompts that run together, if the model supports batches.
        progress: called after each reply, with the stage "answers".

    Raises:
        BenchmarkError: the model's scores are not finite.
        ModelError: a prompt leaves no room for a reply in the model's context.
    """
    if not prompts:
        return
    _refuse_long(prompts, loaded)
    if not supports_batches(loaded.model):
        batch_size = 1
    ending = _Ending(loaded.tokenizer, stop)
    prefixes = _Prefixes(loaded.model, prompts)
    waiting = deque(sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), prompts[n])))
    running: dict[int, _Running] = {}  # by the generator's number
    done = 0
    generator = _make_generator(loaded, batch_size)
    try:
        while waiting or running:
            while waiting and len(running) < batch_size:
                number = waiting.popleft()
                cache, rest = prefixes.split(prompts[number])
                samplers = [_Sampler(sampling, seeds[number])] if sampling is not None else None
                (uid,) = generator.insert([rest], [max_tokens], caches=[cache], samplers=samplers)
                running[uid] = _Running(number, [])
            for response in generator.next_generated():
                reply = _take_token(response, running[response.uid], ending)
                if reply is None:
                    continue
                if response.finish_reason is None:
                    generator.remove([response.uid])
                done += 1
                progress("answers", done, len(prompts), {})
                yield running.pop(response.uid).number, reply
    finally:
        generator.close()


def _refuse_long(prompts: Sequence[list[int]], loaded: LoadedModel) -> None:
    """Refuse prompts that leave no room for a reply in the model's context."""
    limit = loaded.row_limit
    for number, prompt in enumerate(prompts, 1):
        limit.refuse(len(prompt) + 1, f"prompt {number} and a reply")


def _make_generator(loaded: LoadedModel, batch_size: int) -> BatchGenerator:
    """Make mlx-lm's generator of replies in batches."""
    from mlx_lm.generate import BatchGenerator

    return BatchGenerator(
        loaded.model,
        stop_tokens=[[token] for token in loaded.tokenizer.eos_token_ids],
        completion_batch_size=batch_size,
        prefill_batch_size=min(batch_size, PREFILL_BATCH_SIZE),
    )


def _take_token(
    response: GenerationBatch.Response, running: _Running, ending: _Ending
) -> Reply | None:
    """Add a generated token to its reply; return the reply if that ends it."""
    number, ids = running
    if not ids:
        _check_finite(number, response.logprobs[response.token].item())
    ended = response.finish_reason == "stop"
    if not ended:
        ids.append(response.token)
    if response.finish_reason is None and not ending.is_reached(ids):
        return None
    text, cut = ending.cut(ids)
    return Reply(text, len(ids), ended or cut, tuple(ids))


def stream_reply(
    loaded: LoadedModel, prompt: Sequence[int], *, max_tokens: int, temperature: float, seed: int
) -> Iterator[str]:
    """Generate one reply and yield its text piece by piece.

    Args:
        prompt: token ids.
        max_tokens: most tokens of the reply.
        temperature: sampling temperature; 0: greedy, always the likeliest token.

    Raises:
        ModelError: the prompt leaves no room for a reply in the model's context.
    """
    from mlx_lm.generate import stream_generate
    from mlx_lm.sample_utils import make_sampler

    limit = loaded.row_limit
    limit.refuse(len(prompt) + 1, "the prompt and a reply")
    max_tokens = min(max_tokens, limit.tokens - len(prompt))
    mx.random.seed(seed)
    sampler = make_sampler(temp=temperature)
    for piece in stream_generate(
        loaded.model, loaded.tokenizer, list(prompt), max_tokens=max_tokens, sampler=sampler
    ):
        yield piece.text


def _check_finite(number: int, logprob: float) -> None:
    """Refuse a model whose first token has a log-probability that is not finite."""
    if not math.isfinite(logprob):
        raise BenchmarkError(
            f"prompt {number + 1}: the model's scores are not finite; it is broken (weights, adapter "
            "or precision)"
        )


class _Ending:
    """Finds where a reply ends: at a stop string, searched for in its text, not in its tokens."""

    def __init__(self, tokenizer: TokenizerWrapper, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        # lm-evaluation-harness also stops at the spelling of the end token.
        self._stop = list(dict.fromkeys([*stop, tokenizer.decode([tokenizer.eos_token_id])]))
        # Some tokenizers drop a space at the beginning of what they decode.
        self._before = list(tokenizer.encode(_BEFORE, add_special_tokens=False))
        self._skip = len(tokenizer.decode(self._before))
        # No token is shorter than a byte. The first token of a text may decode differently, so a few
        # more are searched.
        self._tail = max(len(term.encode()) for term in self._stop) + 3

    def is_reached(self, ids: Sequence[int]) -> bool:
        """Return whether the text of these ids holds a stop string; the last ids are searched first."""
        return self._has_stop(ids[-self._tail :]) and self._has_stop(ids)

    def cut(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Return the text before the first stop string, and whether there was one."""
        whole = text = self._text(ids)
        for term in self._stop:
            text = text.split(term, 1)[0]
        return text, text != whole

    def _has_stop(self, ids: Sequence[int]) -> bool:
        text = self._text(ids)
        return any(term in text for term in self._stop)

    def _text(self, ids: Sequence[int]) -> str:
        whole = self._tokenizer.decode([*self._before, *ids], skip_special_tokens=True)
        return str(whole)[self._skip :]


class _Prefixes:
    """Caches of the beginnings that prompts share.

    The common beginning of all prompts runs once, and so does a prompt that comes several times.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[list[int]]) -> None:
        self._model = model
        self._times = Counter(map(tuple, prompts))
        length = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
        self._length = length if length >= WORTH_SHARING and len(self._times) > 1 else 0
        self._common = prefix_cache(model, prompts[0][: self._length])
        self._last: tuple[tuple[int, ...], list[object]] = ((), self._common)

    def split(self, prompt: Sequence[int]) -> tuple[list[object], list[int]]:
        """Split a prompt into a cache of its beginning and the ids that have not run yet."""
        if self._times[tuple(prompt)] == 1 or len(prompt) == 1:
            return self._common, list(prompt[self._length :])
        if self._last[0] != tuple(prompt):  # equal prompts come one after the other
            self._last = (tuple(prompt), prefix_cache(self._model, prompt[:-1]))
        return self._last[1], list(prompt[-1:])


class _Sampler:
    """Draws one reply's tokens, with random numbers of its own."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling = sampling
        self._key = mx.random.key(seed)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Draw a token (1,) from log-probabilities (1, V)."""
        from mlx_lm.sample_utils import apply_top_p

        self._key, key = mx.random.split(self._key)
        logits = logprobs.astype(mx.float32) / self._sampling.temperature
        if self._sampling.top_p < 1:
            logits = apply_top_p(logits - mx.logsumexp(logits), self._sampling.top_p)
        return mx.random.categorical(logits, key=key)
