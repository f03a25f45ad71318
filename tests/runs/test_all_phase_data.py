"""`run` and `plan` refuse the same rows, and warn of the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.models import tiny_model
from support.small_run import make_inputs

from forty2.cli import main
from forty2.errors import ModelError
from forty2.recipe.reading import load_recipe
from forty2.runs.pipeline import run
from forty2.runs.planning import plan

RECIPE = """
version: 1
name: kept
model: model
max_length: 96
adapter: {rank: 2, layers: 2}
phases: {only: {lint: false, steps: 1, lr: 1.0e-2, %s}}
fuse: null
benchmark: null
"""
WAYS = [partial(plan, quick=True), run]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a small run's inputs, as the working folder."""
    monkeypatch.chdir(make_inputs(tmp_path / "inputs"))
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return Path.cwd()


def recipe_of(phase: str) -> Any:
    Path("recipe.yaml").write_text(RECIPE % phase)
    return load_recipe("recipe.yaml")


@pytest.mark.parametrize("way", WAYS)
def test_packed_rows_are_refused_where_they_would_see_each_other(
    way: Callable[[Any], object], here: Path
) -> None:
    config = json.loads((here / "model" / "config.json").read_text())
    model = tiny_model("gemma2", vocab_size=config["vocab_size"])
    model.save_weights(str(here / "model" / "model.safetensors"))
    config |= model.args.__dict__ | {"query_pre_attn_scalar": 144}
    (here / "model" / "config.json").write_text(json.dumps(config))
    prepare = ["data", "prepare", "--input", "sft.jsonl", "--output-dir", "packs", "--pack", "96"]
    ran = CliRunner().invoke(
        main, [*prepare, "--model", "model", "--max-length", "96", "--workers", "1"]
    )
    assert ran.exit_code == 0, ran.output
    with pytest.raises(ModelError, match="cannot keep packed rows apart"):
        way(recipe_of("objective: sft, data: packs"))


def test_a_run_warns_of_what_its_plan_warns_of(here: Path) -> None:
    rows = [
        {"prompt": f"{n}?", "completion": f"{n}.", "label": label}
        for n, label in enumerate([True, True, True, False])
    ]
    (here / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of("objective: kto, data: rated.jsonl, beta: 0.1, batch_size: 2")
    said: list[object] = []
    mx.random.seed(0)
    run(recipe, progress=lambda _, __, ___, info: said.append(info.get("warning")))
    (warning,) = (one for one in plan(recipe, quick=True).warnings if "desirable rows" in one)
    assert warning in said
