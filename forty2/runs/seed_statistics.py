"""Statistics over seeds and items: intervals of means and changes, and what they say of leaks.

Scores are arrays (S, n): of S seeds, each on the same n items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from forty2.benchmark.compare import range_of, read_scores
from forty2.benchmark.stats import (
    LEVEL,
    RESAMPLES,
    SEED,
    Interval,
    Values,
    Verdict,
    verdict,
    widened,
)

KL = "KL"
Says = Literal["holds", "does not hold", "cannot be told"]
_CHUNK = 1000  # resamples drawn at a time, to bound memory


class Score(NamedTuple):
    """A variant's mean of one metric."""

    value: float
    low: float
    """Lower end of the 95% interval over seeds and items."""
    high: float
    n: int
    """Items."""


class Change(NamedTuple):
    """The paired change of one metric from one variant to another."""

    difference: float
    low: float
    """Lower end of the 95% interval over seeds and items."""
    high: float
    n: int
    """Items."""
    verdict: Verdict


class Insight(NamedTuple):
    """Whether SFT alone leaks more than the base, and DPO brings leaks back down."""

    says: Says
    sentence: str


def scores_of(stage: Mapping[str, Any]) -> dict[str, Values]:
    """A stage's scores item by item, (n,) by metric; of metrics with two items or more.

    Higher is better, except for KL, from the base: its items are the probes, each weighing as many
    places as it has, as texts weigh in `log p of texts`.
    """
    scores = {
        name: np.array(list(values.values()), np.float64)
        for name, values in read_scores(stage, f"stage {stage['stage']}").metrics.items()
    }
    probes = [item["kl"] for item in stage["divergence"]["items"]]
    places = sum(map(len, probes)) / len(probes)
    scores[KL] = np.array([math.fsum(kl) / places for kl in probes])
    return {name: values for name, values in scores.items() if len(values) > 1}


def interval(values: Values, least: float = -math.inf, most: float = math.inf) -> Interval:
    """95% interval of a mean, (S, n): of S seeds, each on the same n items.

    Args:
        least, most: the mean cannot lie beyond them, nor does the interval.

    Both are samples: other seeds and other questions would have given another mean. The items' part
    is a bootstrap of the items' means over seeds. The seeds' part is what their means differ by
    beyond what the items explain, as a Student t of S - 1 degrees: with three seeds their spread is
    itself hardly known. The two are added draw by draw.

    In simulations with three seeds and 100 items it covers the truth in 93 to 98% of cases. Drawing
    seeds and then items within each, the usual bootstrap, covers it in 79 to 87% where questions
    differ as much as answers do: it takes the seeds' answers to one question for independent, and
    three seeds for all there are.
    """
    seeds, items = values.shape
    by_seed, by_item = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_item + values.mean()
    explained = float((rest**2).sum()) / ((seeds - 1) * (items - 1)) / items
    between = max(0.0, float(by_seed.var(ddof=1)) - explained) / seeds
    rng = np.random.default_rng(SEED)
    draws = np.concatenate(
        [
            by_item[rng.integers(items, size=(min(_CHUNK, RESAMPLES - done), items))].mean(axis=1)
            for done in range(0, RESAMPLES, _CHUNK)
        ]
    )
    draws += math.sqrt(between) * rng.standard_t(seeds - 1, size=RESAMPLES)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = widened(Interval(float(low), float(high)), float(values.mean()), items, least, most)
    return Interval(max(least, found.low), min(most, found.high))


def _range(metric: str) -> tuple[float, float]:
    """What a metric can be."""
    return (0.0, math.inf) if metric == KL else range_of(metric)


def score_of(metric: str, values: Values) -> Score:
    """The mean of a metric's scores (S, n) with its interval."""
    return Score(float(values.mean()), *interval(values, *_range(metric)), values.shape[1])


def changes_of(
    before: Mapping[str, Values], after: Mapping[str, Values], margin: float, *, same: bool
) -> dict[str, Change]:
    """Paired changes by metric, from scores (S, n) of the same seeds and items.

    Args:
        margin: largest loss that still counts as no tax.
        same: after is, for all that was measured, before; then the verdict is no change.
    """
    changes = {}
    for metric in before:
        if metric == KL:  # from the base: neither gain nor loss
            continue
        difference = after[metric] - before[metric]
        least, most = _range(metric)
        found = interval(difference, least - most, most - least)
        changes[metric] = Change(
            float(difference.mean()),
            *found,
            difference.shape[1],
            "no change" if same else verdict(found, margin, difference.shape[1]),
        )
    return changes


def insight(base: Values, sft: Values, dpo: Values) -> Insight:
    """Whether SFT alone leaks more than the base, and DPO brings leaks back down.

    Both must be so for it to hold, each by its paired interval; it does not hold as soon as one
    interval lies on the other side of zero. Where no answer changed there is nothing to tell by.

    Args:
        base, sft, dpo: leaks (S, n) of plain factual prompts: of the base, after SFT, after DPO.
    """
    rise, fall = sft - base, dpo - sft
    up, down = interval(rise, -1.0, 1.0), interval(fall, -1.0, 1.0)
    says: Says = "cannot be told"
    if up.low > 0 and down.high < 0:
        says = "holds"
    elif up.high < 0 or down.low > 0:
        says = "does not hold"
    seeds, prompts = base.shape
    return Insight(
        says,
        "That SFT alone leaks more than the base and DPO brings leaks back down "
        f"{says} here: the base leaks on {base.mean():.1%} of "
        f"plain factual prompts, SFT changes that by {_points(rise, up)}, DPO after it by "
        f"{_points(fall, down)} ({seeds} seeds, {prompts} prompts).",
    )


def _points(change: Values, found: Interval) -> str:
    if not change.any():
        return "nothing (no answer changed)"
    mean, low, high = (100 * value for value in (float(change.mean()), *found))
    return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})"
