"""The claim of a sweep: paired differences, and a winner only where one is apart from all others."""

from __future__ import annotations

import numpy as np
import pytest

from forty2.benchmark.task import SHARE
from forty2.runs.sweep.metrics import Measured, Objective
from forty2.runs.sweep.results import Replicates, claim, difference, stacked, summaries

OBJECTIVE = Objective("mc2", "mc2", 1.0)


def scores(mean: float, spread: float = 0.01, *, n: int = 40, first: int = 0) -> Replicates:
    rng = np.random.default_rng(0)
    values = mean + spread * rng.standard_normal((3, n))
    names = tuple((f"q{first + i}", 0) for i in range(n))
    return Replicates(0.0, 1.0, values, names)


def test_the_best_is_the_winner_only_if_it_is_apart_from_each_other_one() -> None:
    rng = np.random.default_rng(1)
    low, high = scores(0.5), scores(0.6)
    noisy = high._replace(values=high.values + 0.2 * rng.standard_normal((3, 1)))
    won = claim({"c001": {"mc2": low}, "c002": {"mc2": high}}, OBJECTIVE)
    assert won.winner == "c002" and won.against["c001"].low > 0 and "than c001" in won.sentence
    lost = claim({"c001": {"mc2": noisy}, "c002": {"mc2": low}, "c003": {"mc2": high}}, OBJECTIVE)
    assert lost.winner is None and lost.best is not None and "overlap" in lost.sentence
    downward = OBJECTIVE._replace(sign=-1.0)
    assert claim({"c001": {"mc2": low}, "c002": {"mc2": high}}, downward).winner == "c001"


@pytest.mark.parametrize(
    ("others", "left", "says"),
    [
        ({}, 0, "nothing to compare with"),
        ({"c002": scores(0.1)}, 3, "3 configurations are not finished"),
        ({"c002": scores(0.1)}, 1, "1 configuration is not finished"),
        ({"c002": scores(0.1, first=9)}, 0, "measured on other items"),
    ],
)
def test_there_is_no_winner_without_a_comparison(
    others: dict[str, Replicates], left: int, says: str
) -> None:
    every = {"c001": {"mc2": scores(0.6)}, **{name: {"mc2": one} for name, one in others.items()}}
    found = claim(every, OBJECTIVE, left)
    assert found.winner is None and found.best == "c001" and says in found.sentence


def test_too_few_items_make_no_winner() -> None:
    few = {"c001": {"mc2": scores(0.9, n=5)}, "c002": {"mc2": scores(0.1, n=5)}}
    assert "too few items" in claim(few, OBJECTIVE).sentence
    assert claim({}, OBJECTIVE).best is None


def test_differences_are_paired_by_seed_and_item() -> None:
    """A large spread between items and seeds that both share does not hide a small difference."""
    rng = np.random.default_rng(2)
    shared = 0.5 + 0.1 * rng.standard_normal((3, 40)) + 0.1 * rng.standard_normal((3, 1))
    one = scores(0.0)._replace(values=shared + 0.01)
    found = difference(one, one._replace(values=shared), 1.0)
    assert found is not None and found.value == pytest.approx(0.01)
    assert difference(one, one._replace(items=one.items[:2]), 1.0) is None


def test_seeds_with_other_held_out_rows_are_put_together_row_by_row() -> None:
    def measured(**scores: float) -> dict[str, Measured]:
        return {"mc2": Measured(SHARE, np.array([*scores.values()]), tuple(scores))}

    both = stacked([measured(a=1.0, b=0.5), measured(b=0.25, c=0.0, d=0.0)])["mc2"]
    assert both.items == (("a", 0), ("b", 0), ("c", 0), ("d", 0))
    nan = float("nan")
    np.testing.assert_array_equal(both.values, [[1.0, 0.5, nan, nan], [nan, 0.25, 0.0, 0.0]])
    summary = summaries({"mc2": both})["mc2"]
    assert summary["value"] == pytest.approx((0.75 + 0.25 / 3) / 2) and summary["n"] == 4
    twice = Measured(SHARE, np.array([1.0, 0.0]), ("a", "a"))
    assert stacked([{"mc2": twice}])["mc2"].items == (("a", 0), ("a", 1))
    other = stacked([measured(a=1.0, b=0.5, c=0.0), measured(b=0.25, c=0.0, d=0.0)])["mc2"]
    assert difference(both, other, 1.0) is None and difference(both, both, 1.0) is not None
    assert stacked([measured(a=1.0, b=1.0), {}]) == {} and stacked([]) == {}
