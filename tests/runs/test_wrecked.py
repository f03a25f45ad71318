"""Training that wrecks the real starter model is told while it trains, and never called a gain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forty2
from forty2.files import read_json


@pytest.mark.slow  # nine minutes of one core, most of them for the measurements
def test_a_model_that_loses_its_language_is_worse_whatever_its_benchmarks_gained(
    tmp_path: Path,
) -> None:
    """DPO at so high a rate raises TruthfulQA's shares and the pairs' own, and costs neutral text."""
    dpo = {
        "objective": "dpo",
        "data": "builtin:spark-dpo",
        "steps": 30,
        "batch_size": 4,
        "lr": 1e-3,
        "beta": 0.1,
        "schedule": "constant",
        "warmup_steps": 5,
        "eval_every_steps": 15,
    }
    recipe = forty2.load_recipe(
        {
            "version": 1,
            "name": "wrecked",
            "model": "smollm2",
            "max_length": 512,
            "adapter": {"rank": 16, "scale": 2.0, "layers": 12},
            "phases": {"dpo": dpo},
            "benchmark": {"tasks": ["truthfulqa"], "questions": "probe"},
        }
    )
    result = forty2.run(recipe, run_dir=tmp_path / "run")
    base, tuned = read_json(result.path / "summary.json")["stages"]
    assert tuned["mc2"] > base["mc2"] + 0.05
    assert tuned["perplexity"] > 1.2 * base["perplexity"]
    assert result.verdict == "tax"
    assert "worse on neutral text: perplexity" in result.sentence
    lines = map(json.loads, (result.path / "metrics.jsonl").read_text("utf-8").splitlines())
    assert [line["step"] for line in lines if line.get("red_line") == "drift"] == [30]
