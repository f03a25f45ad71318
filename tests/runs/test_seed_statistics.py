"""Intervals over seeds and items: where they lie, what they cover, and the verdicts from them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from forty2.benchmark.results import Stage, read_measured
from forty2.benchmark.stats import Values, bootstrap
from forty2.benchmark.tasks.held_out import CHAT_LOSS, HeldOut
from forty2.recipe.schema import Cost
from forty2.runs.seed_statistics import (
    changes_of,
    insight,
    interval,
    score_of,
    step_of,
    with_common_rows,
)


def test_with_seeds_alike_the_interval_is_that_of_the_items() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert interval(np.stack([values] * 3)) == pytest.approx(bootstrap(values))


def test_with_items_alike_the_interval_is_student_s() -> None:
    """t of 2 degrees of freedom is 4.303 at 97.5%: mean 0 and standard error 1/√3 of -1, 0, 1."""
    found = interval(np.repeat([[-1.0], [0.0], [1.0]], 20, axis=1))
    assert found == pytest.approx((-4.303 / np.sqrt(3), 4.303 / np.sqrt(3)), rel=0.08)


def test_items_that_flicker_are_not_taken_for_a_spread_between_seeds() -> None:
    """Seeds that differ by no more than their items explain: no wider than items alone, nearly."""
    rng = np.random.default_rng(1)
    flicker = rng.normal(size=(3, 400))
    flicker -= flicker.mean(axis=1, keepdims=True)
    assert interval(flicker) == pytest.approx(bootstrap(flicker.mean(axis=0)))


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_the_interval_covers_the_truth_as_often_as_it_says(between: float) -> None:
    rng = np.random.default_rng(2)
    trials, covered = 200, 0
    for _ in range(trials):
        found = interval(
            rng.normal(0, between, (3, 1))
            + rng.normal(0, 0.3, (1, 60))
            + rng.normal(0, 0.3, (3, 60))
        )
        covered += found.low <= 0 <= found.high
    assert 0.91 * trials <= covered


@pytest.mark.parametrize("shared", [0, 20, 40])
def test_it_covers_the_truth_where_seeds_have_other_items_in_other_numbers(shared: int) -> None:
    """Of 40 to 60 items of each of three seeds, some are the same in all."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        counts = [n - shared for n in (40, 50, 60)]
        values = np.full((3, shared + sum(counts)), np.nan)
        items, ends = rng.normal(size=values.shape[1]), np.cumsum([shared, *counts])
        for seed, (start, end) in enumerate(itertools.pairwise(ends)):
            mine = [*range(shared), *range(start, end)]
            values[seed, mine] = items[mine] + rng.normal(size=len(mine)) + 0.2 * rng.normal()
        found = interval(values)
        hits += found.low <= 0 <= found.high
    assert 182 <= hits <= 200  # 91 to 100%


def test_an_interval_stays_where_its_metric_can_be() -> None:
    """Two seeds that differ leave everything open, and no more than everything."""
    told = np.repeat([[0.1], [0.5]], 10, axis=1)
    assert score_of("mc2", told)[:3] == pytest.approx((0.3, 0, 1))
    assert score_of("KL", told).low == 0 and score_of("KL", told).high > 1
    assert score_of("log p of texts", -told).high == 0
    tokens = score_of("reply tokens", 100 + told)
    assert tokens.low < tokens.value == pytest.approx(100.3) and tokens.high > 100.3
    change = changes_of({"mc2": 0 * told}, {"mc2": told}, 0.01, same=False)["mc2"]
    assert (change.before, change.low, change.high) == (0, -1, 1)


def test_changes_are_paired_and_have_the_verdicts_of_compare() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(size=(3, 100))
    up, level = before + 0.1, before + rng.normal(0, 1e-3, before.shape)
    scores = {"up": before, "level": before, "down": up, "KL": before}
    after = {"up": up, "level": level, "down": before, "KL": up}
    found = changes_of(scores, after, 0.05, same=False)
    assert {name: one.verdict for name, one in found.items()} == {
        "up": "gain",
        "level": "no tax",
        "down": "tax",
    }
    assert found["up"].difference == pytest.approx(0.1)
    assert found["up"].low > 0.05 and found["up"].high < 0.15  # questions differ far more
    assert score_of("KL", before**2).high - score_of("KL", before**2).low > 0.2
    assert {one.verdict for one in changes_of(scores, after, 0.05, same=True).values()} == {
        "no change"
    }


def test_where_lower_is_better_a_fall_is_the_gain() -> None:
    loss = 2.0 + np.random.default_rng(4).random((3, 30))
    found = changes_of({CHAT_LOSS: loss}, {CHAT_LOSS: loss - 0.5}, 0.01, same=False)[CHAT_LOSS]
    assert found.verdict == "gain" and found.difference == pytest.approx(-0.5)
    back = changes_of({CHAT_LOSS: loss - 0.5}, {CHAT_LOSS: loss}, 0.01, same=False)[CHAT_LOSS]
    assert back.verdict == "tax"


# --- stages, judged by benefit and cost -------------------------------------------------------------


def chat(row: str, logp: float, tokens: int = 10) -> dict[str, Any]:
    return {
        "kind": "chat",
        "phase": "sft",
        "row": row,
        "tokens": [tokens],
        "logps": [logp],
        "base_logps": [-20.0],
    }


def stage(name: str, own: list[dict[str, Any]], right: list[bool], logp: float = -300.0) -> Stage:
    """A stage with held-out rows, plain facts, neutral texts and a KL."""
    facts = [
        {"id": f"f{n}", "gate": "leak", "good": 0.0, "bad": -1.0, "leak": False, "right": one}
        for n, one in enumerate(right)
    ]
    texts = {f"t{n}": {"logp": logp + n, "tokens": 100} for n in range(8)}
    found = {
        "behaviour": {
            "items": facts,
            "leak_rate": 0.0,
            "right_rate": float(np.mean(right)),
            "preference": {"leak": 1.0, "all": 1.0},
        },
        "perplexity": {
            "items": texts,
            "perplexity": math.exp(-sum(one["logp"] for one in texts.values()) / 800),
        },
        "divergence": {"kl": 0.1, "items": [{"material": "texts", "kl": [0.1, 0.1]}]},
    }
    if own:
        found["held_out"] = {"items": own, **HeldOut.figures(HeldOut.items(own))}
    read = read_measured({"stage": name, **found}, name)
    assert isinstance(read, Stage)
    return read


def test_held_out_rows_count_where_every_stage_has_them_with_the_weights_that_are_left() -> None:
    one = stage("base", [chat("a", -20, 10), chat("b", -40, 20), chat("c", -9, 3)], [True])
    other = stage("dpo only", [chat("b", -30, 20), chat("c", -6, 3), chat("d", -1, 90)], [True])
    found = with_common_rows([one, other])
    assert [[i.record["row"] for i in s["held_out"].items] for s in found] == [["b", "c"]] * 2
    weighted = [item.scores[CHAT_LOSS] for item in found[0]["held_out"].items]
    assert np.mean(weighted) == pytest.approx(49 / 23)  # nats a token, over both
    without = stage("sft", [], [True])
    assert all("held_out" not in s.results for s in with_common_rows([one, without]))
    apart = stage("sft", [chat("z", -1)], [True])
    assert all("held_out" not in s.results for s in with_common_rows([one, apart]))
    twice = stage("sft", [chat("a", -1), chat("a", -2)], [True])
    assert [len(s["held_out"].items) for s in with_common_rows([twice, twice])] == [2, 2]
    assert [len(s["held_out"].items) for s in with_common_rows([twice, one])] == [1, 1]


@pytest.mark.parametrize(
    ("facts", "logp", "word", "said"),
    [
        (21, -300.0, "gain", "no measurable cost on plain facts and neutral text."),
        (9, -300.0, "tax", "worse on plain facts: 42% → 18%."),
        (21, -350.0, "tax", "worse on neutral text: perplexity"),
    ],
)
def test_a_variant_is_judged_by_benefit_and_cost_over_seeds(
    facts: int, logp: float, word: str, said: str
) -> None:
    """The measured case of a wrecked model: the held-out chats gain, and 42% of facts become 18%."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(3):
        noise = rng.normal(0, 0.5, 30)
        right = [n < 21 for n in range(50)]
        before.append(stage("base", [chat(f"x{n}", -20.0) for n in range(30)], right))
        own = [chat(f"x{n}", -15.0 + noise[n]) for n in range(30)]
        after.append(stage("sft", own, [n < facts for n in range(50)], logp))
    step = step_of(before, after, 0.01, Cost(), same=False)
    assert step.metrics[CHAT_LOSS].verdict == "gain"
    assert step.verdict == word and said in step.sentence
    assert step.sentence.startswith("Better on your held-out rows: loss on 30 held-out chats 2.00")
    assert step_of(before, before, 0.01, Cost(), same=True).verdict == "no change"


def leaking(*shares: float) -> list[Values]:
    """Leaks of three seeds on 40 prompts, of each share the first ones, and one more or less."""
    return [
        np.stack([np.arange(40) < round(40 * share) + seed for seed in (-1, 0, 1)]).astype(float)
        for share in shares
    ]


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ((0.1, 0.5, 0.1), "holds"),
        ((0.5, 0.1, 0.1), "does not hold"),
        ((0.1, 0.4, 0.8), "does not hold"),
        ((0.1, 0.5, 0.5), "cannot be told"),
        ((0.1, 0.1, 0.1), "cannot be told"),
    ],
)
def test_the_insight_is_judged_by_both_intervals(shares: tuple[float, ...], says: str) -> None:
    found = insight(*leaking(*shares))
    assert found.says == says and f" {says} here: " in found.sentence
    assert f"the base leaks on {shares[0]:.1%}" in found.sentence
    if shares[1] != shares[0]:
        assert f"SFT changes that by {100 * (shares[1] - shares[0]):+.1f} points" in found.sentence
    assert found.sentence.endswith("(3 seeds, 40 prompts).")


def test_groups_of_one_item_change_nothing_and_copies_add_no_certainty() -> None:
    rng = np.random.default_rng(4)
    values = (rng.random((3, 60)) < 0.5).astype(float)
    plain = interval(values, -1.0, 1.0)
    assert interval(values, -1.0, 1.0, list(range(60))) == pytest.approx(plain)
    copied = np.repeat(values, 5, axis=1)
    places = np.repeat(np.arange(60), 5).tolist()
    assert interval(copied, -1.0, 1.0, places) == pytest.approx(plain)
