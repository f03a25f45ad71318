"""The memory that is estimated is near what was measured, and the manual's table is the estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.models import TINY, tiny_model
from support.training import ROWS, SPEC, sft
from support.training import run as train_tiny

from forty2.cli import main
from forty2.inference.logprobs import HEAD_CPU, supported_shortcuts
from forty2.inference.padding import BATCH_TOKENS_CPU
from forty2.model.adapter import attach_adapter
from forty2.model.loading import build_unloaded
from forty2.model.phase_parameters import set_trained
from forty2.progress import silent
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Adapter, Trains
from forty2.runs.memory import (
    MACS,
    MODELS,
    PRECISIONS,
    USABLE_MEMORY,
    extrapolated_row,
    memory_row,
    peak_memory,
)
from forty2.runs.pipeline import run
from forty2.runs.planning import plan
from forty2.training.batched_loss import ConversationLoss

ROOT = Path(__file__).parents[2]
STARTER = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def table() -> str:
    result = CliRunner().invoke(main, ["model", "memory"])
    assert result.exit_code == 0
    return result.output


def test_the_manual_s_table_is_what_the_planner_estimates(table: str) -> None:
    assert f"\n\n{table}\n" in (ROOT / "docs" / "performance.md").read_text("utf-8")


def test_a_mac_in_the_table_is_the_smallest_that_has_the_memory(table: str) -> None:
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")][2:]
        assert len(cells) == 2 * len(PRECISIONS)
        for cell in cells:
            size, mac = cell.rstrip(")").split(" (")
            usable = [USABLE_MEMORY * one * 2**30 / 1e9 for one in MACS]
            smaller = [gb for gb in usable if gb < float(size) - 0.05]
            assert mac == (str(MACS[len(smaller)]) if len(smaller) < len(MACS) else "–")


@pytest.mark.parametrize("bits", PRECISIONS.values())
def test_a_model_of_all_blocks_takes_what_two_blocks_foretell(bits: int | None) -> None:
    config = MODELS["Qwen2.5 0.5B"]
    assert memory_row(config, bits) == extrapolated_row(config, bits)


@pytest.mark.parametrize("suite", ["dpo-short", "dpo-long", "sft-tail"])
def test_the_estimate_is_near_the_peak_that_was_measured(suite: str) -> None:
    measured = json.loads((ROOT / "benchmarks" / "forty2-bench.json").read_bytes())["suites"]
    peak = measured[suite]["medians"]["forty2"]["mlx_gb"]
    model = build_unloaded(STARTER)
    attach_adapter(model, Adapter(layers=16), seed=0)
    found = peak_memory(model, STARTER, BATCH_TOKENS_CPU, False, chunk=HEAD_CPU) / 1e9
    assert found == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("trains", ["full", "embeddings"])
def test_weights_of_the_model_take_hardly_less_than_estimated(
    trains: Trains, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 8000}
    model = tiny_model(**sizes)
    set_trained(model, trains, SPEC, seed=1)
    mx.clear_cache()
    mx.reset_peak_memory()
    others = mx.get_active_memory() - sum(v.nbytes for _, v in tree_flatten(model.parameters()))
    loss = ConversationLoss(ROWS, supported_shortcuts(model))
    train_tiny(model, loss, sft(lr=1e-4, steps=2), tmp_path)
    peak = mx.get_peak_memory() - others
    tokens = sum(len(row.ids) for row in ROWS[-4:])
    estimate = peak_memory(model, {**TINY, **sizes}, tokens, False, chunk=HEAD_CPU)
    assert peak < estimate < 1.35 * peak


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["true", "false"])
def test_the_plan_is_within_a_tenth_of_the_peak_of_track_c(
    checkpoint: str, starter_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["steps=2", "epochs=null", "accumulate=2", f"grad_checkpoint={checkpoint}"]
    recipe = load_recipe(
        "phasegpt-track-c",
        [
            f"model={starter_path}",
            "benchmark={tasks: [], held_out: false}",
            "phases.dpo.best=null",
            *(f"phases.{name}.{change}" for name in ("sft", "dpo") for change in changes),
        ],
    )
    planned = {one.name: one.peak_memory_gb for one in plan(recipe, quick=True).phases}
    mx.clear_cache()
    others = mx.get_active_memory() / 1e9  # of tests before
    run(recipe, run_dir="run", progress=silent)
    log = map(json.loads, Path("run", "metrics.jsonl").read_text().splitlines())
    peaks = {one["phase"]: one["peak_memory_gb"] - others for one in log if "peak_memory_gb" in one}
    assert planned == pytest.approx(peaks, rel=0.1)


def test_checkpointing_takes_less_and_more_blocks_of_it_still_less() -> None:
    model = build_unloaded(STARTER)
    attach_adapter(model, Adapter(), seed=0)
    sizes = [
        peak_memory(model, STARTER, 4096, checkpointed, chunk=HEAD_CPU)
        for checkpointed in (False, 2, 10, 30, True)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == sizes[-2] < sizes[0] / 4
