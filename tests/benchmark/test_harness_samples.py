"""Files of lm-evaluation-harness 0.4.13: what is read from them, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from support.harness_files import DATE, FOLDER, line, write

from forty2.benchmark.harness_samples import SampledTask, read_samples
from forty2.errors import BenchmarkError, DataError


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_means_are_those_that_the_harness_computed(side: str) -> None:
    folder = FOLDER / f"tiny__{side}"
    (results,) = folder.glob("results_*.json")
    stored = json.loads(results.read_text("utf-8"))["results"]["gsm8k"]
    samples = read_samples(folder)
    assert samples.model == f"tiny/{side}"
    task = samples.tasks["gsm8k"]
    assert task.metrics == ("exact_match,strict-match", "exact_match,flexible-extract")
    for name in task.metrics:
        mean = sum(item.scores[name] for item in task.items) / len(task.items)
        assert mean == pytest.approx(stored[name])
    assert task.settings == {"version": 3.0, "n-shot": 2, "chat template": False}


def test_the_folder_above_the_only_model_and_the_file_itself_are_read_alike(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "tiny__before", tmp_path / "out" / "tiny__before")
    (file,) = (FOLDER / "tiny__before").glob("samples_*.jsonl")
    assert read_samples(tmp_path / "out") == read_samples(file)


def test_a_file_without_results_beside_it_is_named_after_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "my-model", "arc", [line(0, acc=1.0)])
    samples = read_samples(tmp_path / "my-model")
    assert samples.model == "my-model" and samples.tasks["arc"].settings == {}


def test_a_metric_that_is_no_number_is_left_out_and_named(tmp_path: Path) -> None:
    lines = [line(n, acc=1.0, bleu=["a", "b"], f1=[0, 1]) for n in range(2)]
    write(tmp_path, "arc", lines)
    with pytest.warns(UserWarning, match="bleu, f1: left out"):
        assert read_samples(tmp_path).tasks["arc"].metrics == ("acc",)


def test_metrics_of_an_earlier_release_are_the_other_keys(tmp_path: Path) -> None:
    old = line(0, acc=0.0, acc_norm=1.0)
    del old["metrics"], old["doc_hash"], old["filter"]
    write(tmp_path, "arc", [old])
    assert read_samples(tmp_path).tasks["arc"].items[0].scores == {"acc": 0.0, "acc_norm": 1.0}


@pytest.mark.parametrize(
    ("name", "higher", "better", "low"),
    [
        ("acc", {}, "higher", 0),
        ("exact_match,strict-match", {}, "higher", 0),
        ("word_perplexity", {}, "lower", -math.inf),
        ("brier_score", {}, "lower", -math.inf),
        ("brier_score", {"brier_score": True}, "higher", -math.inf),
        ("acc", {"acc": None}, "neither", 0),
        ("later", {}, "higher", -math.inf),
    ],
)
def test_directions_are_those_of_the_results_or_of_the_name(
    name: str, higher: dict[str, bool | None], better: str, low: float
) -> None:
    metric = SampledTask(name="t", items=(), settings={}, higher=higher).metric(name)
    assert (metric.better, metric.low) == (better, low)


def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path) -> None:
    def refused(message: str, *, of: type[Exception] = BenchmarkError) -> None:
        with pytest.raises(of, match=message):
            read_samples(tmp_path)
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    refused("holds no samples_TASK_DATE.jsonl.*log_samples")
    write(tmp_path, "arc", [line(0, acc=1)])
    write(tmp_path, "arc", [line(0, acc=1)], "2026-01-03T03-04-05.678901")
    refused("samples of two runs of arc")
    write(tmp_path / "a", "arc", [line(0, acc=1)])
    write(tmp_path / "b", "arc", [line(0, acc=1)])
    refused(r"several models \(a, b\)")
    write(tmp_path, "arc", [line(0, acc=1), line(0, acc=0)])
    refused(rf"samples_arc_{DATE}.jsonl:2: doc_id 0 is there twice")
    write(tmp_path, "arc", [line(0, acc=math.nan)])
    refused("not finite|NaN", of=(BenchmarkError, DataError))  # type: ignore[arg-type]
    write(tmp_path, "arc", [line(0, acc=10**400)])
    refused("acc is not finite")
    write(tmp_path, "arc", [{"messages": []}])
    refused(r"jsonl:1: has no doc_id")
    write(tmp_path, "arc", [line(0, bleu=["a", "b"])])
    refused("no metric of it has one number")
    write(tmp_path, "arc", [line(0, acc=1)]).write_text('{"doc_id": 0, "acc', "utf-8")
    refused("jsonl:1", of=DataError)
    write(tmp_path, "arc", [line(0, acc=1)])
    (tmp_path / f"results_{DATE}.json").write_text("[]", "utf-8")
    refused(f"results_{DATE}.json: is no object")
