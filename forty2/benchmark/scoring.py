"""Scoring of continuations; a beginning shared by several contexts runs through the model once.

If the model's cache cannot be shared, whole rows are scored; the numbers are the same.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from forty2.benchmark.prompts import Row
from forty2.inference.generation import (
    common_prefix_length,
    logits_after,
    prefix_cache,
    supports_batches,
)
from forty2.inference.logprobs import logsumexp, token_logps
from forty2.inference.shared_prefix import SharedPrefix, score_rows
from forty2.model.kv_cache import keeps_plain_keys

BATCH_TOKENS = 1024
"""Tokens of one forward pass, padding included."""
CACHE_TOKENS = 8192
"""Tokens of one batch's keys and values, those of the common beginning included."""
Logits = Callable[[Sequence[Sequence[int]]], mx.array]
"""Function from rows of token ids to the logits of each row's last tokens, (B, last, V)."""


class Scorer:
    """Scores continuations with one model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.empty = SharedPrefix(model) if keeps_plain_keys(model) else None
        """Prefix without tokens; None: the model's cache cannot be shared."""

    @functools.cached_property
    def batched(self) -> bool:
        """Whether rows of unequal length may run together."""
        return self.empty is not None or supports_batches(self.model)

    def after(self, beginning: Sequence[int]) -> ScorerAfter:
        """Return a scorer of contexts that mostly begin with these ids."""
        return ScorerAfter(self, beginning)


class ScorerAfter:
    """Scores continuations of contexts with a common beginning."""

    def __init__(self, scorer: Scorer, beginning: Sequence[int]) -> None:
        self._scorer = scorer
        self._beginning = list(beginning)

    @functools.cached_property
    def _prefix(self) -> SharedPrefix:
        assert self._scorer.empty is not None
        return self._scorer.empty.extend(self._beginning)

    def score(self, questions: Sequence[Sequence[Row]]) -> list[list[float]]:
        """Score the rows of some questions at once; the rows of one question share its context.

        Args:
            questions: rows of each question; up to the end of the shortest context, they have the
                same ids.

        Returns:
            For each question, the summed log-probability of every row's continuation, in nats.
        """
        empty = self._scorer.empty
        if empty is None:
            model = self._scorer.model
            return [[score_rows(model, [row])[0] for row in rows] for rows in questions]
        skip = self._skip_length([row for rows in questions for row in rows])
        prefix = self._prefix if skip else empty
        stems = []
        for rows in questions:
            # the last token before the scored ones is fed again: its output predicts the first
            shared = min(len(row.given) for row in rows) - 1
            rest = [(row.given[shared:], row.scored) for row in rows]
            stems.append((rows[0].given[skip:shared], rest))
        return prefix.score_after(stems)

    def score_choices(
        self, questions: Sequence[Sequence[Row]]
    ) -> Iterator[tuple[list[int], list[list[float]]]]:
        """Score questions whose rows mostly differ in their last token alone.

        Such a question is one forward pass; questions of similar length run together.

        Yields:
            Places in `questions`, and for each the summed log-probabilities of its rows, in nats.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, rows in enumerate(questions):
            if self._scorer.batched and len({(*r.given, *r.scored[:-1]) for r in rows}) == 1:
                groups[self._skip_length(rows), len(rows[0].scored)].append(place)
            else:
                yield [place], [self._score_one(rows)]
        for (skip, last), places in groups.items():
            logits_of = self._logits(skip, last)
            places.sort(key=lambda place: len(questions[place][0].given))
            lengths = [len(questions[place][0].given) for place in places]
            for batch in _batches(lengths, skip):
                chosen = [places[n] for n in batch]
                yield chosen, _last_tokens([questions[place] for place in chosen], logits_of, skip)

    def _score_one(self, rows: Sequence[Row]) -> list[float]:
        """Score rows of any shape: their common beginning runs once, then the rest of each."""
        if self._scorer.empty is None:
            return score_rows(self._scorer.model, rows)
        skip = self._skip_length(rows)
        prefix = self._prefix if skip else self._scorer.empty
        given = [row.given for row in rows]
        shared = min(common_prefix_length(given), min(map(len, given)) - 1)
        rest = [(row.given[shared:], row.scored) for row in rows]
        return prefix.extend(given[0][skip:shared]).score(rest)

    def _logits(self, skip: int, last: int) -> Logits:
        """Return a function that computes the logits of rows without their first `skip` ids."""
        empty = self._scorer.empty
        if empty is not None:
            return functools.partial((self._prefix if skip else empty).logits, last=last)
        cache = prefix_cache(self._scorer.model, self._beginning[:skip])
        return functools.partial(logits_after, self._scorer.model, cache, last=last)

    def _skip_length(self, rows: Sequence[Row]) -> int:
        """Return the number of first ids that need not run again: the whole beginning's, or 0."""
        length = len(self._beginning)
        begins = (row.given[:length] == self._beginning and len(row.given) > length for row in rows)
        return length if all(begins) else 0


def _last_tokens(
    questions: Sequence[Sequence[Row]], logits_of: Logits, skip: int
) -> list[list[float]]:
    """Score questions whose rows differ only in their last token, in one forward pass."""
    scored = len(questions[0][0].scored)
    logits = logits_of([[*rows[0].given[skip:], *rows[0].scored[:-1]] for rows in questions])
    choices = mx.array([[row.scored[-1] for row in rows] for rows in questions])
    picked = mx.take_along_axis(logits[:, -1], choices, axis=-1).astype(mx.float32)
    logps = picked - logsumexp(logits[:, -1])[:, None]
    if scored > 1:
        before = mx.array([rows[0].scored[:-1] for rows in questions])
        logps += token_logps(logits[:, :-1], before).sum(axis=1, keepdims=True)
    return cast(list[list[float]], logps.tolist())


def _batches(lengths: Sequence[int], skipped: int) -> Iterator[list[int]]:
    """Divide rows into batches of consecutive places.

    Args:
        lengths: tokens of each row.
        skipped: how many of the first tokens need not run.
    """
    batch: list[int] = []
    for place, length in enumerate(lengths):
        size = len(batch) + 1
        if batch and (size * (length - skipped) > BATCH_TOKENS or size * length > CACHE_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
