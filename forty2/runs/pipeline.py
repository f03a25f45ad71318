"""A run, from its recipe to its report.

Read everything, measure the base, then train and measure one phase after the other, fuse, measure
the fused model, compare all with the base, and write the report. A resumed run skips the steps that
are done.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from forty2.benchmark.results import Stage
from forty2.benchmark.stage_tables import changes_table, columns, table
from forty2.benchmark.summary import summarize
from forty2.errors import (
    Interrupted,
    MemoryRanOut,
    OtherProcessEnded,
    RunError,
    TrainingError,
    first_line,
    is_out_of_memory,
)
from forty2.files import read_json, write_json
from forty2.model.adapter import wasted_rank
from forty2.model.initial_adapter import attach_initial_adapter
from forty2.notebook import html_paragraph, html_table
from forty2.progress import Progress, bars, draws_bars, silent
from forty2.recipe.places import with_places
from forty2.recipe.schema import Benchmark, Recipe
from forty2.report.outcome import outcome_table
from forty2.report.run import contamination_lines, notices, write_report
from forty2.run_paths import phase_label, run_folder, run_path
from forty2.runs.agenda import Agenda, AgendaItem
from forty2.runs.context import NEEDED_BY_ALL, RunContext, RunOptions, open_run
from forty2.runs.fused import FusedModels, check_fused_path, fuse_run, write_cards
from forty2.runs.gates import judge_gates
from forty2.runs.held_out import is_measured, measures_phase
from forty2.runs.inputs import read_inputs
from forty2.runs.measuring import CONTAMINATION, StageMeasurer, measurement_path
from forty2.runs.next_steps import next_steps
from forty2.runs.phase_training import finish_phase, tokens_trained
from forty2.runs.records import ContaminationRecord
from forty2.runs.reusing import check_source, take_over_phases
from forty2.runs.trackers import check_installed, reporting
from forty2.training.processes import joined


@dataclass(frozen=True)
class RunResult:
    """A run's results, and the paths of those that are files."""

    path: Path
    adapter: Path
    """Folder of the last phase."""
    fused: Path | None
    stages: list[Stage]
    """One measurement per stage: base, each phase, fused. Empty if the recipe measures nothing."""
    table: str
    changes: str
    """Table of the changes from the base by benchmark; empty if there is TruthfulQA alone."""
    verdict: str
    sentence: str
    """Benefit and cost of the last stage, in a sentence."""
    next_steps: list[str]
    """What phases lost of what the ones before them had reached, and what to try, in sentences."""
    verdicts: dict[str, str]
    """Each benchmark's own verdict on the last stage, by the task's name."""
    outcome: str
    """Table of what each phase changed, the step it kept, its time and its size."""
    report: Path
    contamination: list[str]
    """Sentences about benchmark questions in the training rows."""
    warnings: list[str]
    """Warnings about data, training and fusing."""

    def __str__(self) -> str:
        """Return tables, verdicts and paths, as the command line prints them."""
        parts = [""]
        if self.stages:
            parts += [self.table, "", *([self.changes, ""] if self.changes else [])]
        parts += [self.outcome, ""]
        if self.stages:
            own = self._verdict_lines()
            parts += [*own, ""] if own else []
            parts += [self._verdict(), ""] if self.sentence else []
            parts += [line for step in self.next_steps for line in (step, "")]
            parts += [*self.contamination, ""] if self.contamination else []
        return "\n".join([*parts, *(f"{name:<10}{path}" for name, path in self._paths())])

    def _repr_html_(self) -> str:
        """Show the stages, the verdicts, the paths and the warnings in a notebook."""
        parts = []
        if self.stages:
            for head, *rows in columns(self.stages):
                parts += [html_table(f"Run {self.path}", head, rows)]
            parts += map(html_paragraph, self._verdict_lines())
            if self.sentence:
                parts += map(html_paragraph, [self._verdict(), *self.next_steps])
            parts += map(html_paragraph, self.contamination)
        files = [[name, str(path)] for name, path in self._paths()]
        parts += [html_table("Written", ["what", "where"], files)]
        parts += [html_paragraph(f"Warning: {warning}") for warning in self.warnings]
        return "\n".join(parts)

    def _verdict(self) -> str:
        return f"Verdict: {self.verdict}. {self.sentence}"

    def _verdict_lines(self) -> list[str]:
        """Write each benchmark's own verdict as a line, but that of the held-out rows."""
        lines = []
        for name, verdict in self.verdicts.items():
            if name == "held_out":
                continue
            base = self.stages[0][name]
            lines.append(f"{base.label}, {base.data}, by itself: {verdict}")
        return lines

    def _paths(self) -> list[tuple[str, Path]]:
        """List what was written, by name."""
        found = [("adapter", self.adapter), ("fused", self.fused), ("report", self.report)]
        return [(name, path) for name, path in found if path is not None]


@draws_bars
def run(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    only: str | None = None,
    reuse: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> RunResult:
    """Run a recipe: train every phase, fuse if the recipe says so, and measure after each step.

    Of several processes started by `mlx.launch`, all train. Only the first one writes the run,
    measures, fuses and returns; the others raise `OtherProcessEnded` when the last phase is trained.

    Args:
        recipe: from `load_recipe`.
        run_dir: default `adapters/NAME`.
        resume: continue a run that stopped; phases that have begun may get more steps, later ones
            may change in everything.
        only: stop after the phase of this name; earlier ones that are not done run first.
        reuse: another run, by its folder, its recipe's folder or its name; its finished phases are taken
            over, from the first up to one that this run would train otherwise.
        progress: called as work goes on; default: bars on a terminal or in a notebook.

    Raises:
        Forty2Error: with one line that says what to do. Finished phases stay.
    """
    path = run_path(recipe.name, run_dir)
    if only is not None and only not in recipe.phases:
        raise RunError(f"no phase {only!r}; the recipe has {', '.join(recipe.phases)}")
    if reuse is not None and resume:
        raise RunError(f"{path}: goes on with its own phases; take over another's in a new run")
    options = RunOptions(
        resume=resume,
        only=only,
        reuse=run_folder(reuse) if reuse is not None else None,
        trust_remote_code=trust_remote_code,
    )
    return run_in_folder(recipe, path, options, progress)


def run_in_folder(recipe: Recipe, path: Path, options: RunOptions, progress: Progress) -> RunResult:
    """Run a recipe in this folder, perhaps as one of several runs that share work.

    Raises:
        Forty2Error: as in `run`.
    """
    if joined().first:
        check_installed(recipe.report_to)
        if options.reuse is not None and not options.resume:
            check_source(recipe, options.reuse)
    agenda = Agenda(_tasks(recipe, path, options.only), progress if joined().first else silent)
    agenda.begin_next()
    with with_places(recipe), open_run(recipe, path, options, agenda) as context:
        agenda.record_in(context.folder if context.group.first else None)
        try:
            with reporting(context):
                return _run(context, agenda)
        except (Interrupted, TrainingError) as error:
            if not context.group.first:  # all processes come here; the first one says why
                raise OtherProcessEnded from error
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryRanOut(
                f"{context.progress.current}: memory ran out ({first_line(error)}); finished phases "
                f"and the last checkpoint are saved in {path}: make room, then go on with `resume=True`, "
                "or in another `run_dir` lower max_length or adapter.layers, or set "
                "grad_checkpoint: true"
            ) from error
        finally:
            with contextlib.suppress(RunError):  # the folder is gone, or its disk is full
                agenda.record_time()


def train_phase(
    recipe: Recipe,
    phase: str,
    *,
    run_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> RunResult:
    """Run a recipe up to and including one phase; finished phases are not trained again."""
    path = run_path(recipe.name, run_dir)
    return run(
        recipe,
        run_dir=path,
        resume=(path / "run.json").exists(),
        only=phase,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )


def _run(run: RunContext, agenda: Agenda) -> RunResult:
    measured = run.group.first and is_measured(run.recipe)
    measurer = StageMeasurer(run, run.recipe.benchmark) if measured else None
    stages: list[Stage] = []
    adapter, failure = _train_phases(run, agenda, measurer, stages)
    if not run.group.first:
        raise OtherProcessEnded
    fused = None
    if run.recipe.fuse is not None and run.options.only is None and failure is None:
        mx.clear_cache()
        agenda.begin_next()
        fused = fuse_run(run, run.recipe.fuse, adapter)
        if measurer is not None:
            agenda.begin_next()
            stages.append(measurer.measure_folder("fused", fused.full))
            if fused.quantized is not None:
                agenda.begin_next()
                stage = f"fused {run.recipe.fuse.quantize}-bit"
                stages.append(measurer.measure_folder(stage, fused.quantized))
    agenda.record_time()
    agenda.record_in(None)
    result = _finish(run, adapter, fused, stages)
    if failure is not None:  # with a report of what there is
        raise TrainingError(failure)
    return result


def _tasks(
    recipe: Recipe, path: Path, only: str | None, measurer: StageMeasurer | None = None
) -> list[AgendaItem]:
    """List the stages of a run; its phases' work is known when their rows are read.

    Args:
        measurer: knows which measurements are of the rows as they are now; None: any that is there is.
    """

    def measuring(title: str, stage: str) -> AgendaItem:
        done = measurement_path(path, stage).exists()
        if measurer is not None:
            done = measurer.has_measured(stage)
        return AgendaItem(title, "measure", done=done)

    measured = is_measured(recipe)
    tasks = [AgendaItem("reading model and data", "read")]
    if measured:
        tasks.append(measuring("measuring the base", "base"))
    for number, name in enumerate(recipe.phases, 1):
        label = phase_label(number, name)
        done = (path / label / "phase.json").exists()
        tasks.append(AgendaItem(f"training {name}", "train", done=done, phase=name))
        if measured and measures_phase(recipe, name, only):
            tasks.append(measuring(f"measuring after {name}", label))
        if name == only:
            return tasks
    if recipe.fuse is not None:
        tasks.append(AgendaItem("fusing", "fuse", done=(path / "fused.json").exists()))
        kinds = ["fused"] + [f"fused {recipe.fuse.quantize}-bit"] * bool(recipe.fuse.quantize)
        for stage in kinds if measured else ():
            tasks.append(measuring(f"measuring the {stage} model", stage))
    return tasks


def _train_phases(
    run: RunContext,
    agenda: Agenda,
    measurer: StageMeasurer | None,
    stages: list[Stage],
) -> tuple[Path, str | None]:
    """Train every phase, or those up to `only`, and measure after each.

    The trained model is released when this returns: fusing loads its own.

    Returns:
        The last phase's folder, and why the run ends with it: a gate failed; None: none did.
    """
    only, reuse = run.options.only, run.options.reuse
    with run.group.synchronized() as must_agree:
        if only is None:
            check_fused_path(run)
        inputs = read_inputs(run, measurer, must_agree)
        if reuse is not None and run.group.first:
            taken = take_over_phases(run, inputs.phases, reuse)
            notice = f"taken over from {reuse}: {', '.join(taken)}"
            run.progress("run", 0, 1, {"notice": notice})
    if reuse is not None:
        run.group.broadcast_files(run.path, NEEDED_BY_ALL)
    agenda.tasks = _tasks(run.recipe, run.path, only, measurer)  # as they are since it was opened
    agenda.set_work(
        {f"training {phase.name}": tokens_trained(run, phase) for phase in inputs.phases}
    )
    if measurer is not None:
        agenda.begin_next()
        stages.append(measurer.measure_base(inputs.loaded))
    loaded = inputs.loaded
    attach_initial_adapter(loaded.model, run.recipe, seed=run.recipe.seed, tags=loaded.tags)
    if message := wasted_rank(inputs.loaded.model):
        run.progress("run", 0, 1, {"warning": message})
    folder, failure = run.path, None
    for phase in inputs.phases:
        run.folder.check_there()
        agenda.begin_next()
        folder = finish_phase(run, phase, inputs.loaded)
        failure = judge_gates(run, phase)
        if measurer is not None and measures_phase(run.recipe, phase.name, only):
            agenda.begin_next()
            stages.append(measurer.measure(phase.label, inputs.loaded, folder))
        if phase.name == only or failure is not None:
            break
    return folder, failure


def _finish(
    run: RunContext, adapter: Path, fused: FusedModels | None, stages: list[Stage]
) -> RunResult:
    """Compare the stages, and write the report."""
    run.folder.check_there()
    verdict, sentence, verdicts, changes = "", "", dict[str, str](), ""
    steps: list[str] = []
    if stages:
        found = ContaminationRecord.from_json(read_json(run.path / CONTAMINATION))
        hits = [hit for _, hit in found.hits]
        benchmark = run.recipe.benchmark or Benchmark()
        summary = summarize(stages, benchmark.margin, hits, found.searched, benchmark.cost)
        write_json(run.path / "summary.json", summary.to_json())
        verdict, verdicts, sentence = summary.verdict, summary.verdicts, summary.sentence
        steps = next_steps(summary, run.recipe, run.path)
        if len(verdicts) > 1 or "held_out" in verdicts:
            changes = changes_table(summary.comparisons, verdicts)
    report = write_report(run.path)
    if fused is not None:
        write_cards(run.path, fused)
    return RunResult(
        path=run.path,
        adapter=adapter,
        fused=fused.full if fused is not None else None,
        stages=stages,
        table=table(stages) if stages else "",
        changes=changes,
        verdict=verdict,
        sentence=sentence,
        next_steps=steps,
        verdicts=verdicts,
        outcome=outcome_table(run.path, [model for model in fused or () if model is not None]),
        report=report,
        contamination=contamination_lines(run.path),
        warnings=notices(run.path),
    )
