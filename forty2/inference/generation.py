"""Answers of a model to many prompts, for benchmarks.

They come from mlx-lm's batch generator: what all prompts begin with runs through the model once,
and a new prompt takes a place in the batch as soon as one is free.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from forty2.errors import BenchmarkError
from forty2.model.loading import LoadedModel
from forty2.model.surgery import sample_ids, scores_agree
from forty2.progress import Progress, silent

WORTH_SHARING = 8  # tokens: a shorter common beginning is not worth a run of its own
BATCH_SIZE = 16


# --- prefixes -------------------------------------------------------------------------------------


def common_prefix_length(rows: Sequence[list[int]]) -> int:
    """How many ids all rows begin with alike."""
    pairs = zip(min(rows), max(rows), strict=False)  # what the outermost share, all share
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def prefix_cache(model: nn.Module, ids: Sequence[int]) -> list[Any]:
    """mlx-lm's cache of a prefix, one layer each. Batches copy it: any number may follow it."""
    from mlx_lm.models.cache import make_prompt_cache

    cache: list[Any] = make_prompt_cache(model)
    if ids:
        _ = model(mx.array([list(ids)]), cache=cache)  # lazy: without the head
        mx.eval([layer.state for layer in cache])
    return cache


def logits_after(
    model: nn.Module, cache: list[Any], rows: Sequence[Sequence[int]], last: int
) -> mx.array:
    """Logits of each row's last tokens after a prefix, rows of any lengths in one batch.

    Args:
        cache: what `prefix_cache` gave.
        rows: B of them, at least `last` ids each; the head does not see those before.

    Returns:
        (B, last, V)
    """
    from mlx_lm.generate import PromptProcessingBatch

    batch = PromptProcessingBatch(model, list(range(len(rows))), [cache] * len(rows))
    batch.prompt([list(row[:-last]) for row in rows])
    ends = mx.array([list(row[-last:]) for row in rows])
    return cast(mx.array, cast(Any, model)(ends, cache=batch.prompt_cache))


def supports_batches(model: nn.Module) -> bool:
    """Whether rows of unequal length may run together: tried, not guessed.

    Some of mlx-lm's models fail at a mask for each row, or take it for one of each head.
    """
    ids: Any = sample_ids(model, 6).tolist()
    rows = (ids[:4], ids[4:])
    try:
        together = logits_after(model, prefix_cache(model, []), rows, 1)[:, 0]
        alone = [cast(Any, model)(mx.array([list(row)]))[0, -1] for row in rows]
        return scores_agree(model, together, mx.stack(alone))
    except (ValueError, TypeError, AttributeError, IndexError):
        return False


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said."""

    text: str
    """Cut at the first stop string; without it, without the token that ends the text, and without
    other control tokens."""
    tokens: int
    """Generated, the stop string's and those behind it included."""
    stopped: bool
    """Ended by a stop string or an end token. False: by the limit of tokens."""
    ids: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """All that was generated, control tokens and stop string included, but for the end token."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: the temperature first, then the nucleus, as transformers does it."""

    temperature: float
    top_p: float = 1.0


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
    stage: str = "answers",
) -> Iterator[tuple[int, Reply]]:
    """Answer prompts, the longest first; yields each one's number and answer as it is done.

    An answer depends on its own prompt and seed alone, not on what is in the batch beside it.

    Args:
        prompts: token ids.
        stop: strings that end an answer.
        sampling: None: greedy, the likeliest token each time.
        seeds: one for each prompt, when sampling.
        batch_size: prompts that run together, where the model takes batches.
        progress: told of each answer under the name `stage`.

    Raises:
        BenchmarkError: the model's scores are not finite.
    """
    from mlx_lm.generate import BatchGenerator

    if not prompts:
        return
    if not supports_batches(loaded.model):
        batch_size = 1
    tokenizer = loaded.tokenizer
    ending = _Ending(tokenizer, stop)
    prefixes = _Prefixes(loaded.model, prompts)
    waiting = deque(sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), prompts[n])))
    numbers: dict[int, int] = {}  # of the prompts in the batch, by the generator's own
    said: dict[int, list[int]] = {}
    done = 0
    generator = BatchGenerator(
        loaded.model,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=batch_size,
        prefill_batch_size=min(batch_size, 8),
    )
    try:
        while waiting or numbers:
            while waiting and len(numbers) < batch_size:
                number = waiting.popleft()
                cache, rest = prefixes(prompts[number])
                drawn = [_Draw(sampling, seeds[number])] if sampling is not None else None
                (uid,) = generator.insert([rest], [max_tokens], caches=[cache], samplers=drawn)
                numbers[uid], said[uid] = number, []
            for response in generator.next_generated():
                uid, ids = response.uid, said[response.uid]
                if not ids and not math.isfinite(response.logprobs[response.token].item()):
                    raise BenchmarkError(
                        f"prompt {numbers[uid] + 1}: the model's scores are not finite; it is "
                        "broken (weights, adapter or precision)"
                    )
                ended = response.finish_reason == "stop"
                if not ended:
                    ids.append(response.token)
                if response.finish_reason is None:
                    if not ending.reached(ids):
                        continue
                    generator.remove([uid])
                text, cut = ending.cut(ids)
                del said[uid]
                done += 1
                progress(stage, done, len(prompts), {})
                yield numbers.pop(uid), Reply(text, len(ids), ended or cut, tuple(ids))
    finally:
        generator.close()


class _Ending:
    """Where an answer ends: at a stop string, searched for in its text, not in its tokens."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        # the harness also stops where the end token is spelled out
        self._stop = list(dict.fromkeys([*stop, tokenizer.decode([tokenizer.eos_token_id])]))
        # no token is shorter than a byte; a few more, as a text's first token may decode otherwise
        self._tail = max(len(term.encode()) for term in self._stop) + 3

    def reached(self, ids: Sequence[int]) -> bool:
        return self._found(ids[-self._tail :]) and self._found(ids)

    def cut(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text before the first stop string, and whether there was one."""
        whole = text = self._text(ids)
        for term in self._stop:
            text = text.split(term, 1)[0]
        return text, text != whole

    def _found(self, ids: Sequence[int]) -> bool:
        text = self._text(ids)
        return any(term in text for term in self._stop)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


class _Prefixes:
    """Splits prompts into a cache of what has run already and the ids that have not.

    What all prompts have in common runs once, and so does a prompt that comes several times.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[list[int]]) -> None:
        self._model = model
        self._times = Counter(map(tuple, prompts))
        length = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
        self._length = length if length >= WORTH_SHARING and len(self._times) > 1 else 0
        self._common = prefix_cache(model, prompts[0][: self._length])
        self._last: tuple[tuple[int, ...], list[Any]] = ((), self._common)

    def __call__(self, prompt: Sequence[int]) -> tuple[list[Any], list[int]]:
        if self._times[tuple(prompt)] == 1 or len(prompt) == 1:
            return self._common, list(prompt[self._length :])
        if self._last[0] != tuple(prompt):  # equal ones come one after the other
            self._last = (tuple(prompt), prefix_cache(self._model, prompt[:-1]))
        return self._last[1], list(prompt[-1:])


class _Draw:
    """Draws one answer's tokens, with random numbers of its own."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling = sampling
        self._key = mx.random.key(seed)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Logarithms of probabilities (1, V) to a token (1,)."""
        from mlx_lm.sample_utils import apply_top_p

        self._key, key = mx.random.split(self._key)
        logits = logprobs.astype(mx.float32) / self._sampling.temperature
        if self._sampling.top_p < 1:
            logits = apply_top_p(logits - mx.logsumexp(logits), self._sampling.top_p)
        return mx.random.categorical(logits, key=key)
