"""Ours beside the peers on this machine: same model, rows, LoRA, precision and BLAS.

Each measurement is a process of its own in an environment of its own, on one thread, in turn: ours,
theirs, ours, theirs. Only the ratios carry over to another machine. One epoch is all it takes, so
that the reference pass counts.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_model

from forty2 import machine
from forty2.errors import BenchmarkError
from forty2.files import write_json
from forty2.model.loading import resolve_model
from forty2.progress import Progress, silent
from forty2.speed import operation_count, tables
from forty2.speed.environments import PEERS, measure, python_of
from forty2.speed.growth import grow
from forty2.speed.suites import BATCH, SUITES, Rows, compose, large_vocabulary
from forty2.speed.workers.__main__ import Job

GROWTH = "growth"
NAMES = (*SUITES, GROWTH)
OURS, RATE = "forty2", "rate"
OPERATIONS = {
    "ours_dpo": operation_count.dpo_operations,
    "ours_sft": operation_count.sft_operations,
    "ours_truthfulqa": operation_count.scoring_operations,
}

Turn = tuple[str, str, Job]
"""Python, worker, job."""


def bench(
    suites: Sequence[str] = NAMES,
    *,
    rows: int = 32,
    rounds: int = 2,
    model: str = "smollm2",
    peers: Sequence[str] = tuple(PEERS),
    out: Path | None = None,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure suites, and tell a table of each as it is done.

    A peer that cannot be installed or does not run is left out, and the table says why.

    Args:
        rows: of a suite; of TruthfulQA, questions.
        rounds: measurements of each, whose median counts.
        model: folder, hub name or `smollm2`.
        peers: whom to measure beside ours.
        out: JSON file for every sample, written anew after each suite.
        say: told the tables, and what is downloaded.

    Raises:
        BenchmarkError: the rows do not make whole batches, or ours does not run.
        ModelError: the model cannot be loaded.
    """
    if rows < BATCH or rows % BATCH:
        raise BenchmarkError(
            f"{rows} rows: give a multiple of {BATCH}, for every trainer here takes batches of that"
        )
    folder, dtype = resolve_model(model), precision()
    result: dict[str, Any] = {
        "machine": machine.facts(),
        "model": model,
        "precision": dtype,
        "rows": rows,
        "rounds": rounds,
        "batch_size": BATCH,
        "suites": {},
    }
    for name in suites:
        if name == GROWTH:
            result[GROWTH] = grow(folder, dtype, rounds, progress)
            say(tables.growth_table(result[GROWTH]))
        else:
            with tempfile.TemporaryDirectory() as made:
                of = large_vocabulary(Path(made) / name) if name == "vocabulary" else folder
                composed = compose(name, rows, of)
                measured = beside(name, of, dtype, composed, rounds, peers, say, progress)
            result["suites"][name] = measured
            say(tables.suite_table(name, measured))
        if out is not None:
            write_json(out, result)
    return result


def precision() -> str:
    """fp32 on the CPU, where 16-bit products are many times slower, bf16 on a GPU."""
    return "bfloat16" if machine.on_gpu() else "float32"


def beside(
    name: str,
    model: Path,
    dtype: str,
    rows: Rows,
    rounds: int,
    peers: Sequence[str],
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """One suite: what each took, our share of what each peer took, and the operation_count."""
    suite = SUITES[name]
    units = len(rows.rows) // (BATCH if suite.unit == "batch" else 1)
    job = Job(str(model), dtype, rows.rows, units, rows.tokens)
    turns: dict[str, Turn] = {OURS: (sys.executable, suite.ours, job)}
    operations, products = _floor(suite.ours, job, rows.work)
    if products is not None:
        turns[RATE] = (sys.executable, "matmul_rate", products)
    left_out: dict[str, str] = {}
    for peer in (peer for peer in suite.peers if peer in peers):
        try:
            turns[peer] = (python_of(peer, say), suite.peers[peer], job)
        except BenchmarkError as error:
            left_out[peer] = str(error)
    runs = _in_turn(name, turns, rounds, left_out, progress)
    medians = {who: medians_of([run["figures"] for run in each]) for who, each in runs.items()}
    rate, ours = medians.pop(RATE, None), medians[OURS]
    result: dict[str, Any] = {
        "unit": suite.unit,
        "units": units,
        "tokens": rows.tokens,
        "source": rows.source,
        "medians": medians,
        "ratios": {
            peer: {key: ours[key] / theirs[key] for key in theirs}
            for peer, theirs in medians.items()
            if peer != OURS
        },
        "left_out": left_out,
        "runs": runs,
    }
    if rate is not None:
        seconds = operations / units / rate["per_s"]
        result["floor"] = {
            "operations": operations,
            "operations_per_s": rate["per_s"],
            "seconds": seconds,
            "ratio": ours["seconds"] / seconds,
        }
    return result


def _floor(worker: str, job: Job, work: operation_count.Work) -> tuple[int, Job | None]:
    """How many operations are needed, and the products to measure the machine by; or none."""
    model, config = load_model(Path(job.model), lazy=True)
    shapes = operation_count.shapes(model, config, layers=job.layers, rank=job.lora["rank"])
    if shapes is None:
        return 0, None
    sizes = operation_count.linear_counts(model)
    tokens = max(1, round(job.counted / job.units))
    products = dataclasses.replace(
        job,
        rows=sizes,
        batch_size=tokens,
        units=1,
        counted=operation_count.operations_of(sizes, tokens),
    )
    return OPERATIONS[worker](shapes, work), products


def _in_turn(
    name: str, turns: Mapping[str, Turn], rounds: int, left_out: dict[str, str], progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """All, one after the other, and again; a peer that fails is left out from then on."""
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in turns}
    steps = [who for _ in range(rounds) for who in turns]
    for done, who in enumerate(steps, 1):
        if who in runs:
            try:
                runs[who].append(measure(*turns[who]))
            except BenchmarkError as error:
                if who in (OURS, RATE):
                    raise
                left_out[who] = str(error)
                del runs[who]
        progress(name, done, len(steps), {"last": who})
    return runs


def medians_of(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {key: statistics.median(each[key] for each in samples) for key in samples[0]}
