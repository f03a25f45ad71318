"""Drift from the base is nothing before training, and is measured on neutral text alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from support.small_run import make_inputs

from forty2.errors import BenchmarkError
from forty2.model.loading import load, model_sha256
from forty2.recipe.reading import load_recipe
from forty2.runs.drift import drift_meter
from forty2.runs.pipeline import run
from forty2.training.red_lines import MOST_KL, MOST_PERPLEXITY


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return make_inputs(tmp_path / "inputs")


def test_a_model_that_is_its_base_has_none_and_another_has_some(inputs: Path) -> None:
    loaded = load(str(inputs / "model"))
    measure = drift_meter(loaded, model_sha256(inputs / "model"))
    before = measure()
    assert before[:2] == (0.0, 1.0)
    layer = loaded.model.layers[-1].mlp.down_proj
    layer.weight = layer.weight + 0.5 * mx.random.normal(layer.weight.shape, key=mx.random.key(0))
    kl, ratio, perplexity = measure()
    assert kl > 0.01 and ratio != 1.0
    assert perplexity == pytest.approx(ratio * before.neutral_perplexity)


def test_a_cache_that_is_emptied_meanwhile_is_one_line(inputs: Path) -> None:
    loaded = load(str(inputs / "model"))
    measure = drift_meter(loaded, model_sha256(inputs / "model"))
    shutil.rmtree("cache")
    with pytest.raises(BenchmarkError, match=r"removed while it was needed.*go on with"):
        measure()


def judged(line: dict[str, float]) -> bool:
    return (
        line.get("drift_kl", 0.0) > MOST_KL or line.get("drift_perplexity", 1.0) > MOST_PERPLEXITY
    )


def test_a_phase_that_loses_its_base_warns_once_though_each_evaluation_measures_it(
    inputs: Path,
) -> None:
    said: list[str] = []
    changes = ["fuse=null", "phases.sft.lr=0.5", "phases.sft.eval_prompts=null"]
    recipe = load_recipe(str(inputs / "recipe.yaml"), changes)
    run(
        recipe,
        run_dir="run",
        only="sft",
        progress=lambda stage, done, total, info: said.extend(
            str(info[key]) for key in ("warning",) if key in info
        ),
    )
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    drift = {line["step"]: line["drift_kl"] for line in lines if "drift_kl" in line}
    assert list(drift) == [0, 2, 4, 5] and drift[0] == 0.0 < drift[5]
    assert [line["step"] for line in lines if judged(line)] == [2, 4, 5]
    (warning,) = [warning for warning in said if "neutral text has" in warning]
    assert warning.startswith("sft, step 2: ")
