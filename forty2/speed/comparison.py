"""Compare our time and memory with other trainers' on this machine.

All get the same model, rows, LoRA, precision and BLAS. Each measurement is a process of its own on
one thread, and trainers take turns: ours, theirs, ours, theirs. Only the ratios carry over to another
machine. A measurement is one epoch, so that the reference pass counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from forty2 import machine
from forty2.errors import BenchmarkError
from forty2.files import write_json
from forty2.model.loading import load, resolve_model
from forty2.progress import Progress, silent
from forty2.speed.environments import PEERS, measure, peer_python
from forty2.speed.growth import measure_growth
from forty2.speed.objectives import measure_objectives
from forty2.speed.operation_count import linear_operations, linear_sizes, model_shapes
from forty2.speed.results import ComparisonResult, Floor, SuiteResult
from forty2.speed.suites import (
    BATCH_SIZE,
    SUITES,
    Rows,
    Suite,
    compose_rows,
    write_large_vocabulary_model,
)
from forty2.speed.tables import format_growth, format_objectives, format_suite
from forty2.speed.workers.__main__ import Figures, Inputs, Job, Measurement

GROWTH, OBJECTIVES = "growth", "objectives"
SUITE_NAMES = (*SUITES, OBJECTIVES, GROWTH)
OURS, RATE = "forty2", "rate"
"""Keys of our own measurements, and of those of the machine's rate."""


@dataclass(frozen=True)
class _Conditions:
    """The conditions that all suites share."""

    model: Path
    dtype: str
    row_count: int
    rounds: int
    peers: Sequence[str]
    progress: Progress


class _Turn(NamedTuple):
    """A measurement to repeat in each round."""

    python: str
    worker: str
    job: Job


def compare_trainers(
    suites: Sequence[str] = SUITE_NAMES,
    *,
    rows: int = 32,
    rounds: int = 2,
    model: str = "smollm2",
    peers: Sequence[str] = tuple(PEERS),
    out: Path | None = None,
    progress: Progress = silent,
) -> ComparisonResult:
    """Measure suites for forty2 and for other trainers.

    A trainer that cannot be installed or does not run is left out, and the result says why.

    Args:
        suites: names of `SUITE_NAMES`.
        rows: rows of each suite; of TruthfulQA, questions.
        rounds: measurements of each trainer, whose median counts.
        model: folder, hub name or `smollm2`.
        peers: the other trainers, by their names in `PEERS`.
        out: JSON file for every measurement, written after each suite.
        progress: also receives each finished suite as text, in `info["table"]`.

    Raises:
        BenchmarkError: the rows do not make whole batches, or forty2 does not run.
        ModelError: the model cannot be loaded.
    """
    if rows < BATCH_SIZE or rows % BATCH_SIZE:
        raise BenchmarkError(
            f"{rows} rows do not make whole batches; give a multiple of {BATCH_SIZE}, the batch "
            "size of every trainer here"
        )
    conditions = _Conditions(resolve_model(model), precision(), rows, rounds, peers, progress)
    result = ComparisonResult(
        machine=machine.facts(),
        model=model,
        precision=conditions.dtype,
        rows=rows,
        rounds=rounds,
        batch_size=BATCH_SIZE,
    )
    for name in suites:
        if name == GROWTH:
            growth = measure_growth(conditions.model, conditions.dtype, rounds, progress)
            result, table = replace(result, growth=growth), format_growth(growth)
        elif name == OBJECTIVES:
            costs = measure_objectives(conditions.model, conditions.dtype, rows, rounds, progress)
            result, table = replace(result, objectives=costs), format_objectives(costs)
        else:
            suite = _compare_on_suite(name, conditions)
            result = replace(result, suites={**result.suites, name: suite})
            table = format_suite(name, suite)
        if out is not None:
            write_json(out, result.as_json())
        progress(name, 1, 1, {"table": table})
    return result


def precision() -> str:
    """Return the precision to measure in, as mlx names it.

    It is fp32 on a CPU, where 16-bit products are many times slower, and bf16 on a GPU.
    """
    return "bfloat16" if machine.on_gpu() else "float32"


def median_figures(samples: Sequence[Figures]) -> Figures:
    """Compute the median of each figure."""
    return Figures(
        **{
            field.name: statistics.median(getattr(each, field.name) for each in samples)
            for field in fields(Figures)
        }
    )


def ratio_of_figures(ours: Figures, theirs: Figures) -> Figures:
    """Divide each of our figures by theirs."""
    return Figures(
        **{f.name: getattr(ours, f.name) / getattr(theirs, f.name) for f in fields(Figures)}
    )


def _compare_on_suite(name: str, conditions: _Conditions) -> SuiteResult:
    suite = SUITES[name]
    with tempfile.TemporaryDirectory() as folder:
        model = conditions.model
        if name == "vocabulary":
            model = write_large_vocabulary_model(Path(folder) / name)
        rows = compose_rows(name, conditions.row_count, model)
        units = rows.count // (BATCH_SIZE if suite.unit == "batch" else 1)
        job = Job(str(model), conditions.dtype, rows.inputs, units, rows.tokens)
        turns = {OURS: _Turn(sys.executable, suite.ours, job)}
        operations, rate_job = _floor_job(suite, job, rows)
        if rate_job is not None:
            turns[RATE] = _Turn(sys.executable, "matmul_rate", rate_job)
        left_out: dict[str, str] = {}
        for peer in (peer for peer in suite.peers if peer in conditions.peers):
            try:
                python = peer_python(peer, conditions.progress)
                turns[peer] = _Turn(python, suite.peers[peer], job)
            except BenchmarkError as error:
                left_out[peer] = str(error)
        runs, failed = _measure_in_turns(name, turns, conditions)
    medians = {
        trainer: median_figures([each.figures for each in measurements])
        for trainer, measurements in runs.items()
    }
    rate, ours = medians.pop(RATE, None), medians[OURS]
    return SuiteResult(
        unit=suite.unit,
        units=units,
        tokens=rows.tokens,
        source=rows.source,
        medians=medians,
        ratios={
            trainer: ratio_of_figures(ours, theirs)
            for trainer, theirs in medians.items()
            if trainer != OURS
        },
        left_out={**left_out, **failed},
        runs=runs,
        floor=None if rate is None else _floor(operations, units, rate, ours),
    )


def _floor_job(suite: Suite, job: Job, rows: Rows) -> tuple[int, Job | None]:
    """Count the operations that a suite needs, and plan the measurement of the machine's rate.

    Returns:
        0 and None if the operations of the model cannot be counted.
    """
    loaded = load(job.model, lazy=True)
    shapes = model_shapes(loaded.model, loaded.config, layers=job.layers, rank=job.rank)
    if shapes is None:
        return 0, None
    sizes = linear_sizes(loaded.model)
    tokens = max(1, round(job.counted / job.units))
    rate_job = replace(
        job,
        inputs=Inputs(products=sizes, product_tokens=tokens),
        units=1,
        counted=linear_operations(sizes, tokens),
    )
    return suite.count_operations(shapes, rows.work), rate_job


def _floor(operations: int, units: int, rate: Figures, ours: Figures) -> Floor:
    seconds = operations / units / rate.per_s
    return Floor(operations, rate.per_s, seconds, ours.seconds / seconds)


def _measure_in_turns(
    name: str, turns: Mapping[str, _Turn], conditions: _Conditions
) -> tuple[dict[str, list[Measurement]], dict[str, str]]:
    """Measure each trainer once, and again in every round; a trainer that fails drops out.

    Returns:
        Measurements by trainer, and by trainer that dropped out the reason.
    """
    runs: dict[str, list[Measurement]] = {trainer: [] for trainer in turns}
    failed: dict[str, str] = {}
    order = [trainer for _ in range(conditions.rounds) for trainer in turns]
    for done, trainer in enumerate(order, 1):
        if trainer in runs:
            try:
                runs[trainer].append(measure(*turns[trainer]))
            except BenchmarkError as error:
                if trainer in (OURS, RATE):
                    raise
                failed[trainer] = str(error)
                del runs[trainer]
        conditions.progress(name, done, len(order), {"last": trainer})
    return runs, failed
