"""Paired statistics of two models on the same questions, and the verdict. NumPy only.

Both models answered the same questions, so the tests are of the differences item by item: most of
the spread between questions cancels, and intervals are much narrower than unpaired ones.

Verdicts, the first that holds:
    no change     the model is `unchanged`; not given if that was not measured
    gain          the whole interval of the change is above 0
    no tax        its lower end is above -margin: any loss is smaller than the margin, even if the
                  whole interval lies below 0
    tax           the whole interval is below 0, and the loss may reach the margin
    inconclusive  anything else: too few questions to decide; fewer than six always are
Over several metrics, the weakest verdict counts: tax if any is taxed, else inconclusive if any is,
else gain if any gains, else no tax.

Each metric has its own interval and verdict. Among many metrics some p is small by chance alone, so
p values are corrected over all metrics of a comparison (`holm`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.errors import BenchmarkError

Verdict = Literal["no change", "gain", "no tax", "tax", "inconclusive"]
Values = npt.NDArray[np.float64]

RESAMPLES = 10_000
SEED = 42
LEVEL = 0.95
POWER = 0.8
KL_NEAR_ZERO = 1e-5
"""Smallest KL that counts as a change, in nats per token. By Pinsker's inequality the token
probabilities of two models below it differ by at most 0.2% in all, and a reader of an answer of 100
tokens can name its author in at most 51.1% of cases: half the total variation, √(100 · KL / 2) / 2,
above a guess."""
FEWEST = 6
"""Fewest questions for a verdict. Five coins on one side are chance at p = 0.06, but five equal
differences, resampled, would look certain."""
CHANGED_NEAR_ZERO = 0.01
"""Largest share of changed items that counts as no change. Near a tie, rounding alone decides."""
_CHUNK = 1000
"""Resamples drawn at a time, to bound memory."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def stderr(values: Sequence[float] | Values) -> float:
    """Compute the standard error of the mean: sample standard deviation (ddof=1) / √n."""
    if len(values) < 2:
        raise BenchmarkError("one question has no standard error; use two or more")
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def unseen(n: int) -> float:
    """Return the largest plausible share of an event that n draws did not show: 1 - 0.025^(1/n).

    This is the upper end of the 95% interval at 0 of n (Clopper & Pearson 1934, Biometrika 26:404).
    """
    return 1.0 - float(((1 - LEVEL) / 2) ** (1 / n))


def widened(found: Interval, mean: float, n: int, least: float, most: float) -> Interval:
    """Widen an interval of a mean to allow for values that n draws may all have missed.

    Args:
        least, most: bounds of one draw. If one is infinite the interval stays as it is: a missed
            draw may have any value.
    """
    if math.isinf(least) or math.isinf(most):
        return found
    low, high = (mean + unseen(n) * (end - mean) for end in (least, most))
    return Interval(min(found.low, low), max(found.high, high))


def bootstrap(
    differences: Sequence[float] | Values,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Compute the 95% percentile interval of a mean of paired differences (n,), resampling questions.

    Args:
        least, most: bounds of a difference. If all differences are equal, resampling shows no other
            value, so the interval is widened for values that n draws may miss (`unseen`).
    """
    values = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[
                rng.integers(len(values), size=(min(_CHUNK, resamples - done), len(values)))
            ].mean(axis=1)
            for done in range(0, resamples, _CHUNK)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = Interval(float(low), float(high))
    return widened(found, float(values.mean()), len(values), least, most)


def bootstrap_ratio(
    numerators: Sequence[float] | Values,
    denominators: Sequence[float] | Values,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Compute the 95% percentile interval of a ratio of two sums, resampling items with both parts (n,).

    Draws whose denominators sum to 0 have no ratio, and are left out.

    Args:
        least, most: bounds of one item's ratio; the interval is widened for values that the items with
            a denominator may miss (`unseen`).

    Raises:
        BenchmarkError: all denominators are 0.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not below.any():
        raise BenchmarkError("no item counts: the ratio is not defined")
    rng = np.random.default_rng(seed)
    ratios = []
    for done in range(0, resamples, _CHUNK):
        drawn = rng.integers(len(below), size=(min(_CHUNK, resamples - done), len(below)))
        sums = below[drawn].sum(axis=1)
        ratios.append(above[drawn].sum(axis=1)[sums != 0] / sums[sums != 0])
    low, high = np.quantile(np.concatenate(ratios), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = Interval(float(low), float(high))
    mean = float(above.sum() / below.sum())
    return widened(found, mean, int(np.count_nonzero(below)), least, most)


def auc(above: Sequence[float] | Values, below: Sequence[float] | Values) -> float:
    """Compute the chance that a score of one class exceeds one of another; a tie counts half.

    It is the area under the ROC curve: U / (n · m) of Mann & Whitney 1947, Ann. Math. Stat. 18:50.

    Args:
        above: scores (n,) of the class that should score higher.
        below: scores (m,) of the other.

    Raises:
        BenchmarkError: a class is empty, or a score is not finite.
    """
    return float(_wins(above, below).mean())


def bootstrap_auc(
    above: Sequence[float] | Values,
    below: Sequence[float] | Values,
    *,
    paired: bool = False,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Compute the 95% percentile interval of an `auc`, resampling the items of each class.

    It is widened for items that the smaller class may miss (`unseen`): a perfect score of five items
    is no proof.

    Args:
        paired: the n-th items of both classes belong together, and are drawn together.
    """
    wins = _wins(above, below)
    n, m = wins.shape
    rng = np.random.default_rng(seed)
    areas = []
    for done in range(0, resamples, _CHUNK):
        some = min(_CHUNK, resamples - done)
        rows = rng.multinomial(n, np.full(n, 1 / n), size=some)
        columns = rows if paired else rng.multinomial(m, np.full(m, 1 / m), size=some)
        areas.append(((rows @ wins) * columns).sum(axis=1) / (n * m))
    low, high = np.quantile(np.concatenate(areas), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = Interval(float(low), float(high))
    return widened(found, float(wins.mean()), min(n, m), 0.0, 1.0)


def _wins(above: Sequence[float] | Values, below: Sequence[float] | Values) -> Values:
    """Compare every score of one class with every one of another, (n, m): 1 if above, 0.5 in a tie."""
    ours, theirs = np.asarray(above, np.float64), np.asarray(below, np.float64)
    if not (len(ours) and len(theirs)):
        raise BenchmarkError("a class without items has no AUC")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise BenchmarkError("a score is not finite: there is no AUC")
    return (np.sign(ours[:, None] - theirs[None]) + 1) / 2


def wilson(hits: int, n: int) -> Interval:
    """Compute Wilson's 95% interval of a share, which has a width at 0 and at 1 as well.

    Wilson 1927, J. Am. Stat. Assoc. 22:209.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mcnemar(better: int, worse: int) -> float:
    """Compute McNemar's exact two-sided p for paired binary scores.

    Of the questions that changed, half should have changed either way by chance: a binomial test
    at 1/2 on the discordant pairs (McNemar 1947, Psychometrika 12:153, in its exact form).
    """
    n = better + worse
    tail, choices = 0, 1  # choices: n over k, from one k to the next
    for k in range(min(better, worse) + 1):
        tail += choices
        choices = choices * (n - k) // (k + 1)
    return min(1.0, float(2 * tail / 2**n))


def sign_flips(
    differences: Sequence[float] | Values, *, resamples: int = RESAMPLES, seed: int = SEED
) -> float:
    """Compute the two-sided p of a mean of paired differences (n,) of any size.

    If nothing changed, each difference might as well have had the other sign. p is the share of
    random choices of signs whose mean is as far from 0 as the observed one (Fisher's randomisation
    test; for differences of 0 or ±1 it is McNemar's). The observed signs count as one choice, so p
    is never 0 (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).
    """
    values = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    observed = abs(values.sum()) * (1 - 1e-9)  # summed in another order, it must count as equal
    far = 0
    for done in range(0, resamples, _CHUNK):
        signs = rng.integers(0, 2, size=(min(_CHUNK, resamples - done), len(values)), dtype=np.int8)
        far += int((np.abs((2.0 * signs - 1.0) @ values) >= observed).sum())
    return (1 + far) / (1 + resamples)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for the number of metrics; return them in the same order.

    The chance that any unchanged metric comes out below 5% is then at most 5%, however the metrics
    depend on each other (Holm 1979, Scand. J. Stat. 6:65): the smallest p is multiplied by the
    number of metrics, the next by one less, and none ends below the one before it.
    """
    corrected = [0.0] * len(ps)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = least
    return corrected


def detectable(differences: Sequence[float] | Values) -> float | None:
    """Compute the smallest true mean change that differences (n,) of this spread would show.

    It is found with 80% power at 5%, two-sided. None if the differences have no spread.
    """
    normal = NormalDist()
    z = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    return z * stderr(differences) or None


def verdict(interval: Interval, margin: float, n: int) -> Verdict:
    """Judge the interval of a change over n questions, in the order of the module's docstring."""
    if n < FEWEST:
        return "inconclusive"
    if interval.low > 0:
        return "gain"
    if interval.low > -margin:
        return "no tax"
    if interval.high < 0:
        return "tax"
    return "inconclusive"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict over several metrics: the weakest one's."""
    order: tuple[Verdict, ...] = ("tax", "inconclusive", "gain", "no tax", "no change")
    return next(candidate for candidate in order if candidate in verdicts)


def unchanged(kl: float | None, changed: float) -> bool:
    """Return whether a model is still the same, as far as was measured.

    Args:
        kl: KL(after ‖ before) in nats per token; None: not known.
        changed: share of the items that score otherwise than before.
    """
    return kl is not None and kl < KL_NEAR_ZERO and changed <= CHANGED_NEAR_ZERO
