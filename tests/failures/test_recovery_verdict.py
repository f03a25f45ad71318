"""The verdict on a recovery: each word where it belongs, and no item without a verdict counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from forty2.benchmark.verdict import Answer, CostChange
from forty2.failures.folder import Item
from forty2.failures.recovery_verdict import judge_recovery

N = 400


def items(groups: Sequence[int] = range(N)) -> list[Item]:
    return [
        Item(
            id=str(n),
            stratum="code",
            messages=({"role": "user", "content": "?"},),
            verifier=None,
            reference=None,
            half="untouched",
            group=group,
            source="x",
        )
        for n, group in enumerate(groups)
    ]


def passes(rate: float, seeds: int, n: int = N) -> list[dict[str, bool]]:
    """Verdicts with this pass rate, the same items for every arm as far as they go."""
    order = np.random.default_rng(0).permutation(n)
    rng = np.random.default_rng(int(1000 * rate))
    found = []
    for _ in range(seeds):
        passed = set(order[: int(rate * n)].tolist())
        for flipped in rng.choice(n, 8, replace=False).tolist():  # seeds differ a little
            passed ^= {flipped}
        found.append({str(i): i in passed for i in range(n)})
    return found


def arms(targeted: float, random: float, none: float) -> dict[str, list[dict[str, bool]]]:
    return {
        "targeted": passes(targeted, 3),
        "random": passes(random, 3),
        "none": passes(none, 1),
    }


def cost(answer: Answer) -> CostChange:
    return CostChange("neutral text", "neutral text: perplexity", "20.0", "30.0", 50, 0.05, answer)


@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ((0.6, 0.4, 0.2), "helps more than random"),
        ((0.4, 0.4, 0.2), "helps like random"),
        ((0.4, 0.6, 0.2), "helps less than random"),
        ((0.2, 0.4, 0.2), "does not help"),
        ((0.2, 0.1, 0.4), "does not help"),
    ],
)
def test_each_word_is_given_where_it_belongs(rates: tuple[float, float, float], word: str) -> None:
    found = judge_recovery(items(), arms(*rates), [cost("none")])
    assert found.verdict == word
    assert found.sentence.lower().startswith(word)
    assert "400 untouched items" in found.sentence
    assert "no loss beyond the margin of neutral text" in found.sentence
    for one in found.differences:
        assert str(one) in found.sentence or one.arm == "random"
        assert one.low < one.difference < one.high


def test_a_loss_says_that_it_is_worse() -> None:
    assert (
        "worse than the model as it was, -"
        in judge_recovery(items(), arms(0.2, 0.2, 0.5), []).sentence
    )


def test_harm_elsewhere_comes_before_any_gain() -> None:
    found = judge_recovery(items(), arms(0.6, 0.4, 0.2), [cost("none"), cost("worse")])
    assert found.verdict == "harms elsewhere"
    assert "neutral text: perplexity 20.0 → 30.0; helps more than random" in found.sentence


def test_a_cost_that_was_not_measured_or_on_too_few_items_is_said() -> None:
    assert "was not measured" in judge_recovery(items(), arms(0.6, 0.4, 0.2), None).sentence
    unclear = judge_recovery(items(), arms(0.6, 0.4, 0.2), [cost("cannot tell")])
    assert unclear.verdict == "helps more than random"
    assert "too few items to exclude a loss beyond the margin" in unclear.sentence


def test_items_without_a_verdict_in_some_arm_are_in_no_comparison() -> None:
    passed = arms(0.6, 0.4, 0.2)
    for place, arm in enumerate(passed):
        del passed[arm][0][str(place)]
    found = judge_recovery(items(), passed, [])
    assert (found.items, found.unscored) == (N - 3, 3)


def test_near_duplicates_count_as_one_group() -> None:
    """Ten times the same forty questions are no more evidence than forty."""
    alone, copied = arms(0.6, 0.4, 0.2), arms(0.6, 0.4, 0.2)
    forty = {
        arm: [{str(i): one[str(i)] for i in range(40)} for one in seeds]
        for arm, seeds in alone.items()
    }
    for seeds in copied.values():
        for one in seeds:
            one.update({str(i): one[str(i % 40)] for i in range(N)})
    small = judge_recovery(items(range(40)), forty, [])
    large = judge_recovery(items([n % 40 for n in range(N)]), copied, [])
    blind = judge_recovery(items(), copied, [])
    assert large.groups == 40 and large.items == N
    for few, many, naive in zip(
        small.differences, large.differences, blind.differences, strict=True
    ):
        assert many.difference == pytest.approx(few.difference)
        assert many.low == pytest.approx(few.low, abs=0.02)
        assert naive.high - naive.low < many.high - many.low


def test_too_few_groups_cannot_be_told() -> None:
    passed = arms(0.6, 0.4, 0.2)
    found = judge_recovery(items([n % 5 for n in range(N)]), passed, [cost("none")])
    assert found.verdict == "cannot be told" and "5 groups" in found.sentence
    assert judge_recovery(items([0] * N), passed, [cost("worse")]).verdict == "harms elsewhere"
