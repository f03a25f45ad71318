"""A phase that hands its optimizer on: the next one goes on as if it were the same phase."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.runs import short_checks
from support.small_run import make_inputs

from forty2.errors import RecipeError
from forty2.model.adapter import load_arrays
from forty2.recipe.places import changed
from forty2.recipe.reading import load_recipe
from forty2.runs.pipeline import run
from forty2.runs.planning import plan
from forty2.training import loop
from forty2.training.checkpoints import OPTIMIZER

RECIPE = """
version: 1
name: carried
model: model
max_length: 96
adapter: {rank: 2, scale: 4.0, layers: 2}
phases:
  one: {objective: sft, data: sft.jsonl, steps: 3, lr: 1.0e-2, batch_size: 5, save_every_steps: 1,
    lint: false, carry_optimizer: true}
  two: {objective: sft, data: sft.jsonl, steps: 3, lr: 1.0e-2, batch_size: 5, save_every_steps: 1,
    lint: false}
benchmark: null
"""
NEW = "phases.one.carry_optimizer=false"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mx.random.seed(0)
    make_inputs(tmp_path / "inputs")
    (tmp_path / "inputs" / "carried.yaml").write_text(RECIPE)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "inputs")
    return tmp_path / "inputs"


def trained(folder: str, *overrides: str, phase: str = "phase2_two", resume: bool = False) -> bytes:
    with short_checks():
        run(load_recipe("carried.yaml", overrides), run_dir=folder, resume=resume)
    return Path(folder, phase, "adapters.safetensors").read_bytes()


def weights(folder: str, phase: str) -> np.ndarray:
    arrays = load_arrays(Path(folder, phase, "adapters.safetensors"))
    return np.concatenate([np.asarray(arrays[name]).ravel() for name in sorted(arrays)])


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_two_phases_are_as_one_of_all_steps(inputs: Path, optimizer: str) -> None:
    # every step reads all rows, so that their order does not matter
    both = [f"phases.{name}.optimizer={optimizer}" for name in ("one", "two")]
    alone = "phases={one: {objective: sft, data: sft.jsonl, steps: 6, lr: 1.0e-2, batch_size: 5, lint: false"
    trained("whole", f"{alone}, optimizer: {optimizer}}}}}", phase="phase1_one")
    trained("carried", *both)
    trained("new", *both, NEW)
    whole = weights("whole", "phase1_one")
    np.testing.assert_allclose(weights("carried", "phase2_two"), whole, atol=2e-5)
    assert np.abs(weights("new", "phase2_two") - whole).max() > 1e-3
    assert not Path("new/phase1_one", OPTIMIZER).exists()
    assert not Path("carried/phase2_two", OPTIMIZER).exists()


@pytest.mark.parametrize("step", [1, 2])
def test_a_stopped_phase_goes_on_to_the_same_bytes(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    wanted = trained("whole")
    take_step = loop._Attempt._take_step

    def stop(attempt: loop._Attempt, number: int) -> None:
        if attempt.training.name == "two" and number == step:
            raise KeyboardInterrupt
        take_step(attempt, number)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop._Attempt, "_take_step", stop)
        trained("stopped")
    assert trained("stopped", resume=True) == wanted


def test_the_plan_counts_the_moments(inputs: Path) -> None:
    one, two = plan(load_recipe("carried.yaml"), quick=True).phases
    assert one.kept_bytes == 3 * two.kept_bytes


def test_a_part_of_a_recipe_may_end_with_a_phase_that_hands_on(inputs: Path) -> None:
    """As the first phases that several configurations of a sweep share."""
    recipe = load_recipe("carried.yaml")
    part = changed(recipe, phases={"one": recipe.phases["one"]})
    assert part.phases["one"].carry_optimizer


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["phases.two.optimizer=lion"], r"one: carry_optimizer: optimizer is adamw .* lion in two"),
        (["phases.two.carry_optimizer=true"], r"two\.carry_optimizer: no phase comes after it"),
        (["phases.two.train=dora"], r"one: carry_optimizer: train is lora here and dora in two"),
        (
            ["tags=[<a>]", "phases.one.tags_lr=0.01"],
            r"one: carry_optimizer: tags_lr is given here and left out in two, .*make them alike",
        ),
        (
            ["phases.one.best={metric: perplexity, direction: min}"],
            r"phases\.one\.carry_optimizer: the moments are those of the last step",
        ),
    ],
)
def test_moments_that_do_not_fit_are_refused(inputs: Path, changes: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        load_recipe("carried.yaml", changes)
    assert "\n" not in str(error.value)
