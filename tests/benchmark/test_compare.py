"""Two results of one benchmark: which differences are seen, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.benchmarks import random_result, result, summarized

import forty2
from forty2.benchmark import metrics, stats
from forty2.benchmark.compare import Change, Comparison, format_comparison
from forty2.benchmark.compare import compare as compare_measured
from forty2.benchmark.harness_form import as_samples
from forty2.benchmark.harness_samples import HarnessSamples
from forty2.benchmark.results import Result, Stage, read_measured
from forty2.benchmark.stage_scores import ALWAYS
from forty2.benchmark.task import Metric
from forty2.benchmark.tasks import gsm8k, task_class
from forty2.benchmark.tasks.held_out import HeldOut
from forty2.cli import main
from forty2.errors import BenchmarkError, RunError
from forty2.inference.generation import Reply
from forty2.recipe.schema import Cost


def compare(before: Any, after: Any, **options: Any) -> Comparison:
    """Read two parsed files, and compare them."""
    old, new = read_measured(before, "the result before"), read_measured(after, "the result after")
    return compare_measured(old, new, **options)


def test_results_are_compared_parsed_or_by_their_files(tmp_path: Path) -> None:
    before, after = random_result(20, seed=1), random_result(20, seed=2)
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, measured in zip(files, (before, after), strict=True):
        file.write_text(json.dumps(measured), "utf-8")
    wanted = compare(before, after)
    assert forty2.compare(before, after) == wanted
    assert forty2.compare(files[0], str(files[1])) == wanted
    with pytest.raises(RunError, match=r"none\.json"):
        forty2.compare(before, tmp_path / "none.json")


def test_a_real_change_is_found_and_its_reverse_is_its_mirror() -> None:
    before, after = random_result(300, seed=3), random_result(300, seed=3, lift=1.0)
    up, down = compare(before, after), compare(after, before)
    assert up.verdict == "gain, cost unclear"
    assert down.verdict == "tax"
    for name in metrics.METRICS:
        assert up.metrics[name].difference == pytest.approx(-down.metrics[name].difference)
        assert (up.metrics[name].better, up.metrics[name].worse) == (
            down.metrics[name].worse,
            down.metrics[name].better,
        )
    assert up.metrics["mc1"].p < 1e-6 and up.metrics["mc2"].p == 1 / (1 + stats.RESAMPLES)
    assert compare(before, after, resamples=99).metrics["mc2"].p == 0.01
    assert set(up.categories) == {"odd", "even"}


def test_results_of_a_stage_whose_metrics_have_one_name_are_both_compared() -> None:
    before, after = random_result(50, seed=3), random_result(50, seed=3, lift=1.0)

    def stage(first: dict[str, Any], second: dict[str, Any]) -> Stage:
        results = {"truthfulqa": first, "gsm8k": second}
        return Stage("it", {name: Result.from_json(one, name) for name, one in results.items()})

    found = compare_measured(stage(before, before), stage(before, after))
    assert found.metrics["mc1"].difference == 0 < found.metrics["gsm8k: mc1"].difference
    assert found.tasks["truthfulqa"].judged == ("mc1", "mc2", "mc3")
    assert found.tasks["gsm8k"].judged == ("gsm8k: mc1", "gsm8k: mc2", "gsm8k: mc3")
    assert found.tasks["truthfulqa"].verdict == found.verdict != "gain"
    assert found.tasks["gsm8k"].verdict == "gain"
    assert found.record()["tasks"]["gsm8k"]["verdict"] == "gain"


def test_a_stage_without_questions_of_its_own_is_judged_by_its_price() -> None:
    before, after = (
        Stage("it", {"perplexity": Result.from_json(perplexity_result(seed, right), "perplexity")})
        for seed, right in ((1, 0.9), (2, 0.3))
    )
    found = compare_measured(before, after)
    assert (found.questions, found.n, found.judged) == ("", 0, ())
    assert found.metrics["log p of texts"].verdict == found.verdict == "tax"
    text = format_comparison(found)
    assert "benefit: judged by nothing, because nothing that was measured could show one" in text
    assert "detectable" not in text and "\n\n\n" not in text
    assert "questions" not in format_comparison(found).splitlines()[0]


def test_what_a_file_calls_itself_can_be_printed() -> None:
    before = random_result(9, seed=3)
    after = {**before, "model": "\ud800\x1b[31m"}
    assert "\\ud800\\x1b[31m" in format_comparison(compare(before, after))
    with pytest.raises(BenchmarkError) as error:
        compare(before, {**after, "questions": "\ud800", "questions_sha256": "1"})
    assert str(error.value).isprintable()


def test_one_more_right_of_300_is_inconclusive() -> None:
    """The seed's "+1 on 300 questions": 58 and 59 in a hundred, most of them other questions."""
    right, wrong = ([0.0, -1.0], [0.0, 0.0, -1.0]), ([-1.0, 0.0], [0.0, 0.0, -1.0])
    before = result([right] * 174 + [wrong] * 126)
    after = result([right] * 134 + [wrong] * 40 + [right] * 43 + [wrong] * 83)
    change = compare(before, after).metrics["mc1"]
    assert change.difference == pytest.approx(0.01)
    assert change.verdict == "inconclusive"
    assert (change.detectable or 0) > 0.05


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(4)
    before = random_result(200, seed=4)
    after = copy.deepcopy(before)
    for item in after["items"]:
        for part in ("mc1", "mc2"):
            noise = rng.normal(0, 0.05, size=len(item[part]["loglik"]))
            item[part]["loglik"] = (np.array(item[part]["loglik"]) + noise).tolist()
    values = [metrics.item_metrics(item) for item in after["items"]]
    after |= {name: float(np.mean([v[name] for v in values])) for name in metrics.METRICS}
    paired = compare(before, after).metrics["mc2"].stderr
    unpaired = math.sqrt(2) * stats.stderr([v["mc2"] for v in values])
    assert paired < unpaired / 5


def test_the_table_shows_what_the_comparison_holds() -> None:
    comparison = compare(
        random_result(40, seed=6), random_result(40, seed=7), margin=0.02, resamples=500
    )
    text = format_comparison(comparison)
    for name, change in comparison.metrics.items():
        line = next(line for line in text.splitlines() if line.startswith(name.upper()))
        assert f"{change.difference:+.3f}" in line and f"{change.p_holm:.3f}" in line
        assert line.endswith(change.verdict)
        assert f"{change.better} better, {change.worse} worse" in text
    assert f"Verdict: {comparison.verdict}" in text
    assert "0.02" in text
    assert comparison.record()["metrics"]["mc1"]["low"] == comparison.metrics["mc1"].low


TABLE = """\
ours, 40 questions
before: m
after:  m + a
KL(after ‖ before) 1.23e-04 a token; 22.5% of items judged otherwise

      before  after  change  95% interval           p  verdict
--------------------------------------------------------------
MC1    0.250  0.375  +0.125  +0.062 to +0.188   0.020  gain
MC2    0.500  0.438  -0.062  -0.125 to +0.000  <0.001  inconclusive
kept   0.250  0.375  +0.125  +0.062 to +0.188   0.001  gain

MC1: 40 questions, 7 better, 2 worse; detectable: 0.088
MC2: 40 questions, 7 better, 2 worse; detectable: unknown

Verdict: inconclusive

benefit: judged by MC1, MC2
no tax: not worse, or worse by less than 0.02
detectable: smallest true change that 80% of such comparisons would show
p: McNemar's exact test, or random signs; corrected for all lines (Holm), as intervals are not"""


def test_the_table_of_a_known_comparison() -> None:
    up = Change(
        before=0.25,
        after=0.375,
        difference=0.125,
        low=0.0625,
        high=0.1875,
        stderr=0.03125,
        detectable=0.0876,
        n=40,
        better=7,
        worse=2,
        p=0.01,
        p_holm=0.02,
        verdict="gain",
    )
    down = up._replace(before=0.5, after=0.4375, difference=-0.0625, low=-0.125, high=0.0)
    down = down._replace(detectable=None, p_holm=0.0004, verdict="inconclusive")
    comparison = Comparison(
        questions="ours",
        n=40,
        before="m",
        after="m + a",
        margin=0.02,
        metrics={"mc1": up, "mc2": down, "kept": up._replace(p_holm=0.001)},
        judged=("mc1", "mc2"),
        categories={},
        kl=0.000123,
        changed=0.225,
        tasks={},
        verdict="inconclusive",
    )
    assert format_comparison(comparison) == TABLE
    without = [line for line in TABLE.splitlines() if not line.startswith("KL")]
    assert format_comparison(comparison._replace(kl=None)).splitlines() == without


def test_results_of_other_questions_are_refused() -> None:
    one = random_result(5, seed=0)
    with pytest.raises(BenchmarkError, match=r"questions_sha256 is '0'.*'1'"):
        compare(one, {**one, "questions_sha256": "1"})
    with pytest.raises(BenchmarkError, match="chat_template"):
        compare(one, {**one, "chat_template": True})
    with pytest.raises(BenchmarkError, match="5 questions before, 6 after"):
        compare(one, random_result(6, seed=0))
    other = copy.deepcopy(one)
    other["items"][2]["question"] = "Another?"
    with pytest.raises(BenchmarkError, match=r"item 3 is 'Question 2\?'.*'Another\?'"):
        compare(one, other)
    other = random_result(5, seed=0)
    other["items"][4]["mc1"] = {"loglik": [1.0, 0.0], "labels": [1, 0]}
    values = [metrics.item_metrics(item) for item in other["items"]]
    other["mc1"] = float(np.mean([v["mc1"] for v in values]))
    with pytest.raises(BenchmarkError, match=r"item 5 .* has other options"):
        compare(one, other)


def test_damaged_results_are_refused() -> None:
    one = random_result(5, seed=0)
    with pytest.raises(BenchmarkError, match=r"before: mc2 is stored as 0\.99"):
        compare({**one, "mc2": 0.99}, one)
    with pytest.raises(BenchmarkError, match="after: mc1 is stored as nan"):
        compare(one, {**one, "mc1": float("nan")})
    for bad in (float("nan"), float("inf"), None):
        broken = copy.deepcopy(one)
        broken["items"][1]["mc2"]["loglik"][3] = bad
        with pytest.raises(BenchmarkError, match=r"item 2 \('Question 1\?'\).*not finite|damaged"):
            compare(one, broken)
        del broken["items"][1]["question"]
        with pytest.raises(BenchmarkError, match="the result after is damaged"):
            compare(one, broken)
    with pytest.raises(BenchmarkError, match="the result before is not a result of a benchmark"):
        compare({}, one)
    with pytest.raises(BenchmarkError, match="the result before is not a result of a benchmark"):
        compare([], one)
    with pytest.raises(BenchmarkError, match="damaged"):
        compare({key: value for key, value in one.items() if key != "items"}, one)
    ragged = copy.deepcopy(one)
    ragged["items"][0]["mc1"]["labels"] = [1]
    with pytest.raises(BenchmarkError, match="damaged"):
        compare(one, ragged)
    one_sided = copy.deepcopy(one)
    one_sided["items"][0]["mc1"]["labels"] = [1, 1, 1, 1]
    with pytest.raises(BenchmarkError, match="damaged"):
        compare(one, one_sided)
    for margin in (0.0, 1.0):
        with pytest.raises(BenchmarkError, match=f"margin {margin}: must lie between 0 and 1"):
            compare(one, one, margin=margin)


def test_labels_other_than_0_and_1_are_refused() -> None:
    one = random_result(5, seed=0)
    one["items"][0]["mc2"]["labels"] = [1, 2, 0, 0, 0]
    with pytest.raises(BenchmarkError, match="damaged"):
        compare(one, one)


# --- every benchmark ------------------------------------------------------------------------------


def mmlu_result(seed: int, right: float = 0.5, **fields: Any) -> dict[str, Any]:
    """Of three subjects in two groups, 40 questions each, so many of them right."""
    rng = np.random.default_rng(seed)
    items = []
    for subject in ("anatomy", "astronomy", "virology"):
        for number in range(1, 41):
            answer = number % 4
            choice = answer if rng.random() < right else (answer + 1) % 4
            logps = [-3.0, -3.0, -3.0, -3.0]
            logps[choice] = -0.5
            items.append(
                {
                    "subject": subject,
                    "number": number,
                    "logps": logps,
                    "choice": choice,
                    "answer": answer,
                    "right": choice == answer,
                }
            )
    settings = {"benchmark": "mmlu", "model": "m", "adapter": None, "data_sha256": "0", "shots": 5}
    return {**settings, **summarized("mmlu", items), **fields}


def gsm8k_result(seed: int, right: float = 0.5, **fields: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    problems = [gsm8k.Problem(f"How many is {n}?", f"It is.\n#### {n}", n) for n in range(40)]
    replies = [f"#### {p.number if rng.random() < right else 99}" for p in problems]
    items = [
        gsm8k.judged(p, Reply(text=text, tokens=3, stopped=True))
        for p, text in zip(problems, replies, strict=True)
    ]
    settings = {"benchmark": "gsm8k", "model": "m", "adapter": None, "data_sha256": "0"}
    return {**settings, **summarized("gsm8k", items), **fields}


def humaneval_result(seed: int, right: float = 0.5, **fields: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    items = [
        {
            "task_id": f"HumanEval/{n}",
            "samples": [
                {"passed": bool(rng.random() < right), "stopped": True, "why": ""} for _ in range(2)
            ],
        }
        for n in range(30)
    ]
    settings = {"benchmark": "humaneval", "model": "m", "adapter": None, "data_sha256": "0"}
    return {**settings, **summarized("humaneval", items), **fields}


def behaviour_result(seed: int, right: float = 0.5, **fields: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    items: list[dict[str, Any]] = []
    for gate in ("leak", "myth"):
        for number in range(30):
            good = bool(rng.random() < right)
            item = {"id": f"{gate}-{number}", "gate": gate, "good": float(good), "bad": 0.5}
            if gate == "leak":
                item |= {"leak": not good, "right": good, "answer": ""}
            items.append({**item, "ok": good})
    leaks = [item for item in items if "leak" in item]
    preference = {
        gate: float(np.mean([i["good"] > i["bad"] for i in items if gate in (i["gate"], "all")]))
        for gate in ("leak", "myth")
    }
    preference["all"] = float(np.mean([i["good"] > i["bad"] for i in items]))
    return {
        "leak_rate": float(np.mean([i["leak"] for i in leaks])),
        "right_rate": float(np.mean([i["right"] for i in leaks])),
        "preference": preference,
        "n": len(items),
        "items": items,
        **fields,
    }


def perplexity_result(seed: int, right: float = 0.5, **fields: Any) -> dict[str, Any]:
    """Eight texts; the more is right, the less perplexed."""
    rng = np.random.default_rng(seed)
    items = {
        f"text {n}": {"logp": 100.0 * (right - 4.0 + 0.01 * rng.normal()), "tokens": 100}
        for n in range(8)
    }
    mean = sum(item["logp"] for item in items.values()) / 800
    return {
        "benchmark": "perplexity",
        "perplexity": math.exp(-mean),
        "tokens": 800,
        "items": items,
        **fields,
    }


MADE = {
    "mmlu": mmlu_result,
    "gsm8k": gsm8k_result,
    "humaneval": humaneval_result,
    "behaviour": behaviour_result,
    "perplexity": perplexity_result,
}


@pytest.mark.parametrize("kind", MADE)
def test_every_benchmark_shows_its_gain_and_its_loss(kind: str) -> None:
    before, after = MADE[kind](1, 0.3), MADE[kind](2, 0.9)
    up, down = compare(before, after), compare(after, before)
    assert (up.verdict, down.verdict) == ("gain, cost unclear", "tax")
    for name in up.metrics:
        assert up.metrics[name].difference == pytest.approx(-down.metrics[name].difference)
        assert 0 < up.metrics[name].p <= up.metrics[name].p_holm < 0.05
    # that nothing changed was not measured, and so few questions rule out no loss of a percent
    assert compare(before, before, margin=0.2).verdict == "no tax"
    if kind != "perplexity":
        assert compare(before, before).verdict == "inconclusive"


def test_mmlu_is_compared_in_all_and_by_group_and_the_verdict_is_of_all() -> None:
    before = mmlu_result(1, 0.3)
    after = copy.deepcopy(before)
    for item in after["items"]:  # astronomy learned, virology forgotten
        choice = {"astronomy": item["answer"], "virology": (item["answer"] + 1) % 4}.get(
            item["subject"], item["choice"]
        )
        item["logps"] = [-0.5 if n == choice else -3.0 for n in range(4)]
        item["right"] = choice == item["answer"]
        del item["scores"]
    after |= summarized("mmlu", after["items"])
    found = compare(before, after)
    assert list(found.metrics) == ["mmlu", "stem", "other"]
    assert [found.metrics[name].n for name in found.metrics] == [120, 80, 40]
    assert (found.metrics["stem"].verdict, found.metrics["other"].verdict) == ("gain", "tax")
    assert found.judged == ("mmlu",)
    assert found.tasks["mmlu"].verdict == found.metrics["mmlu"].verdict
    assert found.metrics["mmlu"].after == pytest.approx(after["acc"])
    assert found.categories["anatomy"] == 0 and found.categories["astronomy"] > 0.5


def test_pass_at_k_is_paired_by_problem() -> None:
    found = compare(humaneval_result(1), humaneval_result(2, 0.6))
    assert list(found.metrics) == ["pass@1", "pass@2"]
    assert found.metrics["pass@1"].after == pytest.approx(humaneval_result(2, 0.6)["pass@1"])


def two_texts(long: float, short: float) -> dict[str, Any]:
    items = {"long": {"logp": long, "tokens": 100}, "short": {"logp": short, "tokens": 10}}
    mean = (long + short) / 110
    return {"benchmark": "perplexity", "perplexity": math.exp(-mean), "items": items}


def test_texts_weigh_as_many_tokens_as_they_have() -> None:
    change = compare(two_texts(-300.0, -20.0), two_texts(-299.0, -20.0)).metrics["log p of texts"]
    assert change.before == pytest.approx(-320 / 110)
    assert change.difference == pytest.approx(1 / 110)


def test_p_is_corrected_for_every_line() -> None:
    found = compare(behaviour_result(1), behaviour_result(2, 0.8))
    ps = {name: change.p for name, change in found.metrics.items()}
    assert len(ps) == 7
    corrected = stats.holm(list(ps.values()))
    assert [change.p_holm for change in found.metrics.values()] == corrected
    least = min(found.metrics.values(), key=lambda change: change.p)
    assert least.p_holm == pytest.approx(7 * least.p)
    line = next(t for t in format_comparison(found).splitlines() if t.startswith("leaks"))
    assert f"{found.metrics['no leak'].p_holm:.3f}" in line


@pytest.mark.parametrize("kind", MADE)
def test_other_questions_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    before, after = MADE[kind](1), MADE[kind](1)
    items = after["items"]
    if kind == "perplexity":
        items["another text"] = items.pop("text 7")
    else:
        key = {"mmlu": "number", "gsm8k": "question", "humaneval": "task_id", "behaviour": "id"}
        items[3][key[kind]] = "another"
    for name, found in (("before", before), ("after", after)):
        (tmp_path / name).write_text(json.dumps(found))
    refused = CliRunner().invoke(main, ["compare", *map(str, tmp_path.glob("*"))])
    assert refused.exit_code == 2
    assert "not comparable: item" in refused.output and "another" in refused.output
    assert len(refused.output.splitlines()) == 1


def test_other_settings_and_other_benchmarks_are_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"shots is 5 \(MMLU\) before and 0 \(MMLU\) after"):
        compare(mmlu_result(1), mmlu_result(1, shots=0))
    with pytest.raises(BenchmarkError, match=r"benchmark is 'mmlu' .* and 'gsm8k' \(GSM8K\)"):
        compare(mmlu_result(1), gsm8k_result(1))
    with pytest.raises(BenchmarkError, match=r"item 4 \('How many is 3\?'\) has other options or"):
        other = gsm8k_result(1)
        other["items"][3]["answer"] = "4"
        compare(gsm8k_result(1), other)
    with pytest.raises(BenchmarkError, match="no leak covers other items before than after"):
        other = behaviour_result(1)
        for key in ("leak", "right"):
            del other["items"][0][key]
        leaks = [item for item in other["items"] if "leak" in item]
        other["leak_rate"] = float(np.mean([i["leak"] for i in leaks]))
        other["right_rate"] = float(np.mean([i["right"] for i in leaks]))
        compare(behaviour_result(1), other)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_metric_that_one_result_lacks_is_refused(side: str) -> None:
    whole = read_measured(behaviour_result(1), "it")
    assert isinstance(whole, Result)
    items = [replace(item, scores={"prefers": item.scores["prefers"]}) for item in whole.items]
    part = replace(whole, items=tuple(items))
    with pytest.raises(BenchmarkError, match="no leak covers other items before than after"):
        compare_measured(*((part, whole) if side == "before" else (whole, part)))


@pytest.mark.parametrize("kind", MADE)
def test_means_that_are_not_of_the_items_are_refused(kind: str) -> None:
    key = {
        "mmlu": "acc",
        "gsm8k": "strict_match",
        "humaneval": "pass@2",
        "behaviour": "leak_rate",
        "perplexity": "perplexity",
    }[kind]
    one = MADE[kind](1)
    with pytest.raises(BenchmarkError, match=r"after: .* is stored as .* but its items give"):
        compare(one, {**one, key: one[key] + 0.01})
    with pytest.raises(BenchmarkError, match="the result after is damaged"):
        compare(one, {key: value for key, value in one.items() if key != "items"})


def test_scores_that_are_no_numbers_are_refused() -> None:
    one = behaviour_result(1)
    one["items"][2]["good"] = math.nan
    with pytest.raises(BenchmarkError, match=r"before, item 3 \('leak-2'\): prefers is not finite"):
        compare(one, one)
    two = gsm8k_result(1)
    two["items"][2]["strict_match"] = 0.5
    with pytest.raises(BenchmarkError, match=r"damaged .*0\.5 is neither true nor false"):
        compare(two, two)


# --- stages of a run ------------------------------------------------------------------------------


def stage(name: str, kl: float, seed: int = 1, right: float = 0.5) -> dict[str, Any]:
    return {
        "stage": name,
        "truthfulqa": random_result(60, seed=seed),
        "behaviour": behaviour_result(seed, right),
        "perplexity": perplexity_result(seed, right),
        "divergence": {"kl": kl, "items": [{"material": "texts", "kl": [kl, kl]}]},
    }


def test_stages_are_compared_by_all_they_hold_and_judged_by_truthfulqa() -> None:
    found = compare(stage("base", 0.0), stage("phase1_sft", 0.1, seed=2, right=0.9))
    assert list(found.metrics) == [
        "mc1",
        "mc2",
        "mc3",
        "prefers",
        "no leak",
        "right",
        "prefers: leak",
        "answers: leak",
        "prefers: myth",
        "answers: myth",
        "log p of texts",
    ]
    assert found.judged == ("mc1", "mc2", "mc3") and found.n == 60
    assert "items of ours are too few to tell; " in found.sentence
    assert found.metrics["prefers"].verdict == "gain" != found.verdict
    assert found.kl == 0.1 and found.changed > 0.2
    assert "KL(after ‖ before) 1.00e-01 a token" in format_comparison(found)


def test_categories_are_of_the_same_items_whatever_was_measured_before_them() -> None:
    alone = random_result(60, seed=1), random_result(60, seed=2)
    before, after = (
        {"stage": name, "held_out": own_rows(5, 4, gain), "truthfulqa": result}
        for name, gain, result in zip(("base", "fused"), (0.0, 1.0), alone, strict=True)
    )
    assert compare(before, after).categories == compare(*alone).categories != {}


def test_what_changed_is_counted_over_the_items_of_all_parts() -> None:
    base = stage("base", 0.0)
    after = {**base, "stage": "phase1_sft", "behaviour": behaviour_result(2)}
    pairs = zip(base["behaviour"]["items"], after["behaviour"]["items"], strict=True)
    otherwise = sum(one["good"] != other["good"] for one, other in pairs)
    assert compare(base, after).changed == pytest.approx(otherwise / (60 + 60))


def test_no_change_is_never_called_no_tax() -> None:
    base = stage("base", 0.0)
    found = compare(base, stage("phase1_sft", 1e-7))
    assert {found.verdict, *(c.verdict for c in found.metrics.values())} == {"no change"}
    moved = compare(base, stage("phase1_sft", 1e-3), margin=0.2, cost=Cost(facts=0.2))
    assert moved.verdict == "no tax"  # another model, which scores alike
    otherwise = compare(base, stage("phase1_sft", 1e-7, seed=2))
    assert otherwise.changed > 0.1 and otherwise.verdict not in ("no change", "no tax")


def test_a_stage_costs_what_its_other_results_lost_by_the_margins_given() -> None:
    base, worse = stage("base", 0.0, right=0.9), stage("phase1_sft", 0.1, seed=2, right=0.3)
    for cost, margin in ((None, Cost().facts), (Cost(facts=0.2), 0.2)):
        costs = {one.name: one for one in compare(base, worse, cost=cost).costs}
        assert {*costs} == {"plain facts:", "neutral text: perplexity"}
        assert costs["plain facts:"].margin == margin
    assert not compare(base, stage("phase1_sft", 1e-7, right=0.9)).costs  # no change costs nothing


def own_rows(pairs: int, chats: int, gain: float) -> dict[str, Any]:
    """Held-out rows whose better answer and whose chats gained this many nats each."""
    kinds = ["pair"] * pairs + ["chat"] * chats
    items = []
    for number, kind in enumerate(kinds):
        base = [-20.0 - number % 3, -10.0][: 2 if kind == "pair" else 1]
        logps = [base[0] + gain, *base[1:]]
        named = {"kind": kind, "phase": "sft", "row": f"x:{number}", "tokens": [10] * len(base)}
        items.append({**named, "sha256": named["row"], "logps": logps, "base_logps": base})
    scored = HeldOut.items(items)
    return {"benchmark": "held_out", "items": items, **HeldOut.figures(scored)}


def priced(name: str, **own: dict[str, Any]) -> dict[str, Any]:
    """A stage without benchmarks, by default without held-out rows; training made facts right."""
    right = 0.1 if name == "base" else 0.9
    whole = stage(name, 0.0 if name == "base" else 0.1, seed=len(name), right=right)
    return {"stage": name, **own, **{key: whole[key] for key in whole if key in ALWAYS}}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "No held-out rows and no benchmark were measured that could show a benefit; "),
        ((1, 0), "1 held-out pair is too few to tell; "),
        ((0, 1), "1 held-out chat is too few to tell; "),
        ((1, 1), "1 held-out pair and 1 held-out chat are too few to tell; "),
        ((1, 3), "1 held-out pair and 3 held-out chats are too few to tell; "),
        ((2, 0), "2 held-out pairs are too few to tell; "),
    ],
)
def test_what_training_costs_is_never_its_benefit(rows: tuple[int, int] | None, said: str) -> None:
    """Plain facts and neutral text got better for certain, and too few rows show what for."""
    stages = [
        priced(name, **({} if rows is None else {"held_out": own_rows(*rows, gain)}))
        for name, gain in (("base", 0.0), ("phase1_sft", 5.0))
    ]
    found = compare(*stages)
    assert found.metrics["right"].verdict == "gain" and found.verdict == "inconclusive"
    assert found.sentence.startswith(said) and "better on plain facts" in found.sentence
    assert found.judged == (("chat loss",) if rows == (1, 3) else found.judged)
    assert all(name not in found.judged for name in ("right", "log p of texts"))
    text = format_comparison(found)
    assert "Verdict: inconclusive" in text and said[:30] in text and "(over ;" not in text
    assert not rows or f"your held-out rows, {max(rows)} questions" in text
    lost = compare(stages[1] | {"stage": "base"}, stages[0] | {"stage": "phase1_sft"})
    assert lost.verdict == "tax" and "worse on plain facts" in lost.sentence


def test_one_row_of_a_kind_among_many_of_another_is_named_and_takes_no_gain() -> None:
    stages = [
        priced(name, held_out=own_rows(1, 20, gain))
        for name, gain in (("base", 0.0), ("phase1_sft", 5.0))
    ]
    found = compare(*stages)
    assert found.verdict == "gain"
    assert found.sentence.startswith("Better on your held-out rows: loss on 20 held-out chats")
    assert "; 1 held-out pair is too few to tell; " in found.sentence


def test_kl_counts_from_the_base_only() -> None:
    """Two later stages are each as far from the base as they are, not from each other."""
    found = compare(
        stage("phase1_sft", 1e-7), stage("phase2_dpo", 1e-7), margin=0.2, cost=Cost(facts=0.2)
    )
    assert found.kl is None and found.verdict == "no tax"


def test_a_stage_without_kl_is_compared_and_a_result_beside_a_stage_has_none() -> None:
    after = stage("phase1_sft", 1e-7, seed=2)
    del after["divergence"]
    base = {**stage("base", 0.0)}
    del base["divergence"]
    assert compare(base, after).kl is None
    alone = {"stage": "base", "truthfulqa": base["truthfulqa"]}
    with pytest.raises(BenchmarkError, match=r"benchmark is 'truthfulqa' .* and 'stage'"):
        compare(base["truthfulqa"], alone)


def test_a_stage_beside_a_harness_s_samples_has_no_kl() -> None:
    base = read_measured(stage("base", 0.0), "base")
    assert not isinstance(base, HarnessSamples)
    later = read_measured(stage("phase1_sft", 0.1, seed=2), "later")
    assert compare_measured(base, later).kl == 0.1
    assert compare_measured(base, as_samples(base)).kl is None


def of_run(rows: dict[str, Any] | None, name: Any = "base", **results: Any) -> dict[str, Any]:
    """A stage with held-out rows, and what else was measured."""
    return {"stage": name, **({} if rows is None else {"held_out": rows}), **results}


def test_held_out_rows_are_compared_that_both_runs_have() -> None:
    """The second run has fewer rows, in a file and a phase of another name, and other prompts."""
    many, few = own_rows(8, 8, 0.0), own_rows(8, 8, 1.0)
    few["items"] = [{**item, "row": f"y{item['row']}", "phase": "p"} for item in few["items"][:12]]
    few |= HeldOut.figures(HeldOut.items(few["items"]))
    many, few = {**many, "data_sha256": "a"}, {**few, "data_sha256": "b"}
    found = compare(of_run(many), of_run(few, "phase1_sft"))
    assert found.metrics["pairs right"].n == 8 and found.metrics["chat loss"].n == 4
    assert found.metrics["chat loss"].difference == pytest.approx(-0.1)
    said = (
        "your held-out rows: 12 in both, of 16 before and 12 after; to compare all, hold out the "
    )
    assert found.left_out == (f"{said}same rows.",) and found.left_out[0] in str(found)
    whole = compare(of_run(many), of_run({**many, "data_sha256": "b"}))
    assert whole.metrics["chat loss"].n == 8 and whole.left_out == ()


def test_other_held_out_rows_are_left_out_unless_nothing_else_was_measured() -> None:
    rows = {**own_rows(3, 3, 0.0), "data_sha256": "a"}
    other = own_rows(3, 3, 0.0)
    for item in other["items"]:
        item["sha256"] = f"y{item['sha256']}"
    other = {"items": other["items"], **HeldOut.figures(HeldOut.items(other["items"]))}
    other["data_sha256"] = "b"
    questions = random_result(60, seed=1)
    found = compare(of_run(rows, truthfulqa=questions), of_run(other, truthfulqa=questions))
    assert "pairs right" not in found.metrics and "mc1" in found.metrics
    for beside in ({}, {"truthfulqa": questions}):
        with pytest.raises(BenchmarkError, match="your held-out rows: 0 in both, of 6 before and"):
            compare(of_run(rows, **beside), of_run(other))
    costs = [{key: whole[key] for key in ALWAYS} for whole in (stage("base", 0), stage("base", 0))]
    found = compare(of_run(rows, "fused", **costs[0]), of_run(other, **costs[1]))
    assert found.sentence.startswith("No held-out rows and no benchmark were measured in both")


def test_of_two_runs_the_questions_are_compared_that_both_asked() -> None:
    """One recipe asked and read less, and has no benchmark that the other has."""
    plain, less = behaviour_result(1, 0.9), behaviour_result(2, 0.3)
    less["items"] = [item for item in less["items"] if item["gate"] == "leak"]
    less["preference"] = dict.fromkeys(("leak", "all"), less["preference"]["leak"])
    texts = perplexity_result(2, 0.3)
    texts["items"] = {name: text for name, text in texts["items"].items() if name <= "text 2"}
    texts["perplexity"] = math.exp(-sum(text["logp"] for text in texts["items"].values()) / 300)
    more = {"truthfulqa": random_result(60, seed=1)}
    before = of_run(
        None, behaviour={**plain, "data_sha256": "a"}, perplexity=perplexity_result(1), **more
    )
    after = of_run(None, "phase1_sft", behaviour={**less, "data_sha256": "b"}, perplexity=texts)
    found = compare(before, after)
    assert found.metrics["right"].n == 30 and found.metrics["log p of texts"].n == 3
    assert found.metrics["right"].verdict == "tax" and "prefers: myth" not in found.metrics
    assert any("30 in both, of 60 before and 30 after" in line for line in found.left_out)
    assert "`benchmark.n` and `seed`" in found.left_out[0]
    assert "TruthfulQA: measured in one of them only." in found.left_out


def test_names_and_figures_are_those_of_a_run_s_table_and_report() -> None:
    before = stage("base", 0.0, seed=1, right=0.9)
    after = stage("phase1_sft", 0.1, seed=2, right=0.3)
    text = format_comparison(compare(before, after))
    lines = {line.partition("  ")[0]: line.split() for line in text.splitlines()}
    behaviour, texts = after["behaviour"], after["perplexity"]
    was = before["perplexity"]["perplexity"]
    assert lines["leaks"][2] == f"{behaviour['leak_rate']:.3f}"
    assert lines["facts right"][3] == f"{behaviour['right_rate']:.3f}"
    assert lines["perplexity"][1:4] == [
        f"{was:.3f}", f"{texts['perplexity']:.3f}", f"{texts['perplexity'] - was:+.3f}"
    ]  # fmt: skip
    low, high = float(lines["perplexity"][4]), float(lines["perplexity"][6])
    assert low < texts["perplexity"] - was < high
    assert float(lines["leaks"][3]) == pytest.approx(
        behaviour["leak_rate"] - before["behaviour"]["leak_rate"], abs=6e-4
    )
    assert float(lines["leaks"][4]) < float(lines["leaks"][3]) < float(lines["leaks"][6])
    assert "gate leak, likelihood" in lines and "gate myth, generation" in lines
    assert not {"no leak", "right", "log p of texts", "prefers: leak"} & lines.keys()


def test_few_items_have_neither_interval_nor_p() -> None:
    """Three texts that all got worse: resampled, an interval without 0, at p = 1."""
    before, after = perplexity_result(1, 0.9), perplexity_result(2, 0.3)
    for one, n in ((before, 3), (after, 3)):
        one["items"] = dict(list(one["items"].items())[:n])
        one["perplexity"] = math.exp(-sum(text["logp"] for text in one["items"].values()) / 300)
    found = compare_measured(
        Result.from_json(before, "it", "perplexity"), Result.from_json(after, "it", "perplexity")
    )
    text = format_comparison(found)
    (line,) = (line for line in text.splitlines() if line.endswith("inconclusive") and "–" in line)
    assert line.split()[4:] == ["–", "–", "inconclusive"]
    assert "fewer than 6 items, too few for an interval" in text
    assert found._repr_html_().count(">–</td>") == 2


def test_settings_of_a_stage_s_parts_must_agree_and_are_named_by_their_part() -> None:
    base, after = stage("base", 0.0), stage("phase1_sft", 0.1)
    base["behaviour"] = {**base["behaviour"], "data_sha256": "one"}
    after["behaviour"] = {**after["behaviour"], "data_sha256": "other"}
    with pytest.raises(BenchmarkError, match="not comparable: behaviour: data_sha256 is"):
        compare(base, after)
    after = stage("phase1_sft", 0.1)
    after["truthfulqa"]["questions_sha256"] = "other"
    with pytest.raises(BenchmarkError, match="not comparable: questions_sha256 is '0'"):
        compare(base, after)


# --- one comparison in detail ---------------------------------------------------------------------


def test_models_and_questions_are_named_as_the_files_name_them() -> None:
    before = result([([0.0, -1.0], [0.0, 0.0, -1.0])] * 9, questions="é")
    found = compare(before, {**before, "adapter": "a"})
    assert (found.questions, found.before, found.after) == ("é", "m", "m + a")


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    before, after = random_result(300, seed=6), random_result(300, seed=7)
    found = compare(before, after, seed=1).metrics["mc2"]
    assert found == compare(before, after, seed=1).metrics["mc2"]
    other = compare(before, after, seed=2).metrics["mc2"]
    assert found.low != other.low and found.p != other.p


def test_where_lower_is_better_a_fall_is_the_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = random_result(300, seed=3), random_result(300, seed=3, lift=1.0)
    monkeypatch.setattr(task_class("truthfulqa"), "metric", lambda _: Metric(better="lower"))
    up, down = compare(before, after).metrics["mc1"], compare(after, before).metrics["mc1"]
    assert (up.verdict, down.verdict) == ("tax", "gain")
    assert up.better < up.worse and down.better > down.worse


def test_results_that_are_alike_have_room_as_wide_as_the_scores_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A question that was missed may have moved from one end of the range to the other."""
    one = random_result(40, seed=6)
    monkeypatch.setattr(task_class("truthfulqa"), "metric", lambda _: Metric(0.5, 1.0))
    found = compare(one, one).metrics["mc1"]
    assert found.high == -found.low == pytest.approx(0.5 * stats.unseen(40))


def test_scores_between_0_and_1_on_one_side_are_no_coin_tosses() -> None:
    right, between = ([0.0, -1.0], [0.0, 0.0, -60.0]), ([0.0, -1.0], [0.0, 0.0, -1.0])
    before, after = result([between] * 12), result([right] * 12)
    for one, other in ((before, after), (after, before)):
        found = compare(one, other)
        assert found.metrics["mc1"].difference == 0 == found.changed
        differences = [found.metrics["mc2"].difference] * 12
        assert found.metrics["mc2"].p == stats.sign_flips(differences)


def test_a_hash_that_an_earlier_release_left_out_excuses_nothing_else() -> None:
    one = mmlu_result(1)
    unknown = {key: value for key, value in one.items() if key != "data_sha256"}
    assert compare(unknown, one).changed == 0
    with pytest.raises(BenchmarkError, match="not comparable: shots is 5"):
        compare(unknown, {**one, "shots": 0})


# --- what is refused before anything is measured --------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["truthfulqa"],
        ["mmlu", "-d", "nothing"],
        ["gsm8k", "-d", "nothing"],
        ["humaneval", "-d", "nothing", "--run-untrusted-code"],
        ["behaviour"],
        ["perplexity"],
    ],
    ids=lambda command: command[0],
)
def test_a_file_that_cannot_be_written_is_refused_first(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, why in (
        (tmp_path / "file" / "deep" / "out.json", "cannot be written: Not a directory"),
        (tmp_path, "is a folder; name a file"),
        (Path("/proc/forty2/out.json"), "cannot be written"),
    ):
        # the model is none: it would be refused, were it looked at before
        run = CliRunner().invoke(
            main, ["benchmark", *command, "-m", str(tmp_path / "none"), "-o", str(out)]
        )
        assert run.exit_code == 2 and f"{out}: " in run.output and why in run.output
        assert len(run.output.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["mmlu", "gsm8k", "humaneval"])
def test_a_home_that_is_nobodys_is_one_line(name: str) -> None:
    more = ["--run-untrusted-code"] if name == "humaneval" else []
    run = CliRunner().invoke(main, ["benchmark", name, "-m", "none", "-d", "~nobody-here/x", *more])
    assert run.exit_code == 2
    assert "~nobody-here/x" in run.output and len(run.output.splitlines()) == 1
