"""Train a small model for ten thousand steps, and check that nothing grows or slows down.

    python tests/soak.py [--steps N]

A run of two phases, each with fifty validations, sets of greedy replies and checkpoints. The
progress callback samples memory, open files and time once between two evaluations. The first fifth
of each phase is its warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import forty2  # isort: skip

import mlx.core as mx
import numpy as np
from support.small_run import make_inputs

import forty2.runs.pipeline
from forty2.recipe.reading import load_recipe

KINDS = ("loss", "valid_loss", "drift_kl", "warning")
"""Keys that tell the kinds of lines in the metrics."""
WARM_UP = 0.2
MOST_GROWTH = {
    ("resident memory", ", KB"): 4000.0,  # malloc and Python take up to a megabyte at a time
    ("mlx memory", ", KB"): 4.0,
    ("open files", ""): 0.1,
}
"""Largest growth over a phase of any length, by the fitted slope."""
LEAST_SPEED = 0.8
"""Smallest ratio of the speed in the last tenth to that in the second, in steps per CPU second, which
a busy machine does not change."""


def block_of(steps: int) -> int:
    """Return the steps of a phase between two evaluations, checkpoints or samples."""
    return max(5, steps // 50)


class Sample(NamedTuple):
    """Resources of the process after some steps of a phase."""

    step: int
    seconds: float
    cpu_seconds: float
    """Processor time of all threads."""
    resident: float
    """Resident memory, in KB."""
    mlx: float
    """Memory that mlx holds, in KB."""
    files: int


def resident() -> float:
    """Return this process's resident memory, in KB; on Linux without mapped files."""
    if sys.platform == "linux":
        pages, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return (pages - of_files) * os.sysconf("SC_PAGE_SIZE") / 1024
    return float(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())]))


def sample(step: int) -> Sample:
    """Sample this process now."""
    files = len(os.listdir("/dev/fd"))
    return Sample(
        step,
        time.perf_counter(),
        time.process_time(),
        resident(),
        mx.get_active_memory() / 1024,
        files,
    )


def soak(place: Path, steps: int) -> tuple[dict[str, list[Sample]], list[str]]:
    """Train for some steps in each of two phases.

    Returns:
        Samples by phase, and the metrics' lines.
    """
    inputs = make_inputs(place / "inputs")
    os.environ["FORTY2_CACHE"] = str(place / "cache")
    block = block_of(steps)
    changes = {"steps": steps, "lr": 1e-4, "eval_every_steps": block, "save_every_steps": block}
    recipe = load_recipe(
        inputs / "recipe.yaml",
        [f"phases.{phase}.{k}={v}" for phase in ("sft", "dpo") for k, v in changes.items()]
        + [f"fuse.out={place / 'fused'}"],
    )
    samples: dict[str, list[Sample]] = {"phase1_sft": [], "phase2_dpo": []}

    def progress(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if stage in samples and done % block == block // 2:
            samples[stage].append(sample(done))

    result = forty2.runs.pipeline.run(recipe, run_dir=place / "run", progress=progress)
    return samples, (result.path / "metrics.jsonl").read_text("utf-8").splitlines()


def growth(samples: list[Sample]) -> dict[str, float]:
    """Fit the growth per 1,000 steps after the warm-up, by least squares."""
    settled = [s for s in samples if s.step > WARM_UP * samples[-1].step]
    steps = [s.step / 1000 for s in settled]
    return {
        name: float(np.polyfit(steps, [getattr(s, field) for s in settled], 1)[0])
        for (name, _), field in zip(MOST_GROWTH, ("resident", "mlx", "files"), strict=True)
    }


def speeds(samples: list[Sample], clock: str) -> tuple[float, float]:
    """Compute steps per second in the second tenth and in the last, evaluations included."""
    tenth = max(1, len(samples) // 10)

    def speed(first: Sample, last: Sample) -> float:
        seconds: float = getattr(last, clock) - getattr(first, clock)
        return (last.step - first.step) / seconds

    return speed(samples[tenth], samples[2 * tenth]), speed(samples[-1 - tenth], samples[-1])


def inconsistent(lines: list[str], steps: int) -> list[str]:
    """List what is wrong with the metrics: each step and evaluation must be there once, in order."""
    wanted = [
        (phase, step, kind)
        for phase in ("sft", "dpo")
        for step in range(steps + 1)
        for kind in ("loss", "valid_loss")
        if (step > 0 if kind == "loss" else step % block_of(steps) == 0)
    ]
    wrong, found = [], []
    for line in lines:
        try:
            record = json.loads(line)
            kind = next(key for key in KINDS if key in record)
            if kind in ("loss", "valid_loss"):
                found.append((record["phase"], record["step"], kind))
        except (ValueError, KeyError, StopIteration):
            wrong.append(f"not a record: {line[:80]}")
    for number, (one, other) in enumerate(zip(found, wanted, strict=False), 1):
        if one != other:
            wrong.append(f"record {number} is {one} instead of {other}")
            break
    if len(found) != len(wanted):
        wrong.append(f"{len(found)} steps and evaluations instead of {len(wanted)}")
    return wrong


def verdict(samples: dict[str, list[Sample]], lines: list[str], steps: int) -> tuple[str, bool]:
    """Format the table, and return whether all bounds held."""
    rows: list[tuple[str, list[float], str, bool]] = []
    grown = [growth(of_phase) for of_phase in samples.values()]
    for (name, unit), total in MOST_GROWTH.items():
        values, most = [slopes[name] for slopes in grown], 1000 * total / steps
        rows.append((f"{name}{unit} by 1,000 steps", values, f"<= {most:g}", max(values) <= most))
    for clock, label in (("seconds", "second"), ("cpu_seconds", "CPU second")):
        pairs = [speeds(of_phase, clock) for of_phase in samples.values()]
        rows.append((f"steps by {label}, second tenth", [p[0] for p in pairs], "", True))
        rows.append((f"steps by {label}, last tenth", [p[1] for p in pairs], "", True))
    ratios = [late / early for early, late in pairs]
    rows.append(
        ("last tenth beside second", ratios, f">= {LEAST_SPEED}", min(ratios) >= LEAST_SPEED)
    )
    ends = [of_phase[-1] for of_phase in samples.values()]
    rows.append(("resident memory at the end, MB", [s.resident / 1024 for s in ends], "", True))
    rows.append(("open files at the end", [s.files for s in ends], "", True))
    bad = inconsistent(lines, steps)
    table = [f"{'':<36}{'sft':>10}{'dpo':>10}  bound"]
    for label, (sft, dpo), bound, held in rows:
        table.append(
            f"{label:<36}{sft:>10.3f}{dpo:>10.3f}  {bound}{'' if held else ' NOT HELD'}".rstrip()
        )
    said = f"NOT HELD: {'; '.join(bad)}" if bad else "each step once, in order"
    table.append(f"{'lines of metrics':<36}{len(lines):>10}{'':>10}  {said}")
    return "\n".join(table), not bad and all(held for *_, held in rows)


def main() -> int:
    """Print the table. Return 1 if a bound did not hold, else 0."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--steps", type=int, default=5000, metavar="N", help="steps of each phase"
    )
    steps = arguments.parse_args().steps
    if steps < 100 or steps % block_of(steps):
        arguments.error("--steps: give 100 or more, a multiple of 50")
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        samples, lines = soak(Path(name).resolve(), steps)
    table, held = verdict(samples, lines, steps)
    print(table)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
