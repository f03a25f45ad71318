"""Tables of a run's report, and the notes below them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from forty2.report.markdown import Table
from forty2.report.metrics import HELD_OUT_COLUMNS, STAGE_COLUMNS, Column
from forty2.report.origin import origin_table
from forty2.report.run_changes import shown_changes
from forty2.report.run_types import Estimate, PhaseRecord, Run

STYLE_NOTE = (
    "With 95% intervals, by resampling the replies (the texts, for perplexity). Spiral score: dialectic "
    "moves per 100 tokens. Subtlety: share of implicit stances among the replies that have a stance. "
    "Distinct-1 and -2: different words, and pairs of words, over all. Reply length in tokens. None of "
    "these says whether a reply is true or good."
)
PHASES_NOTE = "Adapter: the step whose adapter the phase ended with, the best or the last one."


def held_out(run: Run) -> Table:
    """Make the table of the held-out rows; without rows if they were not measured."""
    measured = [stage for stage in run.stages if stage.held_out]
    columns = {
        name: column
        for name, column in HELD_OUT_COLUMNS.items()
        if any(name in stage.held_out for stage in measured)
    }
    rows = [
        (
            stage.name,
            *(_cell(stage.held_out.get(name), column.form) for name, column in columns.items()),
        )
        for stage in measured
    ]
    return Table(("Stage", *(column.title for column in columns.values())), rows)


def held_out_note(table: Table) -> str:
    return _columns_note(table, HELD_OUT_COLUMNS)


def own_answers(run: Run) -> Table:
    """Make the table of the answers to held-out prompts, those that changed first."""
    answers = sorted(run.own_answers, key=lambda answer: answer.before == answer.after)
    head: tuple[str, ...] = ("Prompt", "Base model", "Last stage")
    rows: list[tuple[str, ...]] = [(one.prompt, one.before, one.after) for one in answers]
    if any(answer.expected for answer in answers):
        head = (*head, "Expected")
        rows = [(*row, one.expected) for row, one in zip(rows, answers, strict=True)]
    return Table(head, rows)


def stages(run: Run) -> Table:
    """Make the table of the stages' scores, with the columns that any stage has a value for."""
    columns = [
        (column.title, column.form, [getattr(stage, field) for stage in run.stages])
        for field, column in STAGE_COLUMNS.items()
    ]
    for task in dict.fromkeys(name for stage in run.stages for name in stage.tasks):
        columns.append((task, ".3f", [stage.tasks.get(task) for stage in run.stages]))
    shown = [column for column in columns if any(value is not None for value in column[2])]
    rows = [
        (stage.name, *(_cell(values[n], form) for _, form, values in shown))
        for n, stage in enumerate(run.stages)
    ]
    return Table(("Stage", *(title for title, _, _ in shown)), rows)


def stages_note(table: Table) -> str:
    return _columns_note(table, STAGE_COLUMNS)


def _columns_note(table: Table, columns: Mapping[str, Column]) -> str:
    """Explain the columns that a table has."""
    shown = [column for column in columns.values() if column.title in table.head]
    return " ".join(f"{column.title}: {column.meaning}." for column in shown)


def style(run: Run) -> Table:
    """Make the table of the replies' style: a row for each metric, a column for each stage."""
    measured = [stage for stage in run.stages if stage.style]
    names = dict.fromkeys(name for stage in measured for name in stage.style)
    rows = []
    for name in names:
        estimates = [stage.style.get(name) for stage in measured]
        caution = next(
            (estimate.caution for estimate in estimates if estimate and estimate.caution), ""
        )
        label = name.replace("_", " ")
        cells = [_estimate(estimate) for estimate in estimates]
        rows.append((f"{label} ({caution})" if caution else label, *cells))
    return Table(("Metric", *(stage.name for stage in measured)), rows)


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def changes(run: Run) -> Table:
    """Make the table of the paired changes from the base model, benefits and costs."""
    margin = run.summary.margin if run.summary is not None else None
    return Table(
        ("Stage", "Score", "Change", "95% interval", "Margin", "p", "Verdict"),
        [
            (
                comparison.stage,
                change.title,
                change.written(change.figure.value),
                f"{change.written(change.figure.low)} to {change.written(change.figure.high)}",
                change.written_margin,
                "–" if change.p is None else f"{change.p:.2g}",
                change.verdict,
            )
            for comparison in run.comparisons
            for change in shown_changes(comparison, margin)
        ],
    )


def flips(run: Run) -> Table:
    """List the questions of TruthfulQA whose MC1 changed, those that became wrong first."""
    return Table(
        ("Question", "Category", "MC1 is now"),
        [
            (flip.question, flip.category, "right" if flip.now_right else "wrong")
            for flip in sorted(run.flips, key=lambda flip: flip.now_right)
        ],
    )


def phases(run: Run) -> Table:
    """Make the table of the finished phases."""
    head = ("Phase", "Objective", "Steps", "Rows", "Times per row", "Adapter")
    return Table(
        (*head, "Tokens per second", "Peak memory"),
        [
            (
                phase.name,
                phase.objective,
                f"{phase.steps:,}",
                f"{phase.rows:,}",
                f"{phase.exposures:.2f}",
                f"step {phase.adapter_step}",
                _of_log(run, phase, "tokens_per_s", statistics.median, ",.0f"),
                _of_log(run, phase, "peak_memory_gb", max, ".2g", " GB"),
            )
            for phase in run.phases
        ],
    )


def _of_log(
    run: Run,
    phase: PhaseRecord,
    metric: str,
    reduce: Callable[[list[float]], float],
    form: str,
    unit: str = "",
) -> str:
    """Reduce a metric of a phase's steps to one figure."""
    values = [
        line.values[metric]
        for line in run.log
        if line.phase == phase.name and metric in line.values
    ]
    return f"{reduce(values):{form}}{unit}" if values else "–"


def fused(run: Run) -> Table:
    """Make the table of the fused model and its quantized copy; no rows: there is none."""
    model, rows = run.fused, list[tuple[str, str, str]]()
    if model is not None:
        rows += [
            (model.path, "KL of base + adapter from base", f"{model.adapter_kl:.1e}"),
            (model.path, "KL of the fused model from base + adapter", f"{model.parity_kl:.1e}"),
        ]
        copy = model.quantized
        if copy is not None:
            rows += [
                (
                    copy.path,
                    f"KL of {copy.bits} bits from the fused model, on two of the texts",
                    f"{copy.kl:.1e}",
                ),
                (
                    copy.path,
                    "cosine of the change of weights with the adapter's (1: nothing is lost)",
                    "no weight is changed" if copy.cosine is None else f"{copy.cosine:.3f}",
                ),
            ]
    return Table(("Model", "Measure", "Value"), rows)


def fused_note(run: Run) -> str:
    """Say on which texts the fused model's KL is measured, and what it should be."""
    where = "KL in nats per token, on the beginnings of the neutral texts alone"
    if any(stage.kl is not None for stage in run.stages):
        where += "; that under Measurements is another figure, over answers to prompts as well"
    return f"{where}. Fusing is exact if its KL is far below the adapter's."


def origin(run: Run) -> Table:
    """Make the table of where the run's numbers come from."""
    rows = [("started", run.started)]
    for task in run.tasks.values():
        if task.questions_sha256:
            name = "questions" if len(run.tasks) == 1 else f"questions of {task.label}"
            rows += [(name, task.questions), (f"{name}, sha256", task.questions_sha256)]
    return origin_table(run.provenance, rows)
