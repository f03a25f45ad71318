"""Our results in the harness's form: read back the same, and set beside the harness's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.benchmarks import random_result, summarized
from support.harness_files import FOLDER, line, write

import forty2
from forty2.benchmark.harness_samples import read_samples
from forty2.cli import main
from forty2.errors import BenchmarkError

SHOTS = {"shots": 2, "chat_template": False, "multiturn": False, "max_tokens": 256}


def export(folder: Path, name: str, found: dict[str, Any]) -> Path:
    """Write a result, and export it by the command."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(found), "utf-8")
    out = folder / f"{name}-harness"
    result = CliRunner().invoke(main, ["export", "results", str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out / name


def gsm8k(right: list[bool], **settings: Any) -> dict[str, Any]:
    """Our result on the sums of the harness's files."""
    (file,) = (FOLDER / "tiny__before").glob("samples_*.jsonl")
    docs = [json.loads(x)["doc"] for x in file.read_text("utf-8").splitlines()[: len(right)]]
    records = [
        {
            "number": number,
            "question": doc["question"],
            "answer": doc["answer"].rpartition("#### ")[2],
            "reply": "It is 7.",
            "tokens": 4,
            "stopped": True,
            "strict": "7",
            "flexible": "7",
            "strict_match": one,
            "flexible_extract": one,
        }
        for number, (doc, one) in enumerate(zip(docs, right, strict=True), 1)
    ]
    about = {"benchmark": "gsm8k", "model": "ours", "adapter": None, "data": "gsm", **SHOTS}
    return {**about, "data_sha256": "0", **settings, **summarized("gsm8k", records)}


def test_an_export_read_back_gives_the_same_statistics(tmp_path: Path) -> None:
    before, after = random_result(30, seed=1), random_result(30, seed=2, lift=1.0)
    wanted = forty2.compare(before, after)
    folders = [export(tmp_path, n, r) for n, r in (("before", before), ("after", after))]
    found = forty2.compare(*folders)
    for ours, theirs in (("mc1", "truthfulqa_mc1: acc"), ("mc2", "truthfulqa_mc2: acc")):
        left_out = {"p_holm", "verdict"}  # three metrics are corrected for there, two here
        assert {k: v for k, v in wanted.metrics[ours]._asdict().items() if k not in left_out} == {
            k: v for k, v in found.metrics[theirs]._asdict().items() if k not in left_out
        }


def test_lines_have_the_keys_of_the_harness(tmp_path: Path) -> None:
    folder = export(tmp_path, "sums", gsm8k([True] * 6))
    (ours,), (theirs,) = (
        [json.loads(f.read_text("utf-8").splitlines()[0]) for f in place.glob("samples_gsm8k_*")]
        for place in (folder, FOLDER / "tiny__before")
    )
    assert list(ours) == list(theirs)
    assert [type(value) for value in ours.values()] == [type(value) for value in theirs.values()]
    (results,) = folder.glob("results_*.json")
    found = json.loads(results.read_text("utf-8"))
    assert found["results"]["gsm8k"]["exact_match,strict-match"] == 1.0
    assert found["n-samples"] == {"gsm8k": {"original": 6, "effective": 6}}


def test_our_result_is_set_beside_the_harness_s(tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    file.write_text(json.dumps(gsm8k([True] * 5 + [False])), "utf-8")
    (theirs,) = (FOLDER / "tiny__before").glob("samples_*.jsonl")
    lines = map(json.loads, theirs.read_text("utf-8").splitlines())
    before = [x["exact_match"] for x in lines if x["filter"] == "strict-match"]
    change = forty2.compare(theirs, file).metrics["exact_match,strict-match"]
    assert change.n == 6 and change.before == pytest.approx(sum(before) / 6)
    assert change.better == sum(x < 1 for x in before[:5]) and change.after == pytest.approx(5 / 6)


def test_only_shared_tasks_are_compared_and_the_others_named(tmp_path: Path) -> None:
    ours = random_result(8, seed=1)
    docs = [{"question": item["question"]} for item in ours["items"]]
    write(tmp_path / "h", "truthfulqa_mc1", [line(n, acc=1.0, doc=d) for n, d in enumerate(docs)])
    with pytest.warns(UserWarning, match="truthfulqa_mc2 only after"):
        comparison = forty2.compare(tmp_path / "h", _file(tmp_path, ours))
    assert [*comparison.metrics] == ["acc"] and comparison.metrics["acc"].n == 8


def test_other_questions_examples_and_tasks_are_refused(tmp_path: Path) -> None:
    harness = FOLDER / "tiny__before"
    with pytest.raises(BenchmarkError, match="gsm8k has 6 items before and 4 after, 4 of them"):
        forty2.compare(harness, _file(tmp_path, gsm8k([True] * 4)))
    with pytest.raises(BenchmarkError, match="gsm8k: n-shot is 2 before and 5 after"):
        forty2.compare(harness, _file(tmp_path, gsm8k([True] * 6, shots=5)))
    with pytest.raises(BenchmarkError, match="gsm8k only before; truthfulqa_mc1, truthfulqa_mc2"):
        forty2.compare(harness, _file(tmp_path, random_result(6, seed=1)))


def test_every_stage_of_a_run_is_exported_and_an_existing_folder_is_refused(tmp_path: Path) -> None:
    stages = tmp_path / "run" / "benchmarks"
    stages.mkdir(parents=True)
    for seed, name in enumerate(("base", "phase1_sft")):
        stage = {"stage": name, "truthfulqa": random_result(6, seed=seed)}
        (stages / f"{name}.json").write_text(json.dumps(stage), "utf-8")
    command = ["export", "results", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, command).exit_code == 0
    for name in ("base", "phase1_sft"):
        samples = read_samples(tmp_path / "out" / name)
        assert [*samples.tasks] == ["truthfulqa_mc1", "truthfulqa_mc2"]
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 2 and "exists already" in again.output
    empty = ["export", "results", str(tmp_path), "--out", str(tmp_path / "new")]
    assert "measured nothing" in CliRunner().invoke(main, empty).output
    assert not (tmp_path / "new").exists()


def _file(folder: Path, found: dict[str, Any]) -> Path:
    file = folder / "ours.json"
    file.write_text(json.dumps(found), "utf-8")
    return file
