"""A run's report, from a folder whose files are written by hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from forty2.files import write_json
from forty2.report.run import contamination_lines, notices, write_report

OLD = Path(__file__).parents[1] / "old_runs"


def stage(name: str, mc1: float) -> dict[str, Any]:
    return {
        "stage": name,
        "mc1": mc1,
        "mc2": mc1 + 0.1,
        "leak_rate": 0.125,
        "preference": 0.75,
        "margin": 0.25,
        "perplexity": 12.0,
        "kl": 0.01,
        "stderr": {"mc1": 0.01, "mc2": 0.01},
        "calibration": {"ece": 0.25, "bins": [{"n": 3, "confidence": 0.5, "accuracy": 0.25}]},
    }


def comparison(verdict: str) -> dict[str, Any]:
    change = {"difference": 0.05, "low": 0.01, "high": 0.09, "p_holm": 0.02, "verdict": verdict}
    return {
        "stage": "phase1_sft",
        "metrics": {"mc1": change, "mc2": change},
        "judged": ["mc1", "mc2"],
        "categories": {"Health": 0.1, "Law": -0.2},
    }


def answers(answer: str, leaks: bool) -> dict[str, Any]:
    item = {"id": "held-1", "prompt": "How many strings?", "answer": answer, "leak": leaks}
    return {"behaviour": {"items": [item]}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A measured run of one phase, whose training warned, dropped rows and shortened a prompt."""
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    summary = {
        "verdict": "no tax",
        "margin": 0.01,
        "questions": "TruthfulQA.csv",
        "questions_sha256": "abc",
        "n": 817,
        "stages": [stage("base", 0.3), stage("phase1_sft", 0.35)],
        "comparisons": [comparison("no tax")],
        "contamination": {"rows": 0, "questions": 0, "comparisons": []},
    }
    write_json(folder / "summary.json", summary)
    write_json(folder / "contamination.json", {"hits": [], "unread_phases": []})
    (folder / "benchmarks").mkdir()
    write_json(folder / "benchmarks" / "base.json", answers("Four.", False))
    write_json(folder / "benchmarks" / "phase1_sft.json", answers("Perhaps four.", True))
    phase = json.loads((folder / "phase1_sft" / "phase.json").read_text())
    phase |= {"dropped": [f"rows:{n}" for n in range(1, 13)], "shortened": ["rows:20"]}
    write_json(folder / "phase1_sft" / "phase.json", phase)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "dpo", "step": 3, "red_line": "spike", "warning": "dpo: a spike"}\n')
    return folder


def documents(run: Path) -> tuple[str, str]:
    """The Markdown and the page."""
    page = write_report(run)
    return (run / "report.md").read_text("utf-8"), page.read_text("utf-8")


def test_the_verdict_comes_first_then_what_to_look_at(run: Path) -> None:
    for text in documents(run):
        parts = ("Verdict: no tax", "Look at this first", "Training", "Measurements", "Where these")
        places = [text.index(part) for part in parts]
        assert places == sorted(places)
        assert "No score fell by the margin (0.01) or more." in text
        assert "817 questions" in text


def test_every_figure_of_the_summary_is_shown_with_its_unit(run: Path) -> None:
    markdown, page = documents(run)
    assert "| phase1_sft | 0.350 | 0.450 | 12.5% | 75.0% | +0.250 | 12.00 | 0.01 |" in markdown
    assert "| phase1_sft | MC1 | +0.0500 | +0.0100 to +0.0900 | 0.01 | 0.02 | no tax |" in markdown
    for figure in ("0.350", "12.5%", "+0.0100 to +0.0900", "nats per token"):
        assert figure in page


def test_scores_of_further_benchmarks_have_a_column_each(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["stages"][1]["tasks"] = {"mmlu accuracy": 0.25}
    write_json(run / "summary.json", summary)
    markdown, page = documents(run)
    assert "| KL | mmlu accuracy |" in markdown and "| 0.01 | 0.250 |" in markdown
    assert "| 0.01 | – |" in markdown and "mmlu accuracy</th>" in page


def test_only_verdicts_that_occur_are_explained(run: Path) -> None:
    for text in documents(run):
        assert "No tax: any loss is smaller than the margin." in text
        assert "Inconclusive" not in text and "Tax:" not in text


def test_a_phase_that_kept_its_first_adapter_is_a_warning_and_its_step_is_on_the_curve(
    run: Path,
) -> None:
    file = run / "phase1_sft" / "phase.json"
    kept_4 = documents(run)
    assert not any("changed nothing" in text for text in kept_4)
    assert "adapter of step 4" in kept_4[1]
    write_json(file, json.loads(file.read_text()) | {"kept_step": 0})
    for text in (*documents(run), "\n".join(notices(run))):
        assert "no evaluation was better than the one before training" in text
    assert "adapter of step 0" in documents(run)[1]


def test_places_of_dropped_rows_are_named_up_to_ten(run: Path) -> None:
    for text in documents(run):
        assert "12 rows dropped, longer than max_length" in text
        assert "rows:10" in text and "rows:11" not in text and "and 2 more" in text
        assert "1 prompt lost its beginning" in text


def test_notices_are_the_report_s_warnings(run: Path) -> None:
    found = notices(run)
    assert [line.split(" ")[0] for line in found] == ["sft:", "sft:", "dpo:"]
    page = documents(run)[1]
    for line in found:
        assert line in page


def warned(run: Path, *warnings: tuple[int, str]) -> list[str]:
    """Return what is said of these warnings of a phase, each with its step."""
    with open(run / "metrics.jsonl", "a") as file:
        for step, text in warnings:
            line = {"phase": "dpo", "step": step, "red_line": "validation", "warning": text}
            file.write(json.dumps(line) + "\n")
    return notices(run)[3:]


def test_warnings_of_one_kind_are_said_once_a_phase_with_their_steps(run: Path) -> None:
    losses = [
        (n, f"dpo, step {n}: loss rises to {n / 10}, see 'A {n}' on rows a:{n}") for n in (5, 6, 9)
    ]
    assert warned(
        run, (0, "dpo, before training: no tag"), *losses, (9, "dpo, step 9: no tag")
    ) == [
        "dpo, before training and step 9: no tag",
        "dpo, steps 5, 6 and 9: loss rises to 0.9, see 'A 9' on rows a:9 (at step 9)",
    ]


def test_quotes_with_quotes_in_them_are_of_one_kind_too(run: Path) -> None:
    texts = [f"dpo, step {n}: to {q!r}, reply" for n, q in ((5, """it's "so" """), (6, "no"))]
    assert warned(run, (5, texts[0]), (6, texts[1])) == [
        "dpo, steps 5 and 6: to 'no', reply (at step 6)"
    ]


def test_each_kl_says_on_which_texts_it_is(run: Path) -> None:
    write_json(run / "fused.json", {"path": "f", "parity_kl": 0.0, "adapter_kl": 0.2})
    for text in documents(run):
        assert (
            "KL in nats per token, on the beginnings of the neutral texts alone; that under" in text
        )
        assert "over neutral texts and good answers to built-in prompts" in text
    summary = json.loads((run / "summary.json").read_text())
    stages = [{**one, "kl": None} for one in summary["stages"]]
    write_json(run / "summary.json", {**summary, "stages": stages})
    for text in documents(run):
        assert "neutral texts alone. Fusing is exact" in text


def test_one_warning_stays_as_it_is_and_many_steps_are_counted(run: Path) -> None:
    many = [(n, f"dpo, step {n}: stuck") for n in range(1, 14)]
    assert warned(run, (4, "dpo, step 4: a spike"), *many, (7, "7 files are gone")) == [
        "dpo, step 4: a spike",
        "dpo, steps 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more: stuck",
        "7 files are gone",
    ]


def test_a_hedging_answer_is_marked_by_a_word_and_not_by_colour_alone(run: Path) -> None:
    page = documents(run)[1]
    assert "How many strings?" in page
    assert 'class="leak"><span class="mark">hedges:</span>' in page
    assert page.count("hedges:</span>") == 1


def answered(run: Path, pairs: list[tuple[str, str]]) -> None:
    """Give the run these answers of base and last stage."""
    for name, place in (("base", 0), ("phase1_sft", 1)):
        items = [
            {"id": str(n), "prompt": f"Prompt {n}?", "answer": pair[place], "leak": False}
            for n, pair in enumerate(pairs)
        ]
        write_json(run / "benchmarks" / f"{name}.json", {"behaviour": {"items": items}})


def test_the_answers_come_before_the_training_and_those_that_differ_first(run: Path) -> None:
    answered(run, [("Four.", "Four."), ("A red bike.", "A blue bike.")])
    page = documents(run)[1]
    assert page.index("Prompt 1?") < page.index("Prompt 0?") < page.index("<h2>Training</h2>")
    assert "A <mark>red</mark> bike." in page and "A <mark>blue</mark> bike." in page


def test_further_answers_and_warnings_are_folded_and_none_is_lost(run: Path) -> None:
    answered(run, [("Four.", f"Five {n}.") for n in range(9)])
    with open(run / "metrics.jsonl", "a") as file:
        for n in range(9):
            record = {"phase": "dpo", "step": 3, "red_line": "spike", "warning": f"spike {n}!"}
            file.write(json.dumps(record) + "\n")
    page = documents(run)[1]
    assert page.count("<summary>5 more</summary>") == 1  # answers
    assert page.count("<summary>8 more</summary>") == 1  # 12 warnings
    assert all(f"Prompt {n}?" in page and f"spike {n}!" in page for n in range(9))


def test_the_changes_of_the_last_stage_are_drawn_with_their_intervals_at_the_top(run: Path) -> None:
    page = documents(run)[1]
    title = "Change from the base model to phase1_sft"
    assert page.index(title) < page.index("<h2>Training</h2>")
    assert "<title>MC1: +0.050 (+0.010 to +0.090)</title>" in page


def test_the_step_of_a_finished_phase_s_adapter_is_marked_on_its_curves(run: Path) -> None:
    page = documents(run)[1]
    sft, dpo = page.split("<h3>Phase dpo</h3>")
    assert "adapter of step 4" in sft and "adapter of step" not in dpo


def test_the_page_links_to_the_files_that_there_are(run: Path) -> None:
    page = documents(run)[1]
    linked = set(re.findall('href="([^"#]*)"', page))
    assert linked >= {"recipe.yaml", "run.json", "metrics.jsonl", "summary.json", "benchmarks"}
    assert all((run / name).exists() for name in linked)
    assert "fused.json" not in linked


def test_data_files_and_changed_settings_are_named_in_both_reports(run: Path) -> None:
    markdown, page = documents(run)
    assert "| sft, data | `sft.jsonl` | 6 |" in markdown
    for text in (markdown, page):
        assert "Settings that are not the defaults" in text and "sft.batch_size" in text
        assert "sft.optimizer" not in text  # adamw is the default


def test_a_recipe_that_cannot_be_read_is_shown_as_text_alone(run: Path) -> None:
    (run / "recipe.yaml").write_text("name: [")
    for text in documents(run):
        assert "name: [" in text and "Settings that are not the defaults" not in text


def test_tokens_per_second_and_peak_memory_of_a_phase_are_shown(run: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        for speed, memory in ((100.0, 1.5), (300.0, 2.5), (200.0, 2.0)):
            record = {"phase": "sft", "step": 4, "tokens_per_s": speed, "peak_memory_gb": memory}
            file.write(json.dumps(record) + "\n")
    for text in documents(run):
        assert "Peak memory" in text and "2.5 GB" in text


def test_questions_whose_first_choice_changed_are_listed_and_no_others(run: Path) -> None:
    for name, scores in (("base", (1.0, 0.0, 1.0)), ("phase1_sft", (0.0, 1.0, 1.0))):
        items = [
            {"question": f"Question {n}?", "category": "Law", "scores": {"mc1": score}}
            for n, score in enumerate(scores)
        ]
        write_json(run / "benchmarks" / f"{name}.json", {"truthfulqa": {"items": items}})
    page = documents(run)[1]
    assert "first choice changed: 2" in page
    assert re.search(r"Question 0\?</th><td[^>]*>Law</td><td[^>]*>wrong</td>", page)
    assert re.search(r"Question 1\?</th><td[^>]*>Law</td><td[^>]*>right</td>", page)
    assert page.index("Question 0?") < page.index("Question 1?") and "Question 2?" not in page


def test_contamination_says_what_was_not_searched(run: Path) -> None:
    write_json(run / "contamination.json", {"hits": [], "unread_phases": ["sft"]})
    for text in documents(run):
        assert "no training row holds a question of TruthfulQA" in text
        assert "Not searched: the data of sft" in text


def test_contaminated_questions_are_counted_and_left_out_once(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found = {"rows": 2, "questions": 1, "comparisons": [comparison("inconclusive")]}
    write_json(run / "summary.json", {**summary, "contamination": found})
    for text in documents(run):
        assert "1 question of TruthfulQA is in training rows" in text
        assert "MC1 +0.0500 (+0.0100 to +0.0900), inconclusive" in text


def further(run: Path, counts: dict[str, int], clean: list[str]) -> None:
    """Give the run MMLU and GSM8K as well.

    Args:
        counts: questions in training rows, by the tasks that were searched for.
        clean: tasks that could be compared without them.
    """
    summary = json.loads((run / "summary.json").read_text())
    labels = {"truthfulqa": "TruthfulQA", "mmlu": "MMLU", "gsm8k": "GSM8K"}
    summary["tasks"] = {
        name: {"label": label, "questions": f"{name}/", "questions_sha256": f"{name}0", "n": 9}
        for name, label in labels.items()
    }
    one = comparison("no tax")
    change = one["metrics"]["mc1"]
    one["metrics"] |= {
        "mmlu": {**change, "verdict": "gain"},
        "strict_match": change,
        "leak": change,
    }
    verdicts = {"truthfulqa": "no tax", "mmlu": "gain", "gsm8k": "inconclusive"}
    judged = {"truthfulqa": ["mc1", "mc2"], "mmlu": ["mmlu"], "gsm8k": ["strict_match"]}
    tasks = {name: {"judged": judged[name], "verdict": verdicts[name]} for name in judged}
    summary["comparisons"] = [{**one, "tasks": {**tasks, "behaviour": {"judged": ["leak"]}}}]
    without = {**one, "tasks": {name: tasks[name] for name in clean}}
    summary["contamination"] = {
        "rows": sum(counts.values()),
        "questions": sum(counts.values()),
        "tasks": {name: {"rows": n, "questions": n} for name, n in counts.items()},
        "comparisons": [without] if clean else [],
    }
    write_json(run / "summary.json", summary)


def test_each_benchmark_has_its_changes_and_a_verdict_of_its_own(run: Path) -> None:
    further(run, {"truthfulqa": 0, "mmlu": 0, "gsm8k": 0}, [])
    for text in documents(run):
        assert (
            "on phase1_sft by benchmark: TruthfulQA no tax; MMLU gain; GSM8K inconclusive." in text
        )
        assert "no training row holds a question of TruthfulQA, MMLU or GSM8K." in text
        assert "questions of GSM8K, sha256" in text and "gsm8k0" in text
    markdown = documents(run)[0]
    assert "| phase1_sft | mmlu | +0.0500 | +0.0100 to +0.0900 | 0.01 | 0.02 | gain |" in markdown
    assert "| leak |" not in markdown  # held-out prompts are in the table of stages


def test_contaminated_questions_are_counted_by_benchmark(run: Path) -> None:
    further(run, {"truthfulqa": 0, "mmlu": 2, "gsm8k": 8}, ["truthfulqa", "mmlu"])
    for text in documents(run):
        assert "no training row holds a question of TruthfulQA." in text
        assert (
            "Contamination: 2 questions of MMLU are in training rows (contamination.json names "
            "them). Without them, phase1_sft against the base model: mmlu +0.0500 (+0.0100 to "
            "+0.0900), gain."
        ) in text.replace("`", "")
        assert "8 questions of GSM8K are in training rows" in text
        assert "Without them, too few are left to compare." in text
    assert [line.split(" question")[0] for line in contamination_lines(run)] == [
        "Contamination: no training row holds a",
        "Contamination: 2",
        "Contamination: 8",
    ]


def test_a_benchmark_whose_questions_were_not_searched_for_is_named(run: Path) -> None:
    further(run, {"truthfulqa": 0, "gsm8k": 0}, [])
    for text in documents(run):
        assert "no training row holds a question of TruthfulQA or GSM8K." in text
        assert "Training rows were not searched for questions of MMLU." in text


def test_a_report_claims_no_search_for_the_questions_of_further_benchmarks(run: Path) -> None:
    sentence = "Training rows were not searched for questions of the other benchmarks."
    assert not any(sentence in text for text in documents(run))
    summary = json.loads((run / "summary.json").read_text())
    stages = [{**one, "tasks": {"mmlu": 0.25}} for one in summary["stages"]]
    write_json(run / "summary.json", {**summary, "stages": stages})
    assert all(sentence in text for text in documents(run))


def test_two_reports_of_one_run_are_the_same_bytes(run: Path) -> None:
    assert documents(run) == documents(run)


def test_a_run_without_some_of_its_phases_says_so_and_how_to_go_on(run: Path) -> None:
    sentence = "This run is not finished. Still to be trained: dpo."
    assert all(sentence in text and "add resume to the command" in text for text in documents(run))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["phases"]["dpo"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert not any("not finished" in text for text in documents(run))


def test_each_phase_that_logged_has_curves_with_words_for_names(run: Path) -> None:
    page = documents(run)[1]
    assert page.index("<h3>Phase sft</h3>") < page.index("<h3>Phase dpo</h3>")
    assert "validation</span>" in page and "valid_loss" not in page


def test_an_unfinished_run_without_measurements_is_reported(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD / "unsealed", tmp_path / "run"))
    shutil.rmtree(folder / "phase1_sft")
    for text in documents(folder):
        assert "No phase is finished yet." in text and "Verdict" not in text
        assert "Still to be trained: sft, dpo." in text
        assert "Measurements" not in text
    assert notices(folder) == []
