"""A run's report from its folder: Markdown, and one self-contained HTML page.

Texts from a model, a data row or a file name stay text: the page's templates escape them, and the
page forbids itself scripts and requests; in Markdown they are escaped, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from forty2.files import refuse_links, write_text
from forty2.report import lint, times
from forty2.report.markdown import Quote, Table, code_lines, escape, table_lines
from forty2.report.page import render
from forty2.report.records import read_run
from forty2.report.replies import marked
from forty2.report.run_charts import (
    change_chart,
    curves_by_phase,
    metric_name,
    truthfulqa_charts,
)
from forty2.report.run_types import HELD_OUT, Change, Phase, Provenance, Run, Summary, Task
from forty2.report.settings import recipe_tables

_VERDICTS = {
    "gain": "At least one score rose by more than chance explains, and none fell by the margin "
    "({margin}) or more.",
    "no tax": "No score fell by the margin ({margin}) or more.",
    "tax": "At least one score fell, and the loss may reach the margin ({margin}).",
    "inconclusive": "Too few questions to tell whether a score fell by the margin ({margin}).",
    "no change": "As far as was measured, this is still the base model.",
}
_OWN_NOTES = {
    "Pairs": "share whose chosen answer gained more probability, against the base, than the rejected one; "
    "the base has 50%",
    "Margin": "how much more, in nats",
    "Ratings": "share of good answers that gained probability and of bad ones that lost it; the base has "
    "50%",
    "Chat loss": "nats a token, lower is better",
    "Passed": "share of the eval prompts answered as expected",
    "Stopped": "share of replies that ended by themselves",
    "Tokens": "their mean length",
}
_STAGES_NOTES = {
    "MC1": "TruthfulQA score from 0 to 1, higher is better",
    "MC2": "the same, over all true answers",
    "Facts": "share of plain facts answered right",
    "Leaks": "share of them answered with needless hedging, lower is better",
    "Prefers": "share of held-out prompts whose good answer is likelier than the bad one",
    "Margin": "by how much, in nats per token",
    "Perplexity": "on neutral texts, lower is better",
    "KL": "distance from the base model, in nats per token",
}
_STYLE_NOTE = (
    "With 95% intervals, by resampling the replies (the texts, for perplexity). Spiral score: dialectic "
    "moves per 100 tokens. Subtlety: share of implicit stances among the replies that have a stance. "
    "Distinct-1 and -2: different words, and pairs of words, over all. Reply length in tokens. None of "
    "these says whether a reply is true or good."
)
_CHANGES_NOTE = (
    "Paired: both models answered the same questions. p is corrected for all metrics that were "
    "compared."
)
_METRIC_VERDICTS = {
    "gain": "the whole interval is above zero",
    "no tax": "any loss is smaller than the margin",
    "tax": "the whole interval is below zero, and the loss may reach the margin",
    "inconclusive": "too few questions to tell",
    "no change": "as far as was measured, this is still the base model",
}
_PHASES_NOTE = "Adapter: the step whose adapter the phase ended with, the best or the last one."
_FUSED_NOTE = "KL in nats per token. Fusing is exact if its KL is far below the adapter's."
_OPEN = 4
"""Number of warnings and of replies that the page shows unfolded."""
FILES = (
    "recipe.yaml",
    "run.json",
    "metrics.jsonl",
    "times.jsonl",
    "lint.json",
    "summary.json",
    "contamination.json",
    "data.json",
    "fused.json",
    "benchmarks",
    "report.md",
)
"""Files of a run folder that the page links to, where they exist."""
_NAMED = 10
"""Largest number of dropped or shortened rows that a warning names."""


def write_report(folder: Path) -> Path:
    """Write report.md and report.html into a run folder.

    Returns:
        The HTML file.

    Raises:
        RunError: it holds no run, a damaged one, or links that lead out of it.
    """
    refuse_links(folder)
    run = read_run(folder)
    write_text(folder / "report.md", _markdown(run))
    page = folder / "report.html"
    write_text(page, _html(run, [name for name in FILES if (folder / name).exists()]))
    return page


def notices(folder: Path) -> list[str]:
    """List what the owner of a run should look at, one line each, fit for a terminal."""
    return _warnings(read_run(folder))


def contamination_lines(folder: Path) -> list[str]:
    """List sentences about benchmark questions in a run's training rows, fit for a terminal.

    Empty if the run measured nothing.
    """
    return _contamination(read_run(folder))


def origin_table(provenance: Provenance, rows: Sequence[tuple[str, str]]) -> Table:
    """Make the table of versions and hashes, with these rows after the model's."""
    return Table(
        ("Source", "Value"),
        [
            ("model", provenance.model),
            ("model weights, sha256", provenance.model_sha256),
            *provenance.init_from.items(),
            *rows,
            *provenance.versions.items(),
        ],
    )


# --- the two documents ----------------------------------------------------------------------------


def _markdown(run: Run) -> str:
    lines = [f"# {escape(run.name)}", "", _about(run, escape)]
    summary = run.summary
    if summary is not None and summary.verdict:
        lines += ["", f"**Verdict: {escape(summary.verdict)}.** {_meaning(summary, escape)}"]
    warnings = _warnings(run, escape)
    if warnings:
        lines += ["", "## Look at this first", "", *(f"- {line}" for line in warnings)]
    lines += ["", "## Training", ""]
    if run.phases:
        lines += [*table_lines(_phases(run)), "", _PHASES_NOTE]
    else:
        lines += ["No phase is finished yet."]
    if run.fused is not None:
        lines += ["", "## Fused model", "", *table_lines(_fused(run)), "", _FUSED_NOTE]
    if summary is not None and summary.stages:
        own = _own_stages(summary)
        if own.rows:
            note = _note(own, _OWN_NOTES)
            lines += ["", "## Your held-out rows", "", *table_lines(own), "", note]
        if run.own_answers:
            lines += ["", *table_lines(_own_answers(run))]
        stages = _stages(summary)
        note = _note(stages, _STAGES_NOTES)
        lines += ["", "## Measurements", "", *table_lines(stages), "", note]
        changes = _changes(summary)
        if changes.rows:
            lines += ["", "### Change from the base model", ""]
            lines += [*table_lines(changes), "", _changes_note(summary, escape)]
        for line in _contamination(run, escape):
            lines += ["", line]
        lines += _section("### Style of the replies", _style(summary), _STYLE_NOTE)
    lines += _section("## Time", times.time_table(run), times.NOTE)
    tables = recipe_tables(run.recipe, run.phases)
    if tables is not None:
        lines += ["", "## Data", "", *table_lines(tables.data)]
    lines += _section("### Warnings of the lint", lint.lint_table(run), lint.NOTE)
    if tables is not None:
        lines += ["", "## Settings that are not the defaults", "", *table_lines(tables.changed)]
    lines += ["", "## Where these numbers come from", "", *table_lines(_origin(run))]
    return "\n".join([*lines, "", *code_lines(run.recipe, "yaml"), ""])


def _section(title: str, table: Table, note: str) -> list[str]:
    """Return the lines of a section with one table; none if the table is empty."""
    return ["", title, "", *table_lines(table), "", note] if table.rows else []


def _html(run: Run, files: Sequence[str]) -> str:
    summary = run.summary
    change = change_chart(summary) if summary is not None else None
    warnings = _warnings(run)
    pairs, own_pairs = marked(run.answers), marked(run.own_answers)
    own, stages = Table((), ()), Table((), ())
    if summary is not None:
        own, stages = _own_stages(summary), _stages(summary)
    return render(
        "run.html.jinja",
        name=run.name,
        about=_about(run),
        verdict=summary.verdict if summary is not None else "",
        meaning=_meaning(summary) if summary is not None else "",
        warnings=(warnings[:_OPEN], warnings[_OPEN:]),
        change=[change] if change is not None else [],
        replies=(pairs[:_OPEN], pairs[_OPEN:]),
        own_replies=(own_pairs[:_OPEN], own_pairs[_OPEN:]),
        own_stages=own,
        own_note=_note(own, _OWN_NOTES),
        stages=stages,
        stages_note=_note(stages, _STAGES_NOTES),
        changes=_changes(summary) if summary is not None else Table((), ()),
        changes_note=_changes_note(summary) if summary is not None else "",
        contamination=_contamination(run),
        style=_style(summary) if summary is not None else Table((), ()),
        style_note=_STYLE_NOTE,
        scores=truthfulqa_charts(summary) if summary is not None else [],
        flips=_flips(run),
        curves=curves_by_phase(run),
        phases=_phases(run),
        phases_note=_PHASES_NOTE,
        fused=_fused(run),
        fused_note=_FUSED_NOTE,
        times=times.time_table(run),
        times_note=times.NOTE,
        lint=lint.lint_table(run),
        lint_note=lint.NOTE,
        files=files,
        origin=_origin(run),
        settings=recipe_tables(run.recipe, run.phases),
        recipe=run.recipe,
    )


# --- sentences ------------------------------------------------------------------------------------


def _about(run: Run, quote: Quote = str) -> str:
    """Say in a sentence which model the run started from, and when."""
    try:
        started = f"{datetime.fromisoformat(run.started):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        started = run.started
    return f"Model {quote(run.provenance.model)}, started {quote(started)}."


def _meaning(summary: Summary, quote: Quote = str) -> str:
    """Explain the verdict in a sentence, and say what was compared."""
    margin = "not recorded" if summary.margin is None else f"{summary.margin:g}"
    sentence = quote(summary.sentence) or _VERDICTS.get(summary.verdict, "").format(margin=margin)
    stage = summary.comparisons[-1].stage if summary.comparisons else "the last stage"
    noun = "row" if HELD_OUT in summary.tasks else "question"
    number = f" ({_count(summary.n, noun)})" if summary.n is not None else ""
    compared = (
        f"Compared: {quote(stage)} with the base model, on {quote(summary.questions)}{number}."
    )
    return f"{sentence} {compared}".strip()


def _changes_note(summary: Summary, quote: Quote = str) -> str:
    """Write the note on changes: the meaning of the verdicts that occur, and each benchmark's own."""
    found = {one.verdict for each in summary.comparisons for one in each.changes.values()}
    meanings = [f"{name}: {text}" for name, text in _METRIC_VERDICTS.items() if name in found]
    verdicts = []
    if len(summary.tasks) > 1 and summary.comparisons:
        last = summary.comparisons[-1]
        each = "; ".join(
            f"{quote(task.label)} {quote(last.tasks[name].verdict)}"
            for name, task in summary.tasks.items()
            if name in last.tasks
        )
        verdicts.append(f"Verdicts on {quote(last.stage)} by benchmark: {each}.")
    sentences = [f"{text[0].upper()}{text[1:]}." for text in meanings]
    return " ".join([_CHANGES_NOTE, *sentences, *verdicts])


def _warnings(run: Run, quote: Quote = str) -> list[str]:
    """List the warnings about data, training and fusing."""
    found = []
    for phase in run.phases:
        if phase.adapter_step == 0 < phase.steps:
            found.append(
                f"{quote(phase.name)}: no evaluation was better than the one before training, so "
                f"{_count(phase.steps, 'step')} changed nothing: the phase ends with the adapter that "
                f"it began with (step 0); try another lr, or leave out phases.{quote(phase.name)}.best"
            )
        for origins, noun, what in (
            (phase.dropped, "row", "dropped, longer than max_length"),
            (phase.shortened, "prompt", "lost {its} beginning, longer than max_length"),
        ):
            if origins:
                named = ", ".join(map(quote, origins[:_NAMED]))
                more = f" and {len(origins) - _NAMED:,} more" if len(origins) > _NAMED else ""
                count = _count(len(origins), noun)
                what = what.format(its="its" if len(origins) == 1 else "their")
                found.append(f"{quote(phase.name)}: {count} {what} ({named}{more})")
    found += [quote(line.warning) for line in run.log if line.warning is not None]
    return [*found, *map(quote, run.fused.warnings if run.fused is not None else [])]


def _contamination(run: Run, quote: Quote = str) -> list[str]:
    """List sentences about benchmark questions in the training rows."""
    summary = run.summary
    if summary is None or not summary.stages:
        return []
    found = summary.contamination
    counts = found.questions if found is not None else {}
    clean = [quote(task.label) for name, task in summary.tasks.items() if counts.get(name) == 0]
    lines = []
    if clean:
        lines.append(f"Contamination: no training row holds a question of {_listed(clean)}.")
    if found is not None:
        lines += [
            _contaminated(task, found.questions[name], _without(summary, name, quote), quote)
            for name, task in summary.tasks.items()
            if found.questions.get(name)
        ]
        unsearched = [
            quote(task.label)
            for name, task in summary.tasks.items()
            if name not in counts and name != HELD_OUT  # the lint compares those with training rows
        ]
        if unsearched:
            lines.append(f"Training rows were not searched for questions of {_listed(unsearched)}.")
    if len(summary.tasks) == 1 and any(stage.tasks for stage in summary.stages):
        lines.append("Training rows were not searched for questions of the other benchmarks.")
    if run.unread_phases:
        lines.append(
            f"Not searched: the data of {', '.join(map(quote, run.unread_phases))}, which is "
            "prepared and holds no texts."
        )
    return lines


def _contaminated(task: Task, questions: int, without: str, quote: Quote) -> str:
    """Say how many of a benchmark's questions are in training rows, and the result without them."""
    are, them = ("is", "it") if questions == 1 else ("are", "them")
    text = (
        f"Contamination: {_count(questions, 'question')} of {quote(task.label)} {are} in training "
        f"rows (contamination.json names {them})."
    )
    return f"{text} Without {them}, {without}." if without else text


def _without(summary: Summary, name: str, quote: Quote) -> str:
    """Give the last stage's changes in one benchmark without its questions in training rows."""
    if summary.contamination is None or not summary.comparisons:
        return ""
    found = summary.contamination.comparisons
    if not found or name not in found[-1].tasks:
        return "too few are left to compare"
    last = found[-1]
    changes = "; ".join(
        f"{quote(metric_name(metric))} {_signed(one)} ({_interval(one)}), {quote(one.verdict)}"
        for metric in last.tasks[name].metrics
        if (one := last.changes.get(metric)) is not None
    )
    return f"{quote(last.stage)} against the base model: {changes}"


def _count(n: int, noun: str) -> str:
    """Format a number with its noun, in the plural unless it is 1."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """Join names, the last with "or"."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _signed(change: Change) -> str:
    return f"{change.difference:+.4f}"


def _interval(change: Change) -> str:
    return f"{change.low:+.4f} to {change.high:+.4f}"


# --- tables ---------------------------------------------------------------------------------------


_OWN_COLUMNS = {
    "pairs right": ("Pairs", ".1%"),
    "pair margin": ("Margin", "+.2f"),
    "ratings right": ("Ratings", ".1%"),
    "chat loss": ("Chat loss", ".3f"),
    "prompts passed": ("Passed", ".1%"),
    "replies stopped": ("Stopped", ".1%"),
    "reply tokens": ("Tokens", ".1f"),
}


def _own_stages(summary: Summary) -> Table:
    """Make the table of the held-out rows; without rows if they were not measured."""
    measured = [stage for stage in summary.stages if stage.held_out]
    names = [name for name in _OWN_COLUMNS if any(name in stage.held_out for stage in measured)]
    rows = [
        (stage.name, *(_cell(stage.held_out.get(name), _OWN_COLUMNS[name][1]) for name in names))
        for stage in measured
    ]
    return Table(("Stage", *(_OWN_COLUMNS[name][0] for name in names)), rows)


def _note(table: Table, meanings: Mapping[str, str]) -> str:
    """Explain the columns that a table has."""
    return " ".join(f"{name}: {meanings[name]}." for name in table.head if name in meanings)


def _own_answers(run: Run) -> Table:
    """Make the table of the answers to held-out prompts, those that changed first."""
    answers = sorted(run.own_answers, key=lambda one: one.before == one.after)
    rows = [(one.prompt, one.before, one.after) for one in answers]
    return Table(("Prompt", "Base model", "Last stage"), rows)


def _stages(summary: Summary) -> Table:
    stages = summary.stages
    columns: list[tuple[str, str, list[float | None]]] = [
        ("MC1", ".3f", [stage.mc1 for stage in stages]),
        ("MC2", ".3f", [stage.mc2 for stage in stages]),
        ("Facts", ".1%", [stage.facts_right for stage in stages]),
        ("Leaks", ".1%", [stage.leak_rate for stage in stages]),
        ("Prefers", ".1%", [stage.preference for stage in stages]),
        ("Margin", "+.3f", [stage.margin for stage in stages]),
        ("Perplexity", ".2f", [stage.perplexity for stage in stages]),
        ("KL", ".2g", [stage.kl for stage in stages]),
    ]
    for name in dict.fromkeys(name for stage in stages for name in stage.tasks):
        columns.append((name, ".3f", [stage.tasks.get(name) for stage in stages]))
    shown = [one for one in columns if any(value is not None for value in one[2])]
    rows = [
        (stage.name, *(_cell(values[n], form) for _, form, values in shown))
        for n, stage in enumerate(stages)
    ]
    return Table(("Stage", *(title for title, _, _ in shown)), rows)


def _style(summary: Summary) -> Table:
    """Make the table of the replies' style: a row for each metric, a column for each stage."""
    measured = [stage for stage in summary.stages if stage.style]
    names = dict.fromkeys(name for stage in measured for name in stage.style)
    rows = []
    for name in names:
        found = [stage.style.get(name) for stage in measured]
        caution = next((one.caution for one in found if one is not None and one.caution), "")
        label = name.replace("_", " ")
        cells = [
            "–" if one is None else f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"
            for one in found
        ]
        rows.append((f"{label} ({caution})" if caution else label, *cells))
    return Table(("Metric", *(stage.name for stage in measured)), rows)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _changes(summary: Summary) -> Table:
    return Table(
        ("Stage", "Score", "Change", "95% interval", "p", "Verdict"),
        [
            (
                comparison.stage,
                metric_name(name),
                _signed(one),
                _interval(one),
                "–" if one.p is None else f"{one.p:.2g}",
                one.verdict,
            )
            for comparison in summary.comparisons
            for name, one in comparison.changes.items()
        ],
    )


def _flips(run: Run) -> Table:
    """List the questions of TruthfulQA whose MC1 changed, those that became wrong first."""
    return Table(
        ("Question", "Category", "MC1 is now"),
        [
            (flip.question, flip.category, "right" if flip.now_right else "wrong")
            for flip in sorted(run.flips, key=lambda flip: flip.now_right)
        ],
    )


def _phases(run: Run) -> Table:
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
    phase: Phase,
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


def _fused(run: Run) -> Table:
    fused, rows = run.fused, list[tuple[str, str, str]]()
    if fused is not None:
        rows += [
            (fused.path, "KL of base + adapter from base", f"{fused.adapter_kl:.1e}"),
            (fused.path, "KL of the fused model from base + adapter", f"{fused.parity_kl:.1e}"),
        ]
        copy = fused.quantized
        if copy is not None:
            rows += [
                (copy.path, f"KL of {copy.bits} bits from the fused model", f"{copy.kl:.1e}"),
                (
                    copy.path,
                    "cosine of the change of weights with the adapter's (1: nothing is lost)",
                    "no weight is changed" if copy.cosine is None else f"{copy.cosine:.3f}",
                ),
            ]
    return Table(("Model", "Measure", "Value"), rows)


def _origin(run: Run) -> Table:
    rows = [("started", run.started)]
    tasks = run.summary.tasks if run.summary is not None else {}
    for task in tasks.values():
        if task.questions_sha256:
            name = "questions" if len(tasks) == 1 else f"questions of {task.label}"
            rows += [(name, task.questions), (f"{name}, sha256", task.questions_sha256)]
    return origin_table(run.provenance, rows)
