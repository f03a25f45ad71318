"""After a loss, a run names the phase that lost it, and what to try."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.archive import measured_stage

from forty2.benchmark.summary import Summary, summarize
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Recipe
from forty2.runs.next_steps import next_steps

RUN = Path("adapters/shop")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(
        {
            "version": 1,
            "name": "shop",
            "model": "smollm2",
            "phases": {
                "sft": {"objective": "sft", "data": "builtin:spark-sft", "steps": 9, "lr": 2e-4},
                "dpo": {
                    "objective": "dpo",
                    "data": "builtin:spark-dpo",
                    "steps": 9,
                    "lr": 5e-5,
                    "beta": 0.1,
                },
            },
        }
    )


def measured(**shares: float) -> Summary:
    stages = [measured_stage(name, share) for name, share in shares.items()]
    return summarize(stages, 0.01, (), ())


def test_the_phase_that_lost_is_named_with_the_model_before_it(recipe: Recipe) -> None:
    summary = measured(base=0.6, phase1_sft=0.7, phase2_dpo=0.2)
    lost, try_ = next_steps(summary, recipe, RUN)
    assert lost.startswith("dpo, against the model before it: ") and "0.700 → 0.200" in lost
    assert "forty2 chat adapters/shop/phase1_sft" in try_
    assert "`reuse=adapters/shop` `overrides=phases.dpo.lr=2.5e-05`" in try_


def test_a_loss_of_the_first_phase_is_its_own(recipe: Recipe) -> None:
    summary = measured(base=0.7, phase1_sft=0.2, phase2_dpo=0.2)
    (try_,) = next_steps(summary, recipe, RUN)
    assert "gentler sft" in try_ and "phases.sft.lr=0.0001" in try_ and "reuse" not in try_


def test_what_a_phase_lost_is_said_even_if_the_whole_run_gained(recipe: Recipe) -> None:
    (lost,) = next_steps(measured(base=0.1, phase1_sft=0.9, phase2_dpo=0.5), recipe, RUN)
    assert lost.startswith("dpo, against the model before it")


@pytest.mark.parametrize(
    "shares",
    [
        {"base": 0.2, "phase1_sft": 0.5, "phase2_dpo": 0.8},
        {"base": 0.2, "phase2_dpo": 0.8},
        {"base": 0.8, "phase2_dpo": 0.8},
    ],
)
def test_where_nothing_was_lost_nothing_is_said(shares: dict[str, float], recipe: Recipe) -> None:
    assert next_steps(measured(**shares), recipe, RUN) == []
