"""Did it get better, worse, or can nobody tell? Paired statistics on two results. NumPy only.

Both models answered the same questions, so the differences item by item are what is tested: most
of the spread between questions cancels, and intervals are a good deal narrower than unpaired ones.

Verdicts, the first that holds:
    gain          the whole interval of the change is above 0
    no tax        its lower end is above -margin: whatever was lost is less than the margin, even
                  where the interval lies below 0
    tax           the whole interval is below 0, and the loss may reach the margin
    inconclusive  anything else: too few questions to say
Overall, the weakest metric speaks: tax if any is taxed, else inconclusive if any is, else gain if
any gains, else no tax. No correction is made for looking at three metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.benchmark.metrics import METRICS, item_metrics
from forty2.errors import BenchmarkError

Verdict = Literal["gain", "no tax", "tax", "inconclusive"]
Values = npt.NDArray[np.float64]

RESAMPLES = 10_000
SEED = 42
LEVEL = 0.95
POWER = 0.8
STORED_TOLERANCE = 1e-6
_CHUNK = 1000  # resamples drawn at a time, to bound memory


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Change(NamedTuple):
    """One metric, before and after, over the same questions."""

    before: float
    after: float
    difference: float
    low: float
    """Lower end of the paired 95% bootstrap interval of the difference."""
    high: float
    stderr: float
    """Of the difference, paired."""
    detectable: float
    """Smallest true change that this many questions would show with 80% power."""
    better: int
    """Questions that scored higher after."""
    worse: int
    p: float | None
    """McNemar's exact p, where every score is 0 or 1."""
    verdict: Verdict


class Comparison(NamedTuple):
    """Two results on the same questions."""

    questions: str
    n: int
    before: str
    after: str
    margin: float
    metrics: dict[str, Change]
    """By name: mc1, mc2, mc3."""
    categories: dict[str, float]
    """Mean change of MC2 by category: to look at, too few questions each to judge by."""
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """As JSON."""
        changes = {name: change._asdict() for name, change in self.metrics.items()}
        return {**self._asdict(), "metrics": changes}


def stderr(values: Sequence[float] | Values) -> float:
    """Standard error of the mean: sample standard deviation (ddof=1) / √n."""
    if len(values) < 2:
        raise BenchmarkError("one question has no standard error; use two or more")
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def bootstrap(
    differences: Sequence[float] | Values, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """95% percentile interval of a mean of paired differences (n,), resampling questions."""
    values = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[rng.integers(len(values), size=(min(_CHUNK, resamples - done), len(values)))]
            .mean(axis=1)
            for done in range(0, resamples, _CHUNK)
        ]
    )  # fmt: skip
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact two-sided p for paired binary scores.

    Of the questions that changed, half should have changed either way by chance: a binomial test
    at 1/2 on the discordant pairs (McNemar 1947, Psychometrika 12:153, in its exact form).
    """
    n = better + worse
    tail, ways = 0, 1  # ways: n over k, from one k to the next
    for k in range(min(better, worse) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, float(2 * tail / 2**n))


def detectable(differences: Sequence[float] | Values) -> float:
    """Smallest true mean change found with 80% power at 5% two-sided, given this spread and n."""
    normal = NormalDist()
    z = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    return z * stderr(differences)


def verdict(interval: Interval, margin: float) -> Verdict:
    """What an interval of a change says; precedence as in the module's docstring."""
    if interval.low > 0:
        return "gain"
    if interval.low > -margin:
        return "no tax"
    if interval.high < 0:
        return "tax"
    return "inconclusive"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict over several metrics: the weakest one's."""
    order: tuple[Verdict, ...] = ("tax", "inconclusive", "gain", "no tax")
    return next(candidate for candidate in order if candidate in verdicts)


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    margin: float = 0.01,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two TruthfulQA results, from their items.

    Args:
        before, after: results as `truthfulqa` returns them.
        margin: largest loss that still counts as no tax.
        resamples, seed: of the bootstrap.

    Raises:
        BenchmarkError: a result is damaged, or they are not of the same questions. Says where.
    """
    if not 0 < margin < 1:
        raise BenchmarkError(f"margin {margin}: must lie between 0 and 1")
    values = {
        "before": _checked(before, "the result before"),
        "after": _checked(after, "the result after"),
    }
    _check_same(before, after)
    changes = {}
    for name in METRICS:
        old, new = (np.array([item[name] for item in values[side]]) for side in values)
        changes[name] = _change(old, new, margin, resamples, seed)
    mc2_change: dict[str, list[float]] = {}
    for item, old_item, new_item in zip(before["items"], *values.values(), strict=True):
        mc2_change.setdefault(item["category"], []).append(new_item["mc2"] - old_item["mc2"])
    return Comparison(
        questions=str(before["questions"]),
        n=len(before["items"]),
        before=_model(before),
        after=_model(after),
        margin=margin,
        metrics=changes,
        categories={name: float(np.mean(mc2_change[name])) for name in sorted(mc2_change)},
        verdict=overall([change.verdict for change in changes.values()]),
    )


def format_comparison(comparison: Comparison) -> str:
    """A comparison as text for the terminal."""
    head = (
        f"{'':<5}{'before':>8}{'after':>8}{'change':>9}  {'95% interval':<20}"
        f"{'detectable':>10}{'better':>8}{'worse':>7}{'p':>8}  verdict"
    )
    lines = [
        f"{comparison.questions}, {comparison.n} questions",
        f"before: {comparison.before}",
        f"after:  {comparison.after}",
        "",
        head,
        "-" * len(head),
    ]
    for name, one in comparison.metrics.items():
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        p = "" if one.p is None else f"{one.p:.4f}"
        lines.append(
            f"{name.upper():<5}{one.before:>8.4f}{one.after:>8.4f}{one.difference:>+9.4f}"
            f"  {interval:<20}{one.detectable:>10.4f}{one.better:>8}{one.worse:>7}{p:>8}"
            f"  {one.verdict}"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Verdict: {comparison.verdict} (a loss below {comparison.margin:g} counts as no tax). "
            "Detectable: the smallest true change",
            "that so many questions show with 80% power. p: McNemar's exact test.",
        ]
    )


def _change(old: Values, new: Values, margin: float, resamples: int, seed: int) -> Change:
    differences = new - old
    interval = bootstrap(differences, resamples=resamples, seed=seed)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    binary = bool(np.isin(np.concatenate([old, new]), (0.0, 1.0)).all())
    return Change(
        before=float(old.mean()),
        after=float(new.mean()),
        difference=float(differences.mean()),
        low=interval.low,
        high=interval.high,
        stderr=stderr(differences),
        detectable=detectable(differences),
        better=better,
        worse=worse,
        p=mcnemar(better, worse) if binary else None,
        verdict=verdict(interval, margin),
    )


def _checked(result: Mapping[str, Any], what: str) -> list[dict[str, float]]:
    """The metrics of each item, recomputed: a stored mean is only ever compared with them."""
    if not isinstance(result, Mapping) or result.get("benchmark") != "truthfulqa":
        raise BenchmarkError(f"{what} is no TruthfulQA result; give a file that forty2 wrote")
    values = []
    try:
        for number, item in enumerate(result["items"], 1):
            for part in ("mc1", "mc2"):
                if set(item[part]["labels"]) != {0, 1}:
                    raise ValueError(f"item {number}: labels must be 0 and 1, both present")
                if not np.isfinite(np.asarray(item[part]["loglik"], np.float64)).all():
                    raise BenchmarkError(
                        f"{what}, item {number} ({item['question']!r}): a score is not finite; "
                        "measure again"
                    )
            values.append(item_metrics(item))
        stored = {name: float(result[name]) for name in METRICS}
        _ = [str(result[key]) for key in ("questions", "questions_sha256", "model")]
        _ = [str(item[key]) for item in result["items"] for key in ("question", "category")]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, BenchmarkError):
            raise
        raise BenchmarkError(f"{what} is damaged ({error!r}); measure again") from error
    if len(values) < 2:
        raise BenchmarkError(f"{what} holds {len(values)} questions; two or more can be compared")
    for name in METRICS:
        mean = math.fsum(value[name] for value in values) / len(values)
        if not abs(mean - stored[name]) <= STORED_TOLERANCE:
            raise BenchmarkError(
                f"{what}: {name} is stored as {stored[name]:.6f}, but its items give {mean:.6f}; "
                "the file was changed: measure again"
            )
    return values


def _check_same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse results that are not of the same questions, asked the same way."""
    for key in ("questions_sha256", "chat_template"):
        if before.get(key) != after.get(key):
            raise BenchmarkError(
                f"not comparable: {key} is {before.get(key)!r} ({before['questions']}) before and "
                f"{after.get(key)!r} ({after['questions']}) after; measure both alike"
            )
    old, new = before["items"], after["items"]
    if len(old) != len(new):
        raise BenchmarkError(
            f"not comparable: {len(old)} questions before, {len(new)} after; use the same n and seed"
        )
    for number, (one, other) in enumerate(zip(old, new, strict=True), 1):
        if one["question"] != other["question"]:
            raise BenchmarkError(
                f"not comparable: item {number} is {one['question']!r} before and "
                f"{other['question']!r} after; use the same n and seed"
            )
        if any(one[part]["labels"] != other[part]["labels"] for part in ("mc1", "mc2")):
            raise BenchmarkError(
                f"not comparable: item {number} ({one['question']!r}) has other options; "
                "measure both on one file"
            )


def _model(result: Mapping[str, Any]) -> str:
    adapter = result.get("adapter")
    return str(result["model"]) + (f" + {adapter}" if adapter else "")
