"""Statistics over seeds and items: intervals of means and of changes, their verdict, and the insight
about leaks.

Scores are arrays (S, n): of S seeds, each on the same n items. Benefit and cost are judged as for one
run (`benchmark.verdict`), by these wider intervals.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from forty2.benchmark.results import Result, Stage
from forty2.benchmark.stage_scores import scores_of as scores_by_metric
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
from forty2.benchmark.task import SHARE, Metric
from forty2.benchmark.tasks.held_out import CHAT_LOSS, LENGTH, PAIR_MARGIN, HeldOut
from forty2.benchmark.verdict import HELD_OUT, CostChange, ModelVerdict, costs_of, judge
from forty2.files import JsonObject
from forty2.metric_names import TEXTS
from forty2.recipe.schema import Benchmark, Cost

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

    before: float
    after: float
    difference: float
    low: float
    """Lower end of the 95% interval over seeds and items."""
    high: float
    n: int
    """Items."""
    verdict: Verdict


class Step(NamedTuple):
    """The change from one variant to another, in all that both measured."""

    metrics: dict[str, Change]
    verdict: ModelVerdict
    """The verdict on benefit and cost: the weaker one's."""
    sentence: str
    """Benefit and cost in a sentence."""
    costs: tuple[CostChange, ...]

    def to_json(self) -> JsonObject:
        changes = {name: change._asdict() for name, change in self.metrics.items()}
        return {**self._asdict(), "metrics": changes, "costs": [c._asdict() for c in self.costs]}


class Insight(NamedTuple):
    """Whether SFT alone leaks more than the base, and DPO brings leaks back down."""

    says: Says
    sentence: str


def with_common_rows(stages: Sequence[Stage]) -> list[Stage]:
    """Leave out the held-out rows that not all stages have; all, if one stage has none.

    Seeds draw other rows of the built-in sets, and a phase alone has no other phase's rows. A chat's
    weight is its share of the tokens of the chats that are left.
    """
    results = [stage.results[HELD_OUT] for stage in stages if HELD_OUT in stage.results]
    keyed = [_by_identity(result) for result in results]
    common = [key for key in keyed[0] if all(key in one for one in keyed)] if keyed else []
    if len(results) < len(stages) or not common:
        return [stage.without(HELD_OUT) for stage in stages]
    return [
        dataclasses.replace(
            stage,
            results={
                **stage.results,
                HELD_OUT: dataclasses.replace(
                    result, items=HeldOut.items([one[key] for key in common])
                ),
            },
        )
        for stage, result, one in zip(stages, results, keyed, strict=True)
    ]


def _by_identity(result: Result) -> dict[str, JsonObject]:
    """Return the records by what they are of; the same thing again is another one."""
    found: dict[str, JsonObject] = {}
    seen: Counter[str] = Counter()
    for item in result.items:
        key = json.dumps(HeldOut.identify(item.record))
        seen[key] += 1
        found[f"{key} {seen[key]}"] = item.record
    return found


def scores_of(stages: Sequence[Stage]) -> dict[str, Values]:
    """Collect the scores of a stage over seeds by metric, each (S, n), for metrics with two items or more.

    Each metric is better in its own direction; KL is from the base, its items are the probe texts, each
    weighted by its number of places, as in `log p of texts`.
    """
    alike = with_common_rows(stages)
    by_seed = [_scores_of_stage(stage) for stage in alike]
    return {name: np.stack([one[name] for one in by_seed]) for name in by_seed[0]}


def _scores_of_stage(stage: Stage) -> dict[str, Values]:
    scores = {name: one.values() for name, one in scores_by_metric(stage).metrics.items()}
    scores[KL] = np.array([item.scores[KL] for item in stage["divergence"].items])
    return {name: values for name, values in scores.items() if len(values) > 1}


def interval(
    values: Values,
    least: float = -math.inf,
    most: float = math.inf,
    groups: Sequence[int] | None = None,
) -> Interval:
    """Compute the 95% interval of `mean_over_seeds` of scores (S, n).

    Seeds and items are both samples: others would have given another mean. The items' part is a
    bootstrap of what each item adds to the mean, over seeds. The seeds' part is the variance between
    seed means that the items do not explain, as a Student t with S - 1 degrees of freedom, since three
    seeds say little about their own spread. The two are added draw by draw.

    In simulations with three seeds and 100 items the interval covers the truth in 93 to 98% of
    cases. The usual bootstrap, which draws seeds and then items within each, covers it in 79 to 87%
    where questions differ as much as answers do: it treats the seeds' answers to one question as
    independent, and the three seeds as all there are.

    Args:
        values: NaN where a seed did not have an item. Items of one seed alone count as its own sample.
        least, most: bounds of the mean, and so of the interval.
        groups: group of each item (n,); items of one group nearly repeat each other, so that they are
            drawn together. None: each is a group of its own.
    """
    seeds, items = values.shape
    there = ~np.isnan(values)
    by_seed = np.nanmean(values, axis=1)
    added = np.where(there, values - by_seed[:, None], 0.0) / there.sum(axis=1, keepdims=True)
    places = np.arange(items) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(places.max()) + 1
    by_group = np.stack([np.bincount(places, row, count) for row in added])
    shared = by_group.mean(axis=0)
    explained = float(((by_group - shared) ** 2).sum()) / (seeds - 1) * count / (count - 1)
    between = max(0.0, float(by_seed.var(ddof=1)) - explained) / seeds
    mean = float(by_seed.mean())
    rng = np.random.default_rng(SEED)
    means = []
    for done in range(0, RESAMPLES, _CHUNK):
        drawn = rng.integers(count, size=(min(_CHUNK, RESAMPLES - done), count))
        means.append(mean + shared[drawn].sum(axis=1))
    draws = np.concatenate(means)
    draws += math.sqrt(between) * rng.standard_t(seeds - 1, size=RESAMPLES)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = widened(Interval(float(low), float(high)), mean, count, least, most)
    return Interval(max(least, found.low), min(most, found.high))


def mean_over_seeds(values: Values) -> float:
    """Compute the mean of the seeds' means, of scores as in `interval`."""
    return float(np.nanmean(values, axis=1).mean())


_KINDS: Mapping[str, Metric] = {
    KL: Metric(0.0, math.inf, "neither"),
    TEXTS: Metric(-math.inf, 0.0),
    **{name: HeldOut.metric(name) for name in (CHAT_LOSS, PAIR_MARGIN, LENGTH)},
}
"""Metrics that are no shares."""


def _kind(metric: str) -> Metric:
    return _KINDS.get(metric, SHARE)


def score_of(metric: str, values: Values) -> Score:
    """Compute the mean of a metric's scores (S, n) with its interval."""
    kind = _kind(metric)
    found = interval(values, kind.low, kind.high)
    return Score(float(values.mean()), *found, values.shape[1])


def step_of(
    before: Sequence[Stage], after: Sequence[Stage], margin: float, cost: Cost, *, same: bool
) -> Step:
    """Compare two stages over seeds, on what both measured, and judge benefit and cost.

    Args:
        before, after: stages of the same seeds.
        margin: largest loss that still counts as no tax.
        cost: margins of the cost.
        same: whether both are the same model as far as was measured.
    """
    alike = with_common_rows([*before, *after])
    old, new = alike[: len(before)], alike[len(before) :]
    changes = changes_of(scores_of(old), scores_of(new), margin, same=same)
    judgement = judge(scores_by_metric(old[0]), changes, cost, same=same)
    return Step(changes, judgement.verdict, judgement.sentence, judgement.costs)


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
        kind, n = _kind(metric), difference.shape[1]
        ends = interval(difference, kind.low - kind.high, kind.high - kind.low)
        gain = Interval(-ends.high, -ends.low) if kind.better == "lower" else ends
        changes[metric] = Change(
            float(before[metric].mean()),
            float(after[metric].mean()),
            float(difference.mean()),
            *ends,
            n,
            "no change" if same else verdict(gain, margin, n),
        )
    return changes


def costs_over_seeds(
    before: Sequence[Stage], after: Sequence[Stage], benchmark: Benchmark
) -> tuple[CostChange, ...]:
    """Judge what was lost in general from one stage to another, over seeds.

    Every benchmark counts but the run's own held-out rows.

    Args:
        before, after: stages of the same seeds.
        benchmark: the margins.
    """
    alike = with_common_rows([*before, *after])
    old, new = alike[: len(before)], alike[len(before) :]
    changes = changes_of(scores_of(old), scores_of(new), benchmark.margin, same=False)
    return general_costs(old[0], changes, benchmark.cost)


def general_costs(
    before: Stage, changes: Mapping[str, Change], cost: Cost
) -> tuple[CostChange, ...]:
    """Judge changes over seeds as what was lost in general: all but the run's own held-out rows.

    Args:
        before: a stage that the changes are from.
        cost: the margins.
    """
    tasks = judge(scores_by_metric(before), changes, cost, same=False).tasks
    return costs_of(changes, tasks, HELD_OUT, cost)


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
