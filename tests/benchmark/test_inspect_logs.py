"""Logs of Inspect: what is read from them, how two are compared, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import forty2
from forty2.benchmark.inspect_logs import read_log
from forty2.benchmark.stats import sign_flips
from forty2.cli import main
from forty2.errors import BenchmarkError, RunError

FOLDER = Path(__file__).parents[1] / "examples" / "inspect"
"""What Inspect itself wrote, for two models on six sums, each asked twice."""


def log(side: str = "before") -> Any:
    return json.loads((FOLDER / f"{side}.json").read_text("utf-8"))


def scored(*values: object, scorer: str = "match") -> Any:
    """A log of one epoch with a sample for each score."""
    found = log()
    sample = found["samples"][0]
    found["samples"] = [
        {**sample, "id": n, "input": f"Question {n}?", "scores": {scorer: {"value": value}}}
        for n, value in enumerate(values, 1)
    ]
    return found


def scores(found: Any) -> list[dict[str, float]]:
    return [item.scores for item in read_log(found, "log").tasks["sums"].items]


# --- what is read ---


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_means_are_those_that_inspect_computed(side: str) -> None:
    found = log(side)
    samples = read_log(found, "log")
    assert samples.model == f"mockllm/{side}"
    items = samples.tasks["sums"].items
    assert len(items) == 6
    for stored in found["results"]["scores"]:
        mean = sum(item.scores[stored["name"]] for item in items) / len(items)
        named = stored["metrics"].get("accuracy") or stored["metrics"]["mean"]
        assert mean == pytest.approx(named["value"])


def test_epochs_are_repeats_of_an_item() -> None:
    before = scores(log())
    assert [item["match"] for item in before] == [0.5, 0.0, 1.0, 0.5, 0.5, 1.0]


def test_words_numbers_and_booleans_are_scores() -> None:
    values = ["C", "P", "I", "N", True, False, 0.25, 3, "yes", "FALSE", "0.75"]
    read = [item["match"] for item in scores(scored(*values))]
    assert read == [1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 0.25, 3.0, 1.0, 0.0, 0.75]


def test_a_scorer_with_several_values_is_several_metrics() -> None:
    (item,) = scores(scored({"tone": 1, "facts": 0.5}))
    assert item == {"match: tone": 1.0, "match: facts": 0.5}


@pytest.mark.parametrize(
    ("values", "low"), [((0, 1, "P"), 0.0), (("C", "I"), 0.0), ((0.2, 1), -math.inf)]
)
def test_a_score_that_may_be_any_number_has_no_range(values: Any, low: float) -> None:
    assert read_log(scored(*values), "log").tasks["sums"].metric("match").low == low


def test_a_scorer_without_a_number_for_each_sample_is_left_out_and_named() -> None:
    found = scored("C", "I")
    found["samples"][1]["scores"]["grade"] = {"value": math.nan}  # Inspect: not scored
    with pytest.warns(UserWarning, match=r"left out, because .*: grade \(sample 2\)"):
        assert scores(found) == [{"match": 1.0}, {"match": 0.0}]


def test_epochs_joined_in_another_way_are_said() -> None:
    found = log()
    found["eval"]["config"]["epochs_reducer"] = ["pass_at_2"]
    with pytest.warns(UserWarning, match="averaged here, and not joined by pass_at_2"):
        scores(found)


# --- two logs ---


def write(folder: Path, before: Any, after: Any) -> tuple[Path, Path]:
    paths = (folder / "before.json", folder / "after.json")
    for path, found in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(found), "utf-8")
    return paths


def test_two_logs_are_compared_sample_by_sample() -> None:
    comparison = forty2.compare(FOLDER / "before.json", FOLDER / "after.json")
    assert (comparison.before, comparison.after) == ("mockllm/before", "mockllm/after")
    assert [*comparison.metrics] == ["match", "f1"] and [*comparison.tasks] == ["inspect"]
    change = comparison.metrics["match"]
    assert (change.n, change.better, change.worse) == (6, 4, 0)
    pairs = zip(scores(log()), scores(log("after")), strict=True)
    assert change.p == sign_flips([new["match"] - old["match"] for old, new in pairs])


def test_a_parsed_log_is_taken_too() -> None:
    assert forty2.compare(log(), log("after")).metrics["match"].better == 4


def test_samples_are_matched_by_what_was_asked_whatever_their_order_and_id() -> None:
    before = scored(*"CICICI")
    after = copy.deepcopy(before)
    after["samples"].reverse()
    for number, sample in enumerate(after["samples"]):
        sample["id"] = f"other {number}"
    change = forty2.compare(before, after).metrics["match"]
    assert (change.n, change.better, change.worse) == (6, 0, 0)


def test_ids_of_messages_are_no_part_of_what_was_asked() -> None:
    before = scored(*"CICICI")
    for sample in before["samples"]:
        sample["input"] = [{"id": "one", "role": "user", "content": sample["input"]}]
    after = json.loads(json.dumps(before).replace('"one"', '"other"'))
    assert forty2.compare(before, after).metrics["match"].n == 6


def test_another_prompt_is_said() -> None:
    before, after = log(), log("after")
    for sample in after["samples"]:
        sample["messages"][0]["content"] = "Think first."
    with pytest.warns(UserWarning, match="6 of 6 items have another prompt"):
        forty2.compare(before, after)


# --- what is refused ---


def _other_task(found: Any) -> None:
    found["eval"]["task"] = "products"


def _other_version(found: Any) -> None:
    found["eval"]["task_version"] = 2


def _other_arguments(found: Any) -> None:
    found["eval"]["task_args"] = {"fewshot": 5}


def _other_question(found: Any) -> None:
    for sample in found["samples"]:
        sample["input"] = sample["input"].replace("2 + 3", "2 + 4")


def _other_scorer(found: Any) -> None:
    for sample in found["samples"]:
        sample["scores"]["includes"] = sample["scores"].pop("f1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_task, "sums only before; products only after"),
        (_other_version, "sums: version is 0 before and 2 after"),
        (_other_arguments, r"sums: task arguments is \{\} before and \{'fewshot': 5\} after"),
        (_other_question, "sums has 6 items before and 6 after, 5 of them in both"),
        (_other_scorer, "sums has other metrics before than after"),
    ],
)
def test_other_evaluations_are_refused(change: Callable[[Any], None], message: str) -> None:
    after = log("after")
    change(after)
    with pytest.raises(BenchmarkError, match=f"not comparable: {message}"):
        forty2.compare(log(), after)


def test_a_log_and_samples_of_the_harness_are_not_compared() -> None:
    harness = FOLDER.parent / "lm_eval" / "tiny__before"
    with pytest.raises(BenchmarkError, match="not comparable: sums only before; gsm8k only after"):
        forty2.compare(FOLDER / "before.json", harness)


def _failed(found: Any) -> None:
    found["status"] = "error"
    found["samples"] = None


def _cancelled(found: Any) -> None:
    found["status"] = "cancelled"


def _invalidated(found: Any) -> None:
    found["invalidated"] = True


def _header_alone(found: Any) -> None:
    del found["samples"]


def _not_scored(found: Any) -> None:
    del found["samples"][3]["scores"]


def _broken_off(found: Any) -> None:
    found["samples"][3]["scores"] = {}
    found["samples"][3]["error"] = {"message": "timed out", "traceback": "a\nb"}


def _twice(found: Any) -> None:
    found["samples"].append(found["samples"][0])


def _graded_in_letters(found: Any) -> None:
    for sample in found["samples"]:
        sample["scores"] = {"grade": {"value": "A"}}


def _no_id(found: Any) -> None:
    found["samples"][2] = {"epoch": 1}


def _no_task(found: Any) -> None:
    del found["eval"]["task"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_failed, "has the status error, not success; .*`inspect eval-retry`"),
        (_cancelled, "has the status cancelled, not success"),
        (_invalidated, "samples were invalidated"),
        (_header_alone, "holds no samples"),
        (_not_scored, "sample sum-3, epoch 1: has no score; use `inspect score`"),
        (_broken_off, "sum-3, epoch 1: has no score because of an error: timed out; .*eval-retry"),
        (_twice, "sample sum-0 is there twice in epoch 1"),
        (_graded_in_letters, r"no score is one number for each sample: grade \(sample sum-5\)"),
        (_no_id, "sample 3 has no id; the log is damaged"),
        (_no_task, "names no task"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: Callable[[Any], None], message: str) -> None:
    found = log()
    change(found)
    with pytest.raises(BenchmarkError, match=f"log: .*{message}"):
        read_log(found, "log")


def test_a_log_cut_short_is_refused_by_its_name(tmp_path: Path) -> None:
    cut = tmp_path / "cut.json"
    cut.write_text((FOLDER / "before.json").read_text("utf-8")[:4000], "utf-8")
    with pytest.raises(RunError, match=r"cut\.json: not readable as JSON"):
        forty2.compare(cut, FOLDER / "after.json")


def test_the_binary_form_is_refused_in_one_line_that_says_how_to_convert(tmp_path: Path) -> None:
    binary = tmp_path / "log.eval"
    binary.write_bytes(b"PK\x03\x04")
    result = CliRunner().invoke(main, ["compare", str(binary), str(FOLDER / "after.json")])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "inspect log convert" in result.output


def test_a_log_is_no_result_of_ours_to_export(tmp_path: Path) -> None:
    from forty2.runs.archive.harness_export import export_results

    with pytest.raises(BenchmarkError, match=r"before\.json: was not measured by forty2"):
        export_results(FOLDER / "before.json", tmp_path / "out")
