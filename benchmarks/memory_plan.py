"""Estimated peak memory beside the measured one. Run: python benchmarks/memory_plan.py [--model M]…

Trains a step of each phase of phasegpt-track-c, and prints what `forty2 plan` said beforehand beside
mlx's peak, in GB. Settings after --set apply to both phases, e.g. --set grad_checkpoint=false.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import forty2  # isort: skip
from forty2.progress import silent
from forty2.recipe.reading import load_recipe

HEAD = f"{'model':<24}{'phase':<8}{'planned':>8}{'measured':>10}{'ratio':>7}"


def measure(model: str, settings: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return each phase's name with its planned and its measured peak, in GB.

    Args:
        settings: KEY=VALUE, of both phases.
    """
    own = [*settings, "steps=1", "epochs=null", "accumulate=1"]
    recipe = load_recipe(
        "phasegpt-track-c",
        [
            f"model={model}",
            "benchmark={tasks: [], held_out: false}",
            "phases.dpo.best=null",
            *(f"phases.{phase}.{setting}" for phase in ("sft", "dpo") for setting in own),
        ],
    )
    planned = {phase.name: phase.peak_memory_gb for phase in forty2.plan(recipe, quick=True).phases}
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)  # where a run makes its folders
        try:
            forty2.run(recipe, run_dir="run", progress=silent)
            lines = Path("run", "metrics.jsonl").read_text("utf-8").splitlines()
        finally:
            os.chdir(before)
    log = map(json.loads, lines)
    peaks = {line["phase"]: line["peak_memory_gb"] for line in log if "peak_memory_gb" in line}
    return [(name, planned[name], peaks[name]) for name in planned]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", action="append", help="model folder or name; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print(HEAD)
    for model in options.model or ["smollm2"]:
        for phase, planned, peak in measure(model, options.set):
            print(
                f"{Path(model).name:<24}{phase:<8}{planned:>8.2f}{peak:>10.2f}{planned / peak:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
