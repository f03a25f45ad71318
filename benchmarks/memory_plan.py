"""Estimated peak memory beside the measured one. Run: python benchmarks/memory_plan.py [--model M]…

Trains a few steps of each phase of phasegpt-track-c, with and without gradient checkpointing, and
prints what `forty2 plan` said beforehand beside mlx's peak, in GB. The estimate depends on the longest
batch, which a few steps of the whole set's order may not hold: its batches are fixed by the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import forty2  # isort: skip
from forty2.progress import silent
from forty2.recipe.reading import load_recipe

HEAD = f"{'model':<24}{'checkpointing':<15}{'phase':<8}{'planned':>8}{'measured':>10}{'ratio':>7}"


def measure(model: str, checkpoint: bool, steps: int) -> list[tuple[str, float, float]]:
    """Return each phase's name with its planned and its measured peak, in GB.

    Args:
        checkpoint: whether blocks are computed again instead of being kept for the backward pass.
        steps: optimizer steps of each phase.
    """
    changes = [
        f"steps={steps}",
        "epochs=null",
        "accumulate=2",
        f"grad_checkpoint={json.dumps(checkpoint)}",
    ]
    settings = [f"phases.{phase}.{change}" for phase in ("sft", "dpo") for change in changes]
    if model:
        settings.append(f"model={model}")
    settings += ["phases.dpo.best=null", "benchmark={tasks: [], held_out: false}"]
    recipe = load_recipe("phasegpt-track-c", settings)
    planned = {phase.name: phase.peak_memory_gb for phase in forty2.plan(recipe, quick=True).phases}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        forty2.run(recipe, run_dir="run", progress=silent)
        log = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
        os.chdir("/")
    peaks = {line["phase"]: line["peak_memory_gb"] for line in log if "peak_memory_gb" in line}
    return [(name, planned[name], peaks[name]) for name in planned]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", action="append", help="model folder or name; repeatable")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    print(HEAD)
    for model in options.model or ["smollm2"]:
        for checkpoint in (True, False):
            for phase, planned, peak in measure(model, checkpoint, options.steps):
                print(
                    f"{Path(model).name:<24}{'yes' if checkpoint else 'no':<15}{phase:<8}"
                    f"{planned:>8.2f}{peak:>10.2f}{planned / peak:>7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
