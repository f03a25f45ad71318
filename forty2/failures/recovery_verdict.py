"""Did teaching the failures help? Changes between the arms of a recovery, and the verdict in a sentence.

    helps more than random   better than the model as it was, and than the same amount of random data
    helps like random        better than the model as it was; against random data no difference shows
    helps less than random   better than the model as it was, and worse than random data
    does not help            no gain shows over the model as it was
    harms elsewhere          whatever else it does: a loss in general beyond the recipe's margin
    cannot be told           too few groups of scored items

Every interval is over seeds and items (`runs.seed_statistics.interval`), with near duplicates drawn
together. Items that any arm or seed left unscored are in no comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from forty2.benchmark.stats import FEWEST, Values
from forty2.benchmark.verdict import CostChange
from forty2.failures.arms import NONE
from forty2.failures.folder import Item
from forty2.runs.seed_statistics import interval

Word = Literal[
    "helps more than random",
    "helps like random",
    "helps less than random",
    "does not help",
    "harms elsewhere",
    "cannot be told",
]
Passed = Mapping[str, Sequence[Mapping[str, bool]]]
"""By arm, for each seed (of `none`, once): whether each scored item passed."""


class Difference(NamedTuple):
    """How much larger the pass rate of one arm is than another's, on the same items."""

    arm: str
    than: str
    difference: float
    low: float
    """Lower end of the 95% interval over seeds and groups of items."""
    high: float

    def __str__(self) -> str:
        mean, low, high = (100 * value for value in (self.difference, self.low, self.high))
        return f"{mean:+.1f} points [{low:.1f}, {high:.1f}]"


class Recovery(NamedTuple):
    """The changes on the untouched half, and the verdict."""

    items: int
    """Items that every arm and seed has a verdict on."""
    groups: int
    """Groups of near duplicates that they are in."""
    unscored: int
    """Items left out, because an arm or seed has no verdict on them."""
    rates: dict[str, float]
    """Mean pass rate over seeds and compared items, by arm."""
    differences: tuple[Difference, ...]
    verdict: Word
    sentence: str


def judge_recovery(
    items: Sequence[Item], passed: Passed, costs: Sequence[CostChange] | None
) -> Recovery:
    """Compare the arms, and say whether the targeted one helps.

    Args:
        items: the untouched half.
        passed: of the arms targeted, random and none.
        costs: of the targeted arm, in general; None: nothing general was measured.
    """
    scored = [
        item for item in items if all(item.id in one for seeds in passed.values() for one in seeds)
    ]
    groups = [item.group for item in scored]
    counts = len(scored), len(set(groups)), len(items) - len(scored)
    if counts[1] < FEWEST:
        sentence = (
            f"Cannot be told: {counts[0]:,} untouched items in {counts[1]:,} groups of similar "
            f"questions have a verdict in every arm, and {FEWEST} groups are the fewest to compare; "
            f"{_elsewhere(costs)}."
        )
        word: Word = "harms elsewhere" if _worse(costs) else "cannot be told"
        return Recovery(*counts, {}, (), word, sentence)
    values = {arm: _values(scored, seeds) for arm, seeds in passed.items()}
    pairs = (("targeted", "random"), ("targeted", NONE), ("random", NONE))
    differences = tuple(_difference(values, *pair, groups) for pair in pairs)
    more, over, _ = differences
    found = _word(more, over)
    sentence = f"{_clause(found, more, over, counts[0])}; {_elsewhere(costs)}."
    word = found
    if _worse(costs):
        word, sentence = (
            "harms elsewhere",
            f"harms elsewhere: {_elsewhere(costs)}; {_clause(found, more, over, counts[0])}.",
        )
    rates = {arm: float(found.mean()) for arm, found in values.items()}
    return Recovery(*counts, rates, differences, word, sentence[0].upper() + sentence[1:])


def _values(items: Sequence[Item], seeds: Sequence[Mapping[str, bool]]) -> Values:
    """Return 1 for a pass and 0 for a failure, (S, n)."""
    return np.array([[one[item.id] for item in items] for one in seeds], np.float64)


def _difference(
    values: Mapping[str, Values], arm: str, than: str, groups: Sequence[int]
) -> Difference:
    # `none` has one row, for every seed
    difference = values[arm] - values[than]
    ends = interval(difference, -1.0, 1.0, groups)
    return Difference(arm, than, float(difference.mean()), *ends)


def _word(more: Difference, over: Difference) -> Word:
    if over.low <= 0:
        return "does not help"
    if more.low > 0:
        return "helps more than random"
    return "helps less than random" if more.high < 0 else "helps like random"


def _clause(word: Word, more: Difference, over: Difference, items: int) -> str:
    """Say one of the words, with the intervals that it rests on."""
    on = f"on {items:,} untouched items"
    if word in ("helps more than random", "helps less than random"):
        return f"{word}: {more} {on}, and {over} over the model as it was"
    if word == "helps like random":
        return f"{word}: {over} over the model as it was {on}, but {more} over as much random data"
    shown = "worse than the model as it was" if over.high < 0 else "no gain shows"
    return f"{word}: {shown}, {over} {on}, and {more} over as much random data"


def _worse(costs: Sequence[CostChange] | None) -> bool:
    return any(cost.answer == "worse" for cost in costs or ())


def _elsewhere(costs: Sequence[CostChange] | None) -> str:
    """Say what training cost in general."""
    if not costs:
        return "what it costs elsewhere was not measured"
    worse = [
        f"{cost.name} {cost.before} → {cost.after}" for cost in costs if cost.answer == "worse"
    ]
    if worse:
        return f"a loss beyond the margin of {', '.join(worse)}"
    unclear = [cost.name for cost in costs if cost.answer == "cannot tell"]
    if unclear:
        return f"too few items to exclude a loss beyond the margin of {', '.join(unclear)}"
    names = list(dict.fromkeys(cost.where for cost in costs))
    return f"no loss beyond the margin of {', '.join(names)}"
