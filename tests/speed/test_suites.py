"""Suites: every trainer gets the same rows, of the lengths that the suite names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forty2.model.loading import load
from forty2.speed.environments import PEERS, WORKERS
from forty2.speed.operation_count import model_shapes
from forty2.speed.suites import SUITES, compose_rows, write_large_vocabulary_model

MODEL = Path(__file__).parents[1] / "old_runs" / "inputs" / "model"


@pytest.mark.parametrize("name", ["dpo-short", "dpo-long"])
def test_pairs_are_the_same_every_time_and_of_the_lengths_of_the_suite(name: str) -> None:
    rows = compose_rows(name, 12, MODEL)
    assert rows == compose_rows(name, 12, MODEL)
    assert rows != compose_rows(name, 8, MODEL)
    assert rows.count == len(rows.inputs.pairs) == 12
    lengths = (64, 48, 48) if name == "dpo-short" else (384, 64, 64)
    for pair in rows.inputs.pairs:
        assert all(0.7 * n <= len(part) <= 1.3 * n for part, n in zip(pair, lengths, strict=True))
    assert rows.tokens == sum(len(part) for pair in rows.inputs.pairs for part in pair)
    assert rows.work.supervised == sum(len(c) + len(r) for _, c, r in rows.inputs.pairs)


def test_chats_are_the_same_every_time_and_have_a_long_tail() -> None:
    rows = compose_rows("sft-tail", 12, MODEL)
    assert rows == compose_rows("sft-tail", 12, MODEL)
    lengths = [len(ids) for ids, _ in rows.inputs.chats]
    assert max(lengths) <= 500 and min(lengths) >= 40 and max(lengths) > 2 * min(lengths)
    assert all(0 < start < len(ids) for ids, start in rows.inputs.chats)
    assert rows.tokens == sum(lengths)
    assert rows.work.supervised == sum(len(ids) - start for ids, start in rows.inputs.chats)


def test_questions_are_sampled_from_the_file_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {"Yes": 1, "No.": 0}
    asked = [
        {"question": f"Is {n} odd?", "mc1_targets": choices, "mc2_targets": choices}
        for n in range(9)
    ]
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa" / "mc_task_v0_817.json").write_text(json.dumps(asked))
    monkeypatch.setenv("FORTY2_BENCH_DATA", str(tmp_path))
    rows = compose_rows("truthfulqa", 4, MODEL)
    assert rows.count == len(rows.inputs.questions) == 4
    for question in rows.inputs.questions:
        assert question["context"].endswith(f"\n\nQ: {question['question']}\nA:")
        assert question["mc1"] == question["mc2"] == ["Yes", "No."]
    assert compose_rows("truthfulqa", 100, MODEL).count == 9


def test_every_suite_names_workers_and_trainers_that_exist() -> None:
    for suite in SUITES.values():
        assert suite.peers.keys() <= PEERS.keys()
        for worker in (suite.ours, *suite.peers.values()):
            assert (WORKERS / f"{worker}.py").exists()


def test_the_model_with_a_large_vocabulary_loads_and_is_mostly_vocabulary(tmp_path: Path) -> None:
    loaded = load(str(write_large_vocabulary_model(tmp_path / "model")), lazy=True)
    assert loaded.config["vocab_size"] == 200_064
    shapes = model_shapes(loaded.model, loaded.config)
    assert shapes is not None and shapes.head > 50 * shapes.trained
