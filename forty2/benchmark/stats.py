"""Did it get better, worse, or can nobody tell? Paired statistics. NumPy only.

Both models answered the same questions, so the differences item by item are what is tested: most
of the spread between questions cancels, and intervals are a good deal narrower than unpaired ones.

Verdicts, the first that holds:
    no change     the model is the one it was: `unchanged`. Where that is not measured, never said
    gain          the whole interval of the change is above 0
    no tax        its lower end is above -margin: whatever was lost is less than the margin, even
                  where the interval lies below 0
    tax           the whole interval is below 0, and the loss may reach the margin
    inconclusive  anything else: too few questions to say, as fewer than six always are
Over several metrics, the weakest speaks: tax if any is taxed, else inconclusive if any is, else
gain if any gains, else no tax.

Intervals and verdicts are each metric's own. Who looks at many metrics finds a small p among them
by chance alone: p values are corrected over all of one comparison (`holm`).
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
"""Nats a token. By Pinsker's inequality two models so near give a token probabilities that differ
by 0.2% in all, and who reads an answer of 100 tokens says right which of them wrote it in at most
51.1% of cases: half the total variation, √(100 · KL / 2) / 2, above a guess."""
FEWEST = 6
"""Questions. Five coins that fall alike are chance at p = 0.06; resampled, five like differences
would look certain."""
CHANGED_NEAR_ZERO = 0.01
"""Share of the judged items. Items that stand at a tie fall either way by rounding alone."""
_CHUNK = 1000  # resamples drawn at a time, to bound memory


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def stderr(values: Sequence[float] | Values) -> float:
    """Standard error of the mean: sample standard deviation (ddof=1) / √n."""
    if len(values) < 2:
        raise BenchmarkError("one question has no standard error; use two or more")
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def unseen(n: int) -> float:
    """The largest share that something can well have of which n draws show nothing: 1 - 0.025^(1/n).

    The upper end of a 95% interval at 0 of n (Clopper & Pearson 1934, Biometrika 26:404).
    """
    return 1.0 - float(((1 - LEVEL) / 2) ** (1 / n))


def widened(found: Interval, mean: float, n: int, least: float, most: float) -> Interval:
    """An interval of a mean that has room for what n draws may all have missed.

    Args:
        least, most: what one draw can be. Where one is infinite the interval stays: what was
            missed may be anything.
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
    """95% percentile interval of a mean of paired differences (n,), resampling questions.

    Args:
        least, most: what a difference can be. Where all are alike, resampling shows no other: the
            interval still has room for what so few draws may miss (`unseen`).
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


def sign_flips(
    differences: Sequence[float] | Values, *, resamples: int = RESAMPLES, seed: int = SEED
) -> float:
    """Two-sided p of a mean of paired differences (n,) of any size.

    If nothing changed, each difference might as well have had the other sign: how many of the
    random choices of signs give a mean as far from 0? (Fisher's randomisation test; of differences
    that are 0 or ±1 it is McNemar's.) The data's own signs count as one choice, so p is never 0
    (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).
    """
    values = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    seen = abs(values.sum()) * (1 - 1e-9)  # the same sum in another order is as far
    far = 0
    for done in range(0, resamples, _CHUNK):
        signs = rng.integers(0, 2, size=(min(_CHUNK, resamples - done), len(values)), dtype=np.int8)
        far += int((np.abs((2.0 * signs - 1.0) @ values) >= seen).sum())
    return (1 + far) / (1 + resamples)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p corrected for looking at all of them, in their order.

    The chance that any metric at all which did not change comes out below 5% is then at most 5%,
    however the metrics hang together (Holm 1979, Scand. J. Stat. 6:65): the smallest p counts as
    often as there are metrics, the next once less, and none less than the one before it.
    """
    corrected = [0.0] * len(ps)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = least
    return corrected


def detectable(differences: Sequence[float] | Values) -> float | None:
    """Smallest true mean change found with 80% power at 5% two-sided, given this spread and n.

    None where the differences have no spread to tell it by.
    """
    normal = NormalDist()
    z = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    return z * stderr(differences) or None


def verdict(interval: Interval, margin: float, n: int) -> Verdict:
    """What an interval of a change over n questions says; precedence as in the module's docstring."""
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
    """The verdict over several metrics: the weakest one's."""
    order: tuple[Verdict, ...] = ("tax", "inconclusive", "gain", "no tax", "no change")
    return next(candidate for candidate in order if candidate in verdicts)


def unchanged(kl: float | None, changed: float) -> bool:
    """Whether a model is, for all that was measured, the one it was.

    Args:
        kl: KL(after ‖ before) a token; None: not known.
        changed: share of the items judged otherwise than before.
    """
    return kl is not None and kl < KL_NEAR_ZERO and changed <= CHANGED_NEAR_ZERO
