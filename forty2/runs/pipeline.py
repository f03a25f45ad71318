"""A run, from its recipe to its report.

Read everything, measure the base, then train and measure one phase after the other, fuse, measure
the fused model, compare all with the base, and write the report. Every step that is done is found
done when the run is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from forty2.benchmark.suite import table
from forty2.errors import (
    Interrupted,
    MemoryRanOut,
    OtherProcessEnded,
    RunError,
    TrainingError,
    first_line,
    is_out_of_memory,
)
from forty2.files import JsonObject
from forty2.model.adapter import attach_adapter
from forty2.progress import Progress, silent
from forty2.recipe.schema import Recipe
from forty2.report.run import notices, write_report
from forty2.runs.context import RunContext, open_run
from forty2.runs.fused import FusedModels, check_fused_path, fuse_run
from forty2.runs.inputs import read_inputs
from forty2.runs.measuring import StageMeasurer
from forty2.runs.phase_training import finish_phase
from forty2.runs.summary import summarize


@dataclass(frozen=True)
class RunResult:
    """Where a run's results are."""

    path: Path
    adapter: Path
    """Folder of the last phase."""
    fused: Path | None
    stages: list[JsonObject]
    """One measurement per stage: base, each phase, fused. Empty if the recipe measures nothing."""
    table: str
    verdict: str
    report: Path
    warnings: list[str]
    """Warnings about data, training and fusing."""


def run(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    only: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> RunResult:
    """Run a recipe: every phase, then fuse if it says so, measuring after each.

    Of several processes started by `mlx.launch` all train. The first alone writes the run,
    measures, fuses and returns; the others raise `OtherProcessEnded` when the last phase is trained.

    Args:
        recipe: from `load_recipe`.
        run_dir: default `adapters/NAME`.
        resume: continue a run that stopped.
        only: stop after the phase of this name; earlier ones that are not done run first.
        progress: called as work goes on.

    Raises:
        Forty2Error: with one line that says what to do. Finished phases stay.
    """
    path = run_path(recipe, run_dir)
    if only is not None and only not in recipe.phases:
        raise RunError(f"no phase {only!r}; the recipe has {', '.join(recipe.phases)}")
    with open_run(
        recipe, path, resume=resume, trust_remote_code=trust_remote_code, progress=progress
    ) as context:
        try:
            return _run(context, only)
        except (Interrupted, TrainingError) as error:
            if not context.group.first:  # all processes come here, and the first says why
                raise OtherProcessEnded from error
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryRanOut(
                f"{context.progress.current}: memory ran out ({first_line(error)}); finished phases "
                f"and the last checkpoint are saved in {path}: make room, then go on with --resume, "
                "or in another --run-dir lower max_length or adapter.layers, or set "
                "grad_checkpoint: true"
            ) from error


def train_phase(
    recipe: Recipe, phase: str, *, run_dir: str | Path | None = None, progress: Progress = silent
) -> RunResult:
    """Run a recipe as far as one phase: those before it first, as far as they are not done yet."""
    path = run_path(recipe, run_dir)
    resume = (path / "run.json").exists()
    return run(recipe, run_dir=path, resume=resume, only=phase, progress=progress)


def run_path(recipe: Recipe, run_dir: str | Path | None) -> Path:
    """The folder of a run: the one named, else adapters/NAME."""
    return Path(run_dir) if run_dir is not None else Path("adapters") / recipe.name


def _run(run: RunContext, only: str | None) -> RunResult:
    benchmark = run.recipe.benchmark if run.group.first else None
    measurer = StageMeasurer(run, benchmark) if benchmark is not None else None
    stages: list[JsonObject] = []
    adapter = _train_phases(run, only, measurer, stages)
    if not run.group.first:
        raise OtherProcessEnded
    fused = None
    if run.recipe.fuse is not None and only is None:
        mx.clear_cache()
        fused = fuse_run(run, run.recipe.fuse, adapter)
        if measurer is not None:
            stages.append(measurer.measure_folder("fused", fused.full))
            if fused.quantized is not None:
                stage = f"fused {run.recipe.fuse.quantize}-bit"
                stages.append(measurer.measure_folder(stage, fused.quantized))
    return _finish(run, adapter, fused, stages)


def _train_phases(
    run: RunContext, only: str | None, measurer: StageMeasurer | None, stages: list[JsonObject]
) -> Path:
    """Train every phase, or those up to `only`, and measure after each.

    The trained model is released when this returns: fusing loads its own.

    Returns:
        The last phase's folder.
    """
    with run.group.synchronized() as must_agree:
        if only is None:
            check_fused_path(run)
        inputs = read_inputs(run, measurer, must_agree)
    if measurer is not None:
        stages.append(measurer.measure_base(inputs.loaded))
    attach_adapter(inputs.loaded.model, run.recipe.adapter, seed=run.recipe.seed)
    folder = run.path
    for phase in inputs.phases:
        run.folder.check_there()
        folder = finish_phase(run, phase, inputs.loaded)
        if measurer is not None:
            stages.append(measurer.measure(phase.label, inputs.loaded, folder))
        if phase.name == only:
            break
    return folder


def _finish(
    run: RunContext, adapter: Path, fused: FusedModels | None, stages: list[JsonObject]
) -> RunResult:
    """Compare the stages, and write the report."""
    run.folder.check_there()
    verdict = ""
    if run.recipe.benchmark is not None:
        verdict = summarize(run.path, run.recipe.benchmark, stages).verdict
    report = write_report(run.path)
    return RunResult(
        path=run.path,
        adapter=adapter,
        fused=fused.full if fused is not None else None,
        stages=stages,
        table=table(stages) if stages else "",
        verdict=verdict,
        report=report,
        warnings=notices(run.path),
    )
