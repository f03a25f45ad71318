"""Training that wrecks the real starter model is told while it trains, and never called a gain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forty2
from forty2.files import read_json


@pytest.mark.slow  # 200 steps of batches of 8: half an hour of one core
def test_a_wrecked_model_is_worse_whatever_its_benchmark_gained(tmp_path: Path) -> None:
    """So high a rate raises MC1 and MC2 of the probe, and takes plain facts and neutral text."""
    sft = {
        "objective": "sft",
        "data": "builtin:spark-sft",
        "steps": 200,
        "batch_size": 8,
        "lr": 8e-4,
        "schedule": "cosine",
        "warmup_steps": 5,
        "eval_every_steps": 50,
    }
    recipe = forty2.load_recipe(
        {
            "version": 1,
            "name": "wrecked",
            "model": "smollm2",
            "max_length": 512,
            "adapter": {"rank": 16, "scale": 2.0, "layers": 12},
            "phases": {"sft": sft},
            "benchmark": {"tasks": ["truthfulqa"], "questions": "probe"},
        }
    )
    result = forty2.run(recipe, run_dir=tmp_path / "run")
    base, tuned = read_json(result.path / "summary.json")["stages"]
    assert tuned["facts_right"] < base["facts_right"] - 0.1
    assert tuned["perplexity"] > 1.2 * base["perplexity"]
    assert result.verdict not in ("gain", "no tax", "no change")
    assert "worse on" in result.sentence and "plain facts" in result.sentence, result.sentence
    lines = map(json.loads, (result.path / "metrics.jsonl").read_text("utf-8").splitlines())
    assert [line["step"] for line in lines if line.get("red_line") == "drift"], "no warning"
