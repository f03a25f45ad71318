"""Comparison of two results item by item: changes, their intervals, and a verdict. NumPy only.

It takes two results of `forty2 benchmark`; or two stages of a run (`RUN/benchmarks/`), which hold
several results; or what lm-evaluation-harness logged, beside its like or beside a result of ours; or
two logs of Inspect.
Every item carries its scores; its task states the metrics, their ranges, and what must be the same
in both results. The statistics are those of `stats`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from forty2.benchmark.harness_form import as_samples
from forty2.benchmark.harness_pairs import paired_scores
from forty2.benchmark.harness_samples import HarnessSamples
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.shared_items import shared_items
from forty2.benchmark.stage_scores import Scores, check_same, scores_of
from forty2.benchmark.stats import (
    FEWEST,
    RESAMPLES,
    SEED,
    Interval,
    Values,
    Verdict,
    bootstrap,
    detectable,
    holm,
    mcnemar,
    sign_flips,
    stderr,
    unchanged,
    verdict,
)
from forty2.benchmark.task import Metric
from forty2.benchmark.verdict import CostChange, ModelVerdict, TaskChange, judge
from forty2.errors import BenchmarkError
from forty2.files import JsonObject
from forty2.metric_names import TEXTS, metric_name, shown_change, shown_value
from forty2.notebook import html_paragraph, html_table
from forty2.recipe.schema import Cost

Measured = Result | Stage | HarnessSamples
"""One side of a comparison."""


class Change(NamedTuple):
    """One metric, before and after, over the same questions."""

    before: float
    after: float
    difference: float
    low: float
    """Lower end of the paired 95% bootstrap interval of the difference."""
    high: float
    stderr: float
    """Paired standard error of the difference."""
    detectable: float | None
    """Smallest true change that this number of questions would show with 80% power; None: unknown."""
    n: int
    """Questions that have this metric."""
    better: int
    """Questions that scored better after."""
    worse: int
    """Questions that scored worse after."""
    p: float
    """McNemar's exact p where every score is 0 or 1, else the p of random signs."""
    p_holm: float
    """p, corrected for all metrics of the comparison."""
    verdict: Verdict


class Comparison(NamedTuple):
    """Two results on the same questions."""

    questions: str
    n: int
    """Questions that the verdict is over."""
    before: str
    after: str
    margin: float
    metrics: dict[str, Change]
    judged: tuple[str, ...]
    """Metrics that the verdict is over; the others are parts of them, or additional."""
    categories: dict[str, float]
    """Mean change by category of TruthfulQA (of MC2) or by subject of MMLU: too few questions each
    for a verdict."""
    kl: float | None
    """KL(after ‖ before) in nats per token, if before is a run's base and after one of its stages."""
    changed: float
    """Share of the items that score otherwise than before in any metric that is 0 or 1."""
    tasks: dict[str, TaskChange]
    """Each benchmark's own verdict, by the task's name; of a stage, there are several."""
    verdict: ModelVerdict
    """The verdict on benefit and cost: the weaker one's."""
    costs: tuple[CostChange, ...] = ()
    """Changes in what the base could do; empty: not measured."""
    sentence: str = ""
    """Benefit and cost in a sentence."""
    left_out: tuple[str, ...] = ()
    """What only one of two stages measured, a sentence for each task."""

    def record(self) -> JsonObject:
        """Return the comparison as JSON."""
        changes = {name: change._asdict() for name, change in self.metrics.items()}
        tasks = {name: task._asdict() for name, task in self.tasks.items()}
        costs = [cost._asdict() for cost in self.costs]
        return {**self._asdict(), "metrics": changes, "tasks": tasks, "costs": costs}

    def __str__(self) -> str:
        return format_comparison(self)

    def _repr_html_(self) -> str:
        """Show the metrics, the verdict and its sentence in a notebook."""
        rows = [_cells(name, change) for name, change in self.metrics.items()]
        head = ["metric", "before", "after", "change", "95% interval", "p", "verdict"]
        title = f"{self.before} → {self.after}"
        if self.n:
            title = f"{self.questions}, {self.n:,} questions: {title}"
        verdict = f"Verdict: {self.verdict}. {self.sentence}"
        return html_table(title, head, rows) + "\n" + html_paragraph(verdict)


def compare(
    before: Measured,
    after: Measured,
    *,
    margin: float = 0.01,
    cost: Cost | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two results of the same benchmark, two stages of a run, or the harness's samples.

    Args:
        margin: largest loss that still counts as no tax.
        cost: margins of the cost of a stage; None: the defaults.
        resamples: draws of the bootstrap and of random signs.
        seed: seed of these draws.

    Raises:
        BenchmarkError: questions or settings differ; the message says where.
    """
    if not 0 < margin < 1:
        raise BenchmarkError(f"margin {margin}: must lie between 0 and 1")
    old, new, left_out = _scores(before, after)
    check_same(old, new)
    pairs = {
        name: (scores.values(), new.metrics[name].values())
        for name, scores in old.metrics.items()
        if len(scores.by_place) > 1  # one question has no interval
    }
    if not pairs:
        raise BenchmarkError(
            f"the result before holds {len(old.asked)} questions; two or more can be compared"
        )
    changed, kl = _changed(old, new), _kl(before, after)
    same = unchanged(kl, changed)
    ps = {name: _p(*pair, resamples, seed) for name, pair in pairs.items()}
    corrected = dict(zip(ps, holm(list(ps.values())), strict=True))
    changes = {}
    for name, pair in pairs.items():
        p = ps[name], corrected[name]
        change = _change(*pair, old.metrics[name].metric, p, margin, resamples, seed)
        changes[name] = change._replace(verdict="no change") if same else change
    judgement = judge(old, changes, cost or Cost(), same=same, left_out=bool(left_out))
    return Comparison(
        questions=judgement.questions,
        n=judgement.n,
        before=old.model,
        after=new.model,
        margin=margin,
        metrics=changes,
        judged=judgement.judged,
        categories=_by_category(old, new),
        kl=kl,
        changed=changed,
        tasks=judgement.tasks,
        verdict=judgement.verdict,
        costs=judgement.costs,
        sentence=judgement.sentence,
        left_out=left_out,
    )


def format_comparison(comparison: Comparison) -> str:
    """Format a comparison for the terminal."""
    lines = [f"{comparison.questions}, {comparison.n} questions"] if comparison.n else []
    lines += [f"before: {comparison.before}", f"after:  {comparison.after}", *comparison.left_out]
    if comparison.kl is not None:
        lines.append(
            f"KL(after ‖ before) {comparison.kl:.2e} a token; {comparison.changed:.1%} of items "
            "judged otherwise"
        )
    lines += ["", *_table(comparison), ""]
    for name in comparison.judged:
        change = comparison.metrics[name]
        detectable = _shown(name, change).detectable
        lines.append(
            f"{metric_name(name)}: {change.n} questions, {change.better} better, {change.worse} worse; "
            f"detectable: {'unknown' if detectable is None else f'{detectable:.3f}'}"
        )
    lines += [""] if comparison.judged else []
    lines += [f"Verdict: {comparison.verdict}"]
    lines += [comparison.sentence] if comparison.sentence else []
    return "\n".join([*lines, "", *_explained(comparison)])


def _explained(comparison: Comparison) -> list[str]:
    """Say what words and columns of a comparison mean, those that are in it."""
    judged = ", ".join(map(metric_name, comparison.judged))
    few = any(change.n < FEWEST for change in comparison.metrics.values())
    lines = [
        f"benefit: judged by {judged or 'nothing, because nothing that was measured could show one'}",
        f"no tax: not worse, or worse by less than {comparison.margin:g}",
        "detectable: smallest true change that 80% of such comparisons would show"
        if judged
        else "",
        "p: McNemar's exact test, or random signs; corrected for all lines (Holm), as intervals are not",
        f"–: fewer than {FEWEST} items, too few for an interval" if few else "",
    ]
    return [line for line in lines if line]


def _table(comparison: Comparison) -> list[str]:
    """Lay out the metrics, the names to the left, the figures to the right."""
    head = ["", "before", "after", "change", "95% interval", "p", "verdict"]
    rows = [head, *(_cells(name, change) for name, change in comparison.metrics.items())]
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    name, before, after, difference, interval, p, _ = (
        max(least, width) for least, width in zip((0, 5, 5, 6, 16, 6, 0), columns, strict=True)
    )
    lines = [
        f"{row[0]:<{name}}  {row[1]:>{before}}  {row[2]:>{after}}  {row[3]:>{difference}}  "
        f"{row[4]:<{interval}}  {row[5]:>{p}}  {row[6]}"
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _cells(name: str, change: Change) -> list[str]:
    """Return the texts of a metric's row. Few items have no interval and no p that mean anything."""
    shown, few = _shown(name, change), change.n < FEWEST
    return [
        metric_name(name),
        f"{shown.before:.3f}",
        f"{shown.after:.3f}",
        f"{shown.difference:+.3f}",
        "–" if few else f"{shown.low:+.3f} to {shown.high:+.3f}",
        "–" if few else _shown_p(change.p_holm),
        change.verdict,
    ]


class _Shown(NamedTuple):
    """The figures of one metric's change as a reader sees them."""

    before: float
    after: float
    difference: float
    low: float
    high: float
    detectable: float | None


def _shown(name: str, change: Change) -> _Shown:
    """Return the figures of a change as a reader sees them; a change of perplexity is in its unit."""
    before, after = shown_value(name, change.before), shown_value(name, change.after)
    unit = before if name == TEXTS else 1.0
    shown = shown_change(name, change.difference, change.low, change.high)
    difference, low, high = (unit * value for value in shown)
    detectable = change.detectable
    if name == TEXTS and detectable is not None:
        detectable = unit * math.expm1(detectable)
    return _Shown(before, after, difference, low, high, detectable)


def _shown_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _scores(before: Measured, after: Measured) -> tuple[Scores, Scores, tuple[str, ...]]:
    """Return the scores of both, and what of two stages is left out, because only one measured it.

    Those of the harness are paired item by item first.
    """
    if isinstance(before, Stage) and isinstance(after, Stage):
        shared = shared_items(before, after)
        return scores_of(shared.before), scores_of(shared.after), shared.left_out
    if not isinstance(before, HarnessSamples) and not isinstance(after, HarnessSamples):
        return scores_of(before), scores_of(after), ()
    sides = [
        side if isinstance(side, HarnessSamples) else as_samples(side) for side in (before, after)
    ]
    return *paired_scores(sides[0], sides[1]), ()


def _change(
    old: Values,
    new: Values,
    metric: Metric,
    p: tuple[float, float],
    margin: float,
    resamples: int,
    seed: int,
) -> Change:
    """Compare one metric's scores (n,), whose p, plain and corrected, is known."""
    differences = new - old
    span = metric.high - metric.low
    interval = bootstrap(differences, least=-span, most=span, resamples=resamples, seed=seed)
    gains, gain = differences, interval
    if metric.better == "lower":
        gains, gain = -differences, Interval(-interval.high, -interval.low)
    return Change(
        before=float(old.mean()),
        after=float(new.mean()),
        difference=float(differences.mean()),
        low=interval.low,
        high=interval.high,
        stderr=stderr(differences),
        detectable=detectable(differences),
        n=len(differences),
        better=int((gains > 0).sum()),
        worse=int((gains < 0).sum()),
        p=p[0],
        p_holm=p[1],
        verdict=verdict(gain, margin, len(differences)),
    )


def _is_binary(*scores: Values) -> bool:
    """Return whether every score is 0 or 1."""
    return all(bool(np.isin(values, (0.0, 1.0)).all()) for values in scores)


def _p(old: Values, new: Values, resamples: int, seed: int) -> float:
    """Compute the two-sided p of the paired change of scores, each (n,)."""
    if _is_binary(old, new):
        return mcnemar(int((new > old).sum()), int((new < old).sum()))
    return sign_flips(new - old, resamples=resamples, seed=seed)


def _changed(old: Scores, new: Scores) -> float:
    """Compute the share of items that score otherwise than before in a metric that is 0 or 1."""
    judged, changed = set[int](), set[int]()
    for name, before in old.metrics.items():
        after = new.metrics[name]
        if _is_binary(before.values(), after.values()):
            judged |= before.by_place.keys()
            changed |= {n for n, score in before.by_place.items() if after.by_place[n] != score}
    return len(changed) / max(1, len(judged))


def _kl(before: Measured, after: Measured) -> float | None:
    """Return the KL of a stage from the base, in nats per token; None: before is not the base."""
    if not isinstance(before, Stage) or not isinstance(after, Stage) or before.name != "base":
        return None
    return float(after["divergence"].figures["kl"]) if "divergence" in after.results else None


def _by_category(old: Scores, new: Scores) -> dict[str, float]:
    """Compute the mean change by category, of the metric that the task names."""
    if old.category_metric is None:
        return {}
    scores: list[Mapping[int, float]] = [
        part.metrics[old.category_metric].by_place for part in (old, new)
    ]
    return {
        name: float(np.mean([scores[1][n] - scores[0][n] for n in old.categories[name]]))
        for name in sorted(old.categories)
    }
