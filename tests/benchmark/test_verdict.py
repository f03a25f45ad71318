"""The verdict on benefit and cost: a wrecked model is never called a gain, and nothing unjudged passes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forty2.benchmark.compare import Change
from forty2.benchmark.stats import Values, Verdict, bootstrap, verdict
from forty2.benchmark.verdict import (
    HELD_OUT,
    CostChange,
    TaskChange,
    benefit_of,
    costs_of,
    sentence,
    word,
)
from forty2.recipe.schema import Cost


def change(old: Values, new: Values, margin: float = 0.01, span: float = 1.0) -> Change:
    found = bootstrap(new - old, least=-span, most=span, resamples=2000)
    return Change(
        before=float(old.mean()),
        after=float(new.mean()),
        difference=float((new - old).mean()),
        low=found.low,
        high=found.high,
        stderr=0.0,
        detectable=None,
        n=len(old),
        better=0,
        worse=0,
        p=1.0,
        p_holm=1.0,
        verdict=verdict(found, margin, len(old)),
    )


def shares(n: int, before: int, lost: int, won: int) -> Change:
    """Of n items, `before` are right; then `lost` of them are wrong, and `won` others right."""
    old = np.array([1.0] * before + [0.0] * (n - before))
    new = old.copy()
    new[:lost], new[n - won :] = 0.0, 1.0
    return change(old, new)


def texts(before: float, after: float, n: int = 8) -> Change:
    """Perplexities of n texts, all of which change by about the same factor."""
    spread = np.linspace(-0.1, 0.1, n)
    old, new = -math.log(before) + spread, -math.log(after) + 0.8 * spread
    return change(old, new, span=math.inf)


GAIN = shares(400, 120, 10, 40)
TASKS = {
    "truthfulqa": TaskChange(("mc1",), "gain"),
    "behaviour": TaskChange(("prefers", "no leak", "right"), "inconclusive"),
    "perplexity": TaskChange(("log p of texts",), "tax"),
}


def judged(facts: Change, perplexity: Change, cost: Cost | None = None) -> tuple[str, str]:
    metrics = {"mc1": GAIN, "right": facts, "log p of texts": perplexity}
    costs = costs_of(metrics, TASKS, "truthfulqa", cost or Cost())
    said = sentence("truthfulqa", "TruthfulQA", "gain", {"MC1": GAIN}, costs)
    return word("gain", costs), said


@pytest.mark.parametrize(
    ("facts", "perplexity", "said"),
    [
        # 200 SFT steps at 8e-4 on the starter: facts 42% → 18%, perplexity 42.8 → 67.5
        (shares(50, 21, 13, 1), texts(42.8, 67.5), "perplexity 42.8 → 67.5"),
        # SFT and DPO on a 0.5B model: facts 42% → 30%, perplexity 65 → 609
        (shares(50, 21, 9, 3), texts(65, 609), "perplexity 65.0 → 609.0"),
    ],
)
def test_a_wrecked_model_is_no_gain(facts: Change, perplexity: Change, said: str) -> None:
    found, text = judged(facts, perplexity)
    assert found == "tax"
    assert text.startswith("Better on TruthfulQA: MC1 0.300 → 0.375") and said in text
    assert "no measurable cost" not in text


def test_a_certain_loss_of_facts_is_named_with_both_shares() -> None:
    found, text = judged(shares(50, 21, 13, 1), texts(42.8, 42.8))
    assert found == "tax" and "worse on plain facts: 42% → 18%" in text


def test_a_gain_without_cost_is_a_gain() -> None:
    found, text = judged(shares(50, 21, 0, 0), texts(42.8, 43.0))
    assert found == "gain"
    assert text.endswith("; no measurable cost on plain facts and neutral text.")


def test_everything_that_cost_nothing_is_listed_once() -> None:
    named = ("behaviour", ("right",)), ("perplexity", ("log p of texts",)), ("mmlu", ("a", "b"))
    tasks = {task: TaskChange(metrics, "no tax") for task, metrics in named}
    same = {name: shares(5000, 2500, 10, 10) for name in ("right", "a", "b")}
    costs = costs_of({**same, "log p of texts": texts(42.8, 42.9)}, tasks, "", Cost())
    assert sentence("", "", "no tax", {}, costs).endswith(
        "; no measurable cost on plain facts, neutral text and MMLU."
    )


def test_a_cost_of_which_too_few_items_speak_is_not_passed() -> None:
    found, text = judged(shares(8, 4, 0, 0), texts(42.8, 42.8))
    assert found == "gain, cost unclear"
    assert text.endswith("too few items to judge the cost on plain facts (8).")
    # the margin that the documentation names: 50 equal items do exclude a loss of 0.08
    for margin, expected in ((0.08, "gain"), (0.07, "gain, cost unclear")):
        cost = Cost(facts=margin)
        assert judged(shares(50, 21, 0, 0), texts(42.8, 42.8), cost)[0] == expected


def test_the_recipe_states_the_margins() -> None:
    worse = texts(40, 43)
    assert judged(shares(50, 21, 0, 0), worse)[0] == "tax"
    assert judged(shares(50, 21, 0, 0), worse, Cost(perplexity=1.1))[0] == "gain"
    other = {"truthfulqa": TASKS["truthfulqa"], "mmlu": TaskChange(("accuracy",), "inconclusive")}
    metrics = {"mc1": GAIN, "accuracy": shares(300, 150, 10, 8)}
    answers = [
        costs_of(metrics, other, "truthfulqa", Cost(tasks=tasks))[0].answer
        for tasks in ({}, {"mmlu": 0.01})
    ]
    assert answers == ["none", "cannot tell"]


def test_a_cost_that_was_not_measured_is_said() -> None:
    assert sentence("truthfulqa", "ours", "gain", {"MC1": GAIN}, ()).endswith(
        "; the cost was not measured."
    )
    assert sentence(
        "truthfulqa", "ours", "inconclusive", {"MC1": shares(8, 4, 1, 2)}, ()
    ).startswith("8 items of ours are too few to tell")


def test_a_model_that_is_still_the_base_is_said_to_be() -> None:
    costs = costs_of(
        {"right": shares(8, 4, 0, 0)},
        {"behaviour": TASKS["behaviour"]._replace(judged=("right",))},
        "",
        Cost(),
    )
    assert [cost.answer for cost in costs] == ["cannot tell"]
    assert word("no change", costs) == word("no change", ()) == "no change"
    said = sentence("truthfulqa", "ours", "no change", {}, ())
    assert said == "As far as was measured, this is still the base model."


def test_another_benchmark_s_cost_names_it_and_its_metric() -> None:
    metrics = {"accuracy": shares(300, 150, 90, 8)}
    costs = costs_of(metrics, {"mmlu": TaskChange(("accuracy",), "tax")}, "truthfulqa", Cost())
    assert [(cost.name, cost.answer) for cost in costs] == [("MMLU: accuracy", "worse")]


WON, LOST, EQUAL, FEW = (
    shares(90, 45, 2, 22),
    shares(60, 40, 25, 1),
    shares(5000, 2500, 10, 10),
    shares(8, 4, 1, 2),
)


@pytest.mark.parametrize(
    ("changes", "single", "said"),
    [
        (
            {"pairs right": WON, "prompts passed": LOST},
            (),
            "Better on your held-out rows: the better answer of 90 held-out pairs 50% → 72% (+22 points, "
            "95% interval +13 to +32); worse on your held-out rows: passed of 60 eval prompts 67% → 27% "
            "(-40 points, 95% interval -53 to -27); the cost was not measured.",
        ),
        (
            {"pairs right": EQUAL, "ratings right": FEW},
            (),
            "No measurable change on 5,000 held-out pairs; 8 held-out answers are too few to tell; the "
            "cost was not measured.",
        ),
        ({}, ("pairs right",), "1 held-out pair is too few to tell; the cost was not measured."),
    ],
)
def test_each_kind_of_held_out_rows_has_a_clause(
    changes: dict[str, Change], single: tuple[str, ...], said: str
) -> None:
    assert sentence(HELD_OUT, "your held-out rows", "gain", changes, (), single) == said


@pytest.mark.parametrize(
    ("task", "verdicts", "benefit"),
    [
        (HELD_OUT, ["gain", "inconclusive"], "gain"),
        (HELD_OUT, ["gain", "tax"], "tax"),
        ("truthfulqa", ["gain", "inconclusive"], "inconclusive"),
        (HELD_OUT, [], "inconclusive"),
    ],
)
def test_a_gain_on_some_held_out_rows_counts_if_none_lost(
    task: str, verdicts: list[Verdict], benefit: str
) -> None:
    assert benefit_of(task, verdicts) == benefit


@pytest.mark.parametrize(("n", "said"), [(1, "1 item of ours is"), (2, "2 items of ours are")])
def test_too_few_items_are_counted(n: int, said: str) -> None:
    few = {"MC1": shares(max(n, 2), 1, 0, 0)} if n > 1 else {}
    assert sentence("truthfulqa", "ours", "inconclusive", few, ()).startswith(f"{said} too few")


@pytest.mark.parametrize(
    ("benefit", "changes", "said"),
    [
        (
            "gain",
            {"MC1": WON, "MC2": WON, "MC3": EQUAL},
            "Better on ours: MC1 0.500 → 0.722 (+0.222, 95% interval +0.133 to +0.322), MC2 0.500 → 0.722 "
            "(+0.222, 95% interval +0.133 to +0.322); the cost was not measured.",
        ),
        (
            "tax",
            {"MC1": LOST, "MC2": EQUAL},
            "Worse on ours: MC1 0.667 → 0.267 (-0.400, 95% interval -0.533 to -0.267); the cost was not "
            "measured.",
        ),
        (
            "no tax",
            {"MC1": EQUAL},
            "No measurable change on ours; the cost was not measured.",
        ),
        (
            "inconclusive",
            {"MC1": FEW, "MC2": EQUAL},
            "5,000 items of ours are too few to tell; the cost was not measured.",
        ),
    ],
)
def test_a_benchmark_s_metrics_are_named_with_their_intervals(
    benefit: Verdict, changes: dict[str, Change], said: str
) -> None:
    assert sentence("truthfulqa", "ours", benefit, changes, ()) == said


FACTS = CostChange("plain facts", "plain facts:", "42%", "18%", 50, 0.05, "worse")
TEXT = CostChange("neutral text", "neutral text: perplexity", "20.0", "30.0", 8, 0.03, "worse")
MMLU = CostChange("MMLU", "MMLU: accuracy", "0.500", "0.510", 1200, 0.01, "none")


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        (
            (FACTS, TEXT, MMLU),
            "worse on plain facts: 42% → 18% and neutral text: perplexity 20.0 → 30.0",
        ),
        (
            (FACTS, TEXT._replace(answer="cannot tell"), MMLU._replace(answer="cannot tell")),
            "worse on plain facts: 42% → 18%; too few items to judge the cost on neutral text (8) and "
            "MMLU (1,200)",
        ),
        ((MMLU, MMLU._replace(name="MMLU: humanities")), "no measurable cost on MMLU"),
        (
            (MMLU._replace(better=True), TEXT._replace(answer="none")),
            "no measurable cost on neutral text; better on MMLU: accuracy 0.500 → 0.510, too",
        ),
        ((MMLU._replace(better=True),), "better on MMLU: accuracy 0.500 → 0.510, too"),
        (
            (FACTS, MMLU._replace(better=True)),
            "worse on plain facts: 42% → 18%; better on MMLU: accuracy 0.500 → 0.510, too",
        ),
    ],
)
def test_what_it_cost_is_named_worst_first(costs: tuple[CostChange, ...], said: str) -> None:
    assert sentence("truthfulqa", "ours", "no tax", {}, costs) == (
        f"No measurable change on ours; {said}."
    )


def test_a_change_that_is_called_one_never_looks_like_none() -> None:
    fields = {"stderr": 0.0, "detectable": None, "better": 0, "worse": 0, "p": 0.0, "p_holm": 0.0}
    tiny = Change(3.8638, 3.8602, -0.0036, -0.0048, -0.0024, n=42, verdict="gain", **fields)  # type: ignore[arg-type]
    share = Change(0.6214, 0.6236, 0.0022, 0.0004, 0.0041, n=4000, verdict="gain", **fields)  # type: ignore[arg-type]
    changes = {"chat loss": tiny, "pairs right": share}
    said = sentence(HELD_OUT, "", "gain", changes, ())
    assert "3.864 → 3.860 nats a token (95% interval of the change -0.005 to -0.002)" in said
    assert "62.14% → 62.36% (+0.22 points, 95% interval +0.04 to +0.41)" in said
    slight = texts(42.81, 42.79)
    (cost,) = costs_of({"p": slight}, {"perplexity": TaskChange(("p",), "gain")}, HELD_OUT, Cost())
    assert cost.answer == "none" and (cost.before == cost.after) != cost.better
