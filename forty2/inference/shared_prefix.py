"""Scoring of rows that follow a shared prefix, which the model computes only once.

Axes: B sequences, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.inference.logprobs import Shortcuts, run_model, supported_shortcuts, target_logps
from forty2.inference.padding import batch_tokens, group_by_length, pad
from forty2.model.kv_cache import CacheLayer, KeysAndValues
from forty2.model.surgery import blocks, head

ScoredRow = tuple[Sequence[int], Sequence[int]]
"""Token ids: at least one that is given, and those after them that are scored."""


def score_rows(
    model: nn.Module,
    rows: Sequence[ScoredRow],
    *,
    cache: Sequence[CacheLayer] | None = None,
    split_head: bool = False,
) -> list[float]:
    """Score rows in one right-padded batch: log-probabilities in nats, summed in float64.

    Args:
        cache: keys and values of the tokens before every row.
        split_head: whether `can_split` holds for the model.

    Returns:
        For each row, the summed log-probability of its scored tokens, in nats.
    """
    ids = pad([[*given, *scored] for given, scored in rows])
    width = ids.shape[1] - 1
    where: list[int] = []
    for n, (given, scored) in enumerate(rows):
        first = n * width + len(given) - 1
        where += range(first, first + len(scored))
    inputs, targets = mx.array(ids[:, :-1]), mx.array(ids[:, 1:])
    shortcuts = Shortcuts(split_head=split_head)
    output = run_model(model, inputs, shortcuts, cache=cache)
    logps = target_logps(model, output, targets, mx.array(where), shortcuts)
    for layer in cache or ():
        layer.state = None  # not read again: a block's keys can be freed while the next block runs
    ends = np.cumsum([len(scored) for _, scored in rows])[:-1]
    return [math.fsum(part.tolist()) for part in np.split(np.asarray(logps), ends)]


class SharedPrefix:
    """A token prefix that runs through the model once and that many continuations follow.

    `prefix.extend(ids)` returns a longer prefix, `prefix.score(rows)` scores rows that follow it, and
    `prefix.score_after(stems)` scores rows that follow one of several longer prefixes. The class works
    with models for which `keeps_plain_keys` holds.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[KeysAndValues | None] | None = None,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        """Keep the keys and values of a prefix.

        Args:
            states: keys and values of the prefix for each layer, each (1, H, P, D); None: the prefix
                is empty.
            shortcuts: shortcuts that the model supports; None: find out by trying.
        """
        self._model = model
        self._states = states if states is not None else [None] * len(blocks(model))
        self._shortcuts = supported_shortcuts(model) if shortcuts is None else shortcuts

    def extend(self, ids: Sequence[int]) -> SharedPrefix:
        """Return this prefix with `ids` after it."""
        if not ids:
            return self
        layers = [CacheLayer(state) for state in self._states]
        _ = self._model(mx.array([list(ids)]), cache=layers)  # lazy: the head is not computed
        states = [layer.keys_and_values() for layer in layers]
        mx.eval(states)
        return SharedPrefix(self._model, states, self._shortcuts)

    def score(self, rows: Sequence[ScoredRow]) -> list[float]:
        """Score rows after this prefix, as `score_rows`."""
        return score_rows(
            self._model, rows, cache=self._cache(), split_head=self._shortcuts.split_head
        )

    def logits(self, rows: Sequence[Sequence[int]], last: int) -> mx.array:
        """Compute the logits of each row's last tokens after this prefix, in one batch.

        Args:
            rows: ids of B rows of any lengths, at least `last` each.
            last: number of tokens at the end of each row.

        Returns:
            (B, last, V)
        """
        ends = mx.array([len(row) for row in rows])
        output = run_model(self._model, mx.array(pad(rows)), self._shortcuts, cache=self._cache())
        where = ends[:, None] - last + mx.arange(last)
        output = mx.take_along_axis(output, where[..., None], axis=1)
        return head(self._model, output) if self._shortcuts.split_head else output

    def score_after(
        self, stems: Sequence[tuple[Sequence[int], Sequence[ScoredRow]]]
    ) -> list[list[float]]:
        """Score rows that follow stems, which follow this prefix; all stems run at once.

        Args:
            stems: ids of each stem, and the rows that follow it.

        Returns:
            For each stem, the scores of its rows.
        """
        rows = [row for _, following in stems for row in following]
        if not (self._shortcuts.shared_prompts and all(ids for ids, _ in stems)):
            return [self.extend(ids).score(following) for ids, following in stems]
        lengths = np.array([len(ids) for ids, _ in stems])
        layers = self._cache()
        run_model(
            self._model, mx.array(pad([ids for ids, _ in stems])), self._shortcuts, cache=layers
        )
        states = [layer.keys_and_values() for layer in layers]
        mx.eval(states)
        stem = np.repeat(np.arange(len(stems)), [len(following) for _, following in stems])
        scores = np.zeros(len(rows))
        widths = [len(given) + len(scored) for given, scored in rows]
        for group in group_by_length(widths, batch_tokens()):
            which, real = mx.array(stem[group]), mx.array(lengths[stem[group]])
            cache = [
                CacheLayer(state, real, rows=which, common=common)
                for state, common in zip(states, self._states, strict=True)
            ]
            scores[group] = score_rows(
                self._model,
                [rows[n] for n in group],
                cache=cache,
                split_head=self._shortcuts.split_head,
            )
        ends = np.cumsum([len(following) for _, following in stems])[:-1]
        return [part.tolist() for part in np.split(scores, ends)]

    def _cache(self) -> list[CacheLayer]:
        """Make a cache for a batch, all of whose rows follow this prefix."""
        return [CacheLayer(common=state) for state in self._states]
