"""Statistics over seeds and items: intervals of means and of changes, and the insight about leaks.

Scores are arrays (S, n): of S seeds, each on the same n items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from forty2.benchmark.compare import scores_of as scores_by_metric
from forty2.benchmark.results import Stage
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
from forty2.benchmark.tasks.perplexity import TEXTS

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


def scores_of(stage: Stage) -> dict[str, Values]:
    """Collect a stage's scores by metric, each (n,), for metrics with at least two items.

    Higher is better, except for KL from the base. Its items are the probe texts, each weighted by
    its number of places, as in `log p of texts`.
    """
    scores = {
        name: one.values()
        for name, one in scores_by_metric(stage.without("held_out")).metrics.items()
    }
    scores[KL] = np.array([item.scores[KL] for item in stage["divergence"].items])
    return {name: values for name, values in scores.items() if len(values) > 1}


def interval(values: Values, least: float = -math.inf, most: float = math.inf) -> Interval:
    """Compute the 95% interval of the mean of scores (S, n).

    Seeds and items are both samples: others would have given another mean. The items' part is a
    bootstrap of the item means over seeds. The seeds' part is the variance between seed means that
    the items do not explain, as a Student t with S - 1 degrees of freedom, since three seeds say
    little about their own spread. The two are added draw by draw.

    In simulations with three seeds and 100 items the interval covers the truth in 93 to 98% of
    cases. The usual bootstrap, which draws seeds and then items within each, covers it in 79 to 87%
    where questions differ as much as answers do: it treats the seeds' answers to one question as
    independent, and the three seeds as all there are.

    Args:
        least, most: bounds of the mean, and so of the interval.
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
    """Return the smallest and the largest possible value of a metric."""
    unbounded = {KL: (0.0, math.inf), TEXTS: (-math.inf, 0.0)}
    return unbounded.get(metric, (0.0, 1.0))


def score_of(metric: str, values: Values) -> Score:
    """Compute the mean of a metric's scores (S, n) with its interval."""
    return Score(float(values.mean()), *interval(values, *_range(metric)), values.shape[1])


def changes_of(
    before: Mapping[str, Values], after: Mapping[str, Values], margin: float, *, same: bool
) -> dict[str, Change]:
    """Compute the paired changes by metric, from scores (S, n) of the same seeds and items.

    Args:
        margin: largest loss that still counts as no tax.
        same: whether both are the same model as far as was measured; the verdict is then "no change".
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
    """Test whether SFT alone leaks more than the base, and DPO brings leaks back down.

    It holds if both paired intervals lie on their side of zero; it does not hold as soon as one
    lies on the other side. Where no answer changed, it cannot be told.

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
