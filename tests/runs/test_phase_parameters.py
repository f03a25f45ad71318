"""Runs whose phases train different parts: their plan, their folders, and that they go on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from click.testing import CliRunner
from support.processes import run_function
from support.runs import short_checks
from support.small_run import make_inputs

from forty2.cli import main
from forty2.errors import ModelError, RecipeError, RunError
from forty2.model.adapter import load_arrays
from forty2.model.loading import load
from forty2.recipe.reading import load_recipe
from forty2.runs import inputs as run_inputs
from forty2.runs.pipeline import run
from forty2.runs.planning import plan

RECIPE = """
version: 1
name: parts
model: model
max_length: 96
adapter: {rank: 2, scale: 4.0, layers: 2}
phases:
  words: {objective: sft, data: sft.jsonl, steps: 2, lr: 1.0e-2, batch_size: 3, train: embeddings,
    save_every_steps: 1, lint: false}
  sft: {objective: sft, data: sft.jsonl, steps: 2, lr: 1.0e-2, batch_size: 3, save_every_steps: 1,
    lint: false}
  all: {objective: dpo, data: dpo.jsonl, steps: 2, lr: 1.0e-3, batch_size: 3, train: full,
    save_every_steps: 1, lint: false, beta: 0.1}
fuse: {out: fused}
benchmark: null
"""
TABLE = "model.embed_tokens.weight"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mx.random.seed(0)
    make_inputs(tmp_path / "inputs")
    (tmp_path / "inputs" / "parts.yaml").write_text(RECIPE)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "inputs")
    return tmp_path / "inputs"


def test_each_phase_keeps_what_the_ones_before_trained(inputs: Path) -> None:
    with short_checks():
        done = run(load_recipe("parts.yaml"), run_dir="run")
    base = load_arrays(Path("model/model.safetensors"))
    words, sft, everything = (
        load_arrays(Path("run", name, "adapters.safetensors"))
        for name in ("phase1_words", "phase2_sft", "phase3_all")
    )
    assert words.keys() == {TABLE}
    np.testing.assert_array_equal(sft[TABLE], words[TABLE])
    assert (np.asarray(words[TABLE]) != np.asarray(base[TABLE])).any()
    assert everything.keys() == base.keys()
    assert len(sft) < len(everything)
    ids = mx.array([[5, 9, 30]])
    for folder in ("run/phase1_words", "run/phase2_sft", "run/phase3_all"):
        theirs, _ = mlx_lm.load("model", adapter_path=folder)
        np.testing.assert_allclose(theirs(ids), load("model", folder).model(ids), atol=1e-5)
    assert done.fused is not None
    np.testing.assert_allclose(load("fused").model(ids), load("model", "run").model(ids), atol=1e-4)


def test_the_plan_says_what_each_phase_takes(inputs: Path) -> None:
    forecast = plan(load_recipe("parts.yaml"), quick=True)
    words, sft, everything = forecast.phases
    base = load_arrays(Path("model/model.safetensors"))
    size = sum(value.size for value in base.values())
    assert (words.trained, everything.trained) == (base[TABLE].size, size)
    for one in forecast.phases:
        assert one.checkpoint_bytes == 9 * 4 * one.trained
    assert (words.kept_bytes, everything.kept_bytes) == (4 * words.trained, 4 * size)
    assert sft.peak_memory_gb < words.peak_memory_gb < everything.peak_memory_gb
    assert forecast.disk.kept == sum(one.kept_bytes for one in forecast.phases)
    assert forecast.disk.working >= everything.checkpoint_bytes
    result = CliRunner().invoke(main, ["plan", "parts.yaml"])
    assert result.exit_code == 0, result.output
    assert f"all: trains full, {size:,} parameters; memory about" in result.output
    with short_checks():
        run(load_recipe("parts.yaml", ["fuse=null"]), run_dir="run", only="sft")
    for one, folder in zip(forecast.phases, sorted(Path("run").glob("phase*")), strict=False):
        files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert one.kept_bytes < files < one.kept_bytes + 9_000, one.name


def test_a_disk_that_is_too_small_for_a_later_phase_is_told_at_once(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(sizes: dict[Path, int]) -> None:
        asked.extend(sizes.values())
        raise RunError("about 9 GB will be needed here")

    monkeypatch.setattr(run_inputs, "check_free_space", refuse)
    with pytest.raises(RunError, match="will be needed here"):
        run(load_recipe("parts.yaml"), run_dir="run")
    phases = plan(load_recipe("parts.yaml"), quick=True).phases
    assert asked == [sum(one.kept_bytes for one in phases) + phases[-1].checkpoint_bytes]
    assert not Path("run/phase1_words").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("phases.all.kl={weight: 0.1}", r"phases: all: kl reads .* train: full changes"),
        ("adapter.phase_attention={block: 1}", r"train: embeddings is not possible with"),
        ("phases.all.train=half", r"phases\.all\.train: .*'lora', 'dora', 'embeddings' or 'full'"),
    ],
)
def test_parts_that_cannot_be_trained_are_refused(inputs: Path, change: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("parts.yaml", [change, *(["fuse=null"] if "phase_att" in change else [])])


def test_an_adapter_that_replaces_weights_is_no_beginning(inputs: Path) -> None:
    with short_checks():
        run(load_recipe("parts.yaml", ["fuse=null"]), run_dir="run", only="words")
    with pytest.raises(
        RecipeError, match=r"init_from: .*phase1_words: replaces weights .* fuse it"
    ):
        load_recipe("parts.yaml", ["init_from=run/words"])


def test_a_quantized_model_is_refused_before_anything_is_trained(inputs: Path) -> None:
    mlx_lm.convert("model", mlx_path="small", quantize=True, q_group_size=32)
    with pytest.raises(ModelError, match=r"train: embeddings: this model is quantized, .*quantize"):
        run(load_recipe("parts.yaml", ["model=small"]), run_dir="run")
    changes = ["model=small", "phases.words.train=lora"]
    with pytest.raises(ModelError, match=r"phases\.all: train: full: this model is quantized"):
        plan(load_recipe("parts.yaml", changes), quick=True)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    run_function(killed, tmp_path)


def killed(place: str) -> None:
    """Stop after a checkpoint of each phase, and between phases."""
    from chaos import Killer, make_inputs_in_child, results, run_child

    inputs = make_inputs_in_child(Path(place, "inputs"))
    (inputs / "parts.yaml").write_text(RECIPE.replace("model: model", f"model: {inputs}/model"))
    whole = run_child(inputs, Path(place, "whole"), Killer(None), resume=False, recipe="parts")
    assert whole.code == 0, whole.message
    wanted: dict[str, Any] = results(Path(place, "whole"))
    steps = [n for n, label in enumerate(whole.labels, 1) if label == "before step"]
    assert len(steps) == 6
    for at in (steps[1], steps[2], steps[3], steps[5]):
        folder = Path(place, str(at))
        assert run_child(inputs, folder, Killer(at), resume=False, recipe="parts").code < 0
        again = run_child(inputs, folder, Killer(None), resume=True, recipe="parts")
        assert again.code == 0, again.message
        assert results(folder) == wanted
