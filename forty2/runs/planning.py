"""The forecast of a run: steps, exposures, memory, disk, time and warnings, before anything runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forty2 import machine
from forty2.benchmark.eval_prompt_files import load_eval_prompts
from forty2.benchmark.recipe_tasks import load_tasks
from forty2.benchmark.tasks.eval_prompts import Asked
from forty2.inference.logprobs import Shortcuts, head_elements
from forty2.inference.padding import group_by_length, padded_width
from forty2.model.adapter import adapter_weights, wasted_rank
from forty2.model.chat_template import settings_of
from forty2.model.initial_adapter import attach_initial_adapter, begin_phase
from forty2.model.loading import LoadedModel, load, other_base, parameter_count
from forty2.progress import Progress, silent
from forty2.recipe.places import with_places
from forty2.recipe.schema import Recipe
from forty2.recipe.tags import tag_settings
from forty2.report.text_table import text_table_lines
from forty2.report.units import duration, file_size
from forty2.run_paths import run_path
from forty2.runs.all_phase_data import (
    CheckedPhase,
    check_all_phase_data,
    read_all_phase_data,
)
from forty2.runs.curricula import CurriculumForecast, forecast_curriculum
from forty2.runs.disk import DiskForecast, checkpoint_bytes, free_bytes, fused_bytes, kept_bytes
from forty2.runs.fused import fused_path
from forty2.runs.memory import USABLE_MEMORY, peak_memory
from forty2.runs.phase_data import PhaseData
from forty2.runs.timing import NOT_IN_IT, RunTime, time_run
from forty2.runs.trackers import check_installed
from forty2.text.replaying import Replayed
from forty2.text.row_kinds import PAIRS
from forty2.text.rows import AnyPair
from forty2.training.batches import lengths_of, parts_of
from forty2.training.frozen_states import states_to_store
from forty2.training.objectives import OBJECTIVES
from forty2.training.reference_states import reference_states_size
from forty2.training.schedule import PhasePlan

_COLUMNS = (
    *("phase", "kind", "rows", "valid", "tokens", "longest", "steps", "seen", "evals", "saves"),
    *("memory", "states"),
)
_STEPS_SEEN = 200
"""Steps of a phase whose batches are looked at, to find the largest one."""


_LONG_RUN = 600.0
"""Seconds from which on a forecast says what takes the longest."""
_FEW_QUESTIONS = 50
"""Questions of each benchmark in a shorter try."""
_MANY_STEPS = 50
"""Steps of a phase from which on a fifth of them is still a try."""


class PhaseForecast(NamedTuple):
    """The forecast of one phase."""

    name: str
    objective: str
    rows: int
    valid_rows: int
    dropped: int
    """Rows whose response does not fit into max_length."""
    shortened: int
    """Rows whose prompt loses its beginning to max_length."""
    median_tokens: int
    """Tokens of the median sequence; of a pair, its prompt and the longer response."""
    longest_tokens: int
    """Tokens of the longest sequence."""
    steps: int
    exposures: float
    """Average uses of each row, counted."""
    unseen: int
    """Rows that no step uses."""
    evaluations: int
    saves: int
    peak_memory_gb: float
    """Estimated peak."""
    stored_gb: float
    """Disk for stored states of the training rows, while the phase runs: of the frozen blocks, and of
    the reference for a term λ·KL."""
    data_warnings: tuple[str, ...]
    """What is wrong with its rows; see `CheckedPhase`."""
    ignored: str
    """Keys of its rows that nothing reads; "": none."""
    trains: str = "lora"
    """What it trains."""
    trained: int = 0
    """Parameters that it trains."""
    kept_bytes: int = 0
    """Bytes of the adapter that it leaves, with the weights that replace the base's."""
    checkpoint_bytes: int = 0
    """Bytes of its checkpoints while it runs."""
    hold_out_rows: int = 0
    """Rows that it holds out by their keys."""
    coverage: Mapping[str, float] = {}
    """Passes over the supervised tokens, of its own rows and of each source that it replays."""
    replayed: tuple[Replayed, ...] = ()
    """Rows of earlier data among its rows, by their source."""
    curriculum: CurriculumForecast | None = None
    """Use of its rows by stage and stratum; None: they are neither ordered nor divided."""

    def warnings(self) -> list[str]:
        """List what a user should look at before the run, each beginning with the phase's name."""
        listed = []
        if self.unseen:
            listed.append(f"{self.unseen:,} of {self.rows:,} rows are never seen")
        listed += self.data_warnings
        if self.dropped:
            listed.append(f"{self.dropped} rows are dropped, longer than max_length")
        if self.shortened:
            listed.append(f"{self.shortened} prompts lose their beginning to max_length")
        return [f"{self.name}: {warning}" for warning in listed]


class RunForecast(NamedTuple):
    """The forecast of a run."""

    name: str
    model: str
    parameters: int
    trainable: int
    """Parameters that a phase trains; of several phases, the most."""
    init_from: str | None
    """Adapter that the first phase goes on from, and its shape; None: a new one."""
    phases: tuple[PhaseForecast, ...]
    peak_memory_gb: float
    machine_memory_gb: float
    warnings: tuple[str, ...]
    disk: DiskForecast
    time: RunTime | None
    """Estimated time; None: it was not measured."""
    longest: str = ""
    """What takes the longest, and settings that shorten it; "": the run is short."""

    def __str__(self) -> str:
        return format_plan(self)


def plan(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    quick: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> RunForecast:
    """Count what a recipe would do: steps, memory and disk; and time a few of its own batches.

    Args:
        run_dir: folder of the run; default `adapters/NAME`.
        quick: do not measure the time; weights stay on disk, unless packed rows are to be tried.

    Raises:
        DataError, ModelError, BenchmarkError: as the run would.
    """
    with with_places(recipe):
        return _plan(recipe, run_dir, quick, trust_remote_code, progress)


def _plan(
    recipe: Recipe,
    run_dir: str | Path | None,
    quick: bool,
    trust_remote_code: bool,
    progress: Progress,
) -> RunForecast:
    check_installed(recipe.report_to)
    progress("plan", 0, 1, {"heading": "reading model and data"})
    if recipe.benchmark is not None:
        load_tasks(recipe.benchmark, recipe.seed)
    template = settings_of(recipe)
    loaded = load(
        recipe.model,
        template=template,
        tags=tag_settings(recipe),
        trust_remote_code=trust_remote_code,
        lazy=True,
    )
    parameters = parameter_count(loaded.model)
    initial = attach_initial_adapter(loaded.model, recipe, seed=0, tags=loaded.tags)
    wasted = wasted_rank(loaded.model)
    with tempfile.TemporaryDirectory() as scratch:
        data = read_all_phase_data(recipe, loaded, Path(scratch))
        checked = check_all_phase_data(recipe, data, loaded)
        phases = tuple(
            _forecast(name, recipe, part, checked.phases[name], loaded)
            for name, part in data.items()
        )
        peak = max(phase.peak_memory_gb for phase in phases)
        memory = machine.memory_bytes() / 1e9
        disk = _disk(recipe, run_path(recipe.name, run_dir), loaded, parameters, phases)
        warnings = [warning for phase in phases for warning in phase.warnings()]
        warnings += checked.warnings
        if checked.unused_tags is not None:
            warnings.append(checked.unused_tags)
        if initial is not None and (message := other_base(loaded.path, initial.folder)):
            warnings.append(message)
        if wasted is not None:
            warnings.append(wasted)
        if peak > USABLE_MEMORY * memory:
            warnings.append("memory: set grad_checkpoint, or lower max_length")
        if (shortage := disk.shortage()) is not None:
            warnings.append(f"disk: {shortage}")
        time = None
        if not quick and peak < memory:
            progress("plan", 0, 1, {"heading": "timing a few batches"})
            courses = {name: phase.course for name, phase in checked.phases.items()}
            time = time_run(
                recipe, data, courses, trust_remote_code=trust_remote_code, progress=progress
            )
    return RunForecast(
        name=recipe.name,
        model=recipe.model,
        parameters=parameters,
        trainable=max(phase.trained for phase in phases),
        init_from=str(initial) if initial is not None else None,
        phases=phases,
        peak_memory_gb=peak,
        machine_memory_gb=memory,
        warnings=tuple(warnings),
        disk=disk,
        time=time,
        longest=longest_work(recipe, phases, time) if time is not None else "",
    )


def _disk(
    recipe: Recipe,
    path: Path,
    loaded: LoadedModel,
    parameters: int,
    phases: Sequence[PhaseForecast],
) -> DiskForecast:
    """Estimate the space on disk: what each phase leaves, and what the largest phase works with."""
    fused = {}
    if recipe.fuse is not None:
        out = fused_path(path, recipe.fuse)
        fused = fused_bytes(loaded.model, parameters, recipe.fuse, out)
    stored = max(int(phase.stored_gb * 1e9) for phase in phases)
    return DiskForecast(
        run=path,
        kept=sum(phase.kept_bytes for phase in phases),
        working=max(phase.checkpoint_bytes for phase in phases) + stored,
        fused=fused,
    )


def _forecast(
    name: str, recipe: Recipe, data: PhaseData, checked: CheckedPhase, loaded: LoadedModel
) -> PhaseForecast:
    phase, rows, phase_plan = recipe.phases[name], data.train.rows, checked.course
    begin_phase(loaded.model, recipe, name, seed=0, tags=loaded.tags)
    if phase.eval_prompts is not None:
        Asked(loaded, load_eval_prompts(phase.eval_prompts))
    lengths = lengths_of(rows)
    memory = peak_memory(
        loaded.model,
        loaded.config,
        _largest_batch(phase_plan, rows),
        phase.grad_checkpoint,
        chunk=head_elements(),
    )
    return PhaseForecast(
        name=name,
        objective=phase.objective,
        rows=len(lengths),
        valid_rows=len(data.valid.rows) if data.valid is not None else 0,
        dropped=len(data.train.dropped),
        shortened=len(data.train.shortened),
        median_tokens=int(np.median(_sequence_lengths(rows, lengths))),
        longest_tokens=max(_sequence_lengths(rows, lengths)),
        steps=phase_plan.steps,
        exposures=phase_plan.exposures(phase_plan.steps),
        unseen=phase_plan.unseen(),
        evaluations=phase_plan.evaluations,
        saves=phase_plan.saves,
        peak_memory_gb=memory / 1e9,
        stored_gb=_stored_gb(phase_plan, rows, loaded),
        data_warnings=checked.warnings,
        ignored=data.ignored,
        trains=recipe.trained_in(name),
        trained=sum(v.size for v in adapter_weights(loaded.model).values()),
        kept_bytes=kept_bytes(loaded.model, phase),
        checkpoint_bytes=checkpoint_bytes(loaded.model),
        hold_out_rows=len(data.hold_out.rows) if data.hold_out is not None else 0,
        coverage=checked.coverage,
        replayed=data.replayed,
        curriculum=forecast_curriculum(phase_plan, data),
    )


def _largest_batch(plan: PhasePlan, rows: Sequence[Any]) -> int:
    """Return the most tokens that the phase computes at once, padding included.

    Of a long phase, the first steps and the longest rows are looked at.
    """
    parts = parts_of(rows)
    longest = np.argsort(parts.sum(axis=1))[-8:].tolist()
    steps = range(1, min(plan.steps, _STEPS_SEEN) + 1)
    batches = [part for step in steps for part in plan.step_rows(step) if part]
    if plan.steps > _STEPS_SEEN:
        batches.append(longest)
    groups = (parts[part][group] for part in batches for group in group_by_length(parts[part]))
    return max(len(group) * sum(map(padded_width, group.max(axis=0).tolist())) for group in groups)


def _stored_gb(plan: PhasePlan, rows: Sequence[Any], loaded: LoadedModel) -> float:
    """Estimate the disk for stored states, in GB."""
    size = states_to_store(
        loaded.model,
        plan.phase,
        rows,
        plan.rows_used,
        plan.passes,
        shortcuts=Shortcuts(True, True),  # assumed, since trying would load the weights
    )
    stored = size.bytes if size is not None else 0
    if plan.phase.kl_term is not None:
        stored += reference_states_size(loaded.model, rows, plan.rows_used).bytes
    return stored / 1e9


def _sequence_lengths(rows: Sequence[Any], lengths: Sequence[int]) -> Sequence[int]:
    """Count the tokens of each row's longest sequence: of a pair, the prompt and the longer response."""
    if isinstance(rows[0], AnyPair):
        return [len(row.prompt) + max(map(len, row.responses)) for row in rows]
    return lengths


def format_plan(plan: RunForecast) -> str:
    """Format a forecast as text."""
    share = plan.trainable / plan.parameters
    lines = [
        f"{plan.name} on {plan.model}: {plan.parameters:,} parameters, "
        f"{plan.trainable:,} trained ({share:.2%})",
        *([f"goes on from {plan.init_from}"] if plan.init_from is not None else []),
        "",
        *text_table_lines([_COLUMNS, *map(_cells, plan.phases)]),
        "",
        f"in GB; memory: about {plan.peak_memory_gb:.2f} of {plan.machine_memory_gb:.1f}; states: "
        "stored on disk while a phase trains",
        *_disk_lines(plan.disk),
        *_time_lines(plan),
    ]
    if any(phase.trains not in ("lora", "dora") for phase in plan.phases):
        lines += map(_trained_line, plan.phases)
    for phase in plan.phases:
        kind = OBJECTIVES[phase.objective]
        if kind.row_kind is PAIRS and not kind.needs_reference:
            lines.append(
                f"{phase.name}: {phase.objective} needs no reference, so no pass computes one"
            )
        for source in phase.replayed:
            passes = f"its supervised tokens are trained on {phase.coverage[source.name]:.2f} times"
            lines.append(f"{phase.name}: {source}; {passes}")
        if phase.hold_out_rows:
            lines.append(
                f"{phase.name}: {phase.hold_out_rows} rows are held out and validated apart"
            )
        if phase.curriculum is not None:
            lines += [
                "",
                *(f"{phase.name}: {line}" for line in str(phase.curriculum).splitlines()),
                "",
            ]
    lines += [f"{phase.name}: ignored: {phase.ignored}" for phase in plan.phases if phase.ignored]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in plan.warnings)])


def longest_work(recipe: Recipe, phases: Sequence[PhaseForecast], time: RunTime) -> str:
    """Name what takes the longest in a long run, and one or two settings that shorten it the most."""
    if time.seconds < _LONG_RUN:
        return ""
    parts = [(part.seconds, f"training {name}") for name, part in time.phases.items()]
    seconds = time.stages * time.each_stage
    parts.append((seconds, f"measuring {time.stages} stages"))
    shorter: list[tuple[float, str]] = []
    if recipe.benchmark is not None and recipe.benchmark.each_phase and time.stages > 3:
        between = (time.stages - 2) * time.each_stage
        shorter.append((between, "`overrides=benchmark.each_phase=false`"))
    if recipe.benchmark is not None and (recipe.benchmark.n or _FEW_QUESTIONS + 1) > _FEW_QUESTIONS:
        shorter.append((seconds, f"`overrides=benchmark.n={_FEW_QUESTIONS}`"))
    for phase in phases:
        if phase.steps >= _MANY_STEPS:
            setting = f"`overrides=phases.{phase.name}.steps={phase.steps // 5}`"
            shorter.append((time.phases[phase.name].seconds, setting))
    shorter = [one for one in shorter if one[0] >= time.seconds / 10]
    shorter.sort(key=lambda one: one[0], reverse=True)
    seconds, what = max(parts)
    line = f"longest: {what}, {duration(seconds)}"
    if shorter:
        line += f"; for a shorter try: {' '.join(setting for _, setting in shorter[:2])}"
    return line


def _trained_line(phase: PhaseForecast) -> str:
    """Say what a phase trains, and what that takes."""
    return (
        f"{phase.name}: trains {phase.trains}, {phase.trained:,} parameters; memory about "
        f"{phase.peak_memory_gb:.2f} GB, checkpoints up to {file_size(phase.checkpoint_bytes)}, leaves "
        f"{file_size(phase.kept_bytes)}"
    )


def _cells(phase: PhaseForecast) -> list[str]:
    """Return a phase's line of the table."""
    counts = (phase.rows, phase.valid_rows, phase.median_tokens, phase.longest_tokens, phase.steps)
    return [
        phase.name,
        phase.objective,
        *map(str, counts),
        f"{phase.exposures:.2f}x",
        str(phase.evaluations),
        str(phase.saves),
        f"{phase.peak_memory_gb:.2f}",
        f"{phase.stored_gb:.2f}",
    ]


def _disk_lines(disk: DiskForecast) -> list[str]:
    """Say what a run takes on disk, and what is free."""
    most = file_size(disk.kept + disk.working)
    lines = [
        f"disk: {disk.run}: adapters {file_size(disk.kept)}, up to {most} while it runs "
        f"({file_size(free_bytes(disk.run))} free)"
    ]
    for folder, size in disk.fused.items():
        lines.append(f"disk: {folder}: {file_size(size)} ({file_size(free_bytes(folder))} free)")
    return lines


def _time_lines(plan: RunForecast) -> list[str]:
    """Write the estimated time of each phase and in all, and what is not in it."""
    time = plan.time
    if time is None:
        fits = plan.peak_memory_gb < plan.machine_memory_gb
        return [f"time: not measured ({'--quick' if fits else 'the memory is not enough'})"]
    rows = [["time", "before", "steps", "evaluations", "in all"]]
    for name, phase in time.phases.items():
        cells = (phase.before, phase.steps, phase.evaluations, phase.seconds)
        rows.append([name, *map(duration, cells)])
    if time.stages:
        measured = duration(time.stages * time.each_stage)
        rows.append(["measuring", "", "", "", measured])
    rows.append(["in all", "", "", "", duration(time.seconds)])
    lines = ["", *text_table_lines(rows), ""]
    if time.stages:
        lines.append(f"measuring: {time.stages} stages, {duration(time.each_stage)} each")
    left_out = ", ".join([*time.left_out, NOT_IN_IT])
    lines.append(f"time: about {duration(time.seconds)}, from a few batches")
    lines.append(f"not in it: {left_out}")
    if plan.longest:
        lines.append(plan.longest)
    return lines
