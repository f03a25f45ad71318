"""A run's report from its folder: Markdown, and one self-contained HTML page.

Texts from a model, a data row or a file name stay text: the page's templates escape them, and the
page forbids itself scripts and requests; in Markdown they are escaped, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forty2.files import refuse_links, write_text
from forty2.report import curriculum, eval_replies, glossary, lint, run_sentences, run_tables, times
from forty2.report.charts import Chart
from forty2.report.markdown import Table, code_lines, escape, table_lines
from forty2.report.page import render
from forty2.report.records import read_run
from forty2.report.replies import marked
from forty2.report.run_charts import change_charts, curves_by_phase, truthfulqa_charts
from forty2.report.run_types import Run
from forty2.report.settings import recipe_tables

_OPEN = 4
"""Number of warnings and of replies that the page shows unfolded."""
FILES = (
    "recipe.yaml",
    "run.json",
    "metrics.jsonl",
    "times.jsonl",
    "lint.json",
    "gates.json",
    "summary.json",
    "contamination.json",
    "data.json",
    "fused.json",
    "benchmarks",
    "report.md",
)
"""Files of a run folder that the page links to, where they exist."""


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
    return run_sentences.warnings(read_run(folder))


def contamination_lines(folder: Path) -> list[str]:
    """List sentences about benchmark questions in a run's training rows, fit for a terminal.

    Empty if the run measured nothing.
    """
    return run_sentences.contamination(read_run(folder))


def _markdown(run: Run) -> str:
    lines, origin = _markdown_parts(run)
    words = glossary.entries(run, lines)
    if words:
        lines += ["", f"## {glossary.TITLE}", ""]
        lines += [f"- **{one.word}**: {one.meaning}" for one in words]
    return "\n".join([*lines, *origin, "", *code_lines(run.recipe, "yaml"), ""])


def _markdown_parts(run: Run) -> tuple[list[str], list[str]]:
    """Return the lines above the words' meanings, and those below, without the recipe."""
    lines = [f"# {escape(run.name)}", "", run_sentences.about(run, escape)]
    if unfinished := run_sentences.unfinished(run, escape):
        lines += ["", unfinished]
    summary = run.summary
    if summary is not None and summary.verdict:
        meaning = run_sentences.meaning(summary, escape)
        lines += ["", f"**Verdict: {escape(summary.verdict)}.** {meaning}"]
        lines += ["", f"What the words mean is below, under “{glossary.TITLE}”."]
    warnings = run_sentences.warnings(run, escape)
    if warnings:
        lines += ["", "## Look at this first", "", *(f"- {line}" for line in warnings)]
    lines += ["", "## Training", ""]
    if run.phases:
        lines += [*table_lines(run_tables.phases(run)), "", run_tables.PHASES_NOTE]
    else:
        lines += ["No phase is finished yet."]
    for title, table, table_note in curriculum.curriculum_tables(run):
        lines += _section(f"### {title}", table, table_note)
    lines += _section(
        "### Expected and given at the last stage",
        eval_replies.confusion_table(run),
        eval_replies.CONFUSION_NOTE.partition(" Underlined")[0],
    )
    lines += _section("## Fused model", run_tables.fused(run), run_tables.fused_note(run))
    held_out, stages = run_tables.held_out(run), run_tables.stages(run)
    lines += _section("## Your held-out rows", held_out, run_tables.held_out_note(held_out))
    if run.own_answers:
        lines += ["", *table_lines(run_tables.own_answers(run))]
    lines += _section("## Measurements", stages, run_tables.stages_note(stages))
    changes, note = run_tables.changes(run), run_sentences.changes_note(run, escape)
    lines += _section("### Change from the base model", changes, note)
    for line in run_sentences.contamination(run, escape):
        lines += ["", line]
    lines += _section("### Style of the replies", run_tables.style(run), run_tables.STYLE_NOTE)
    lines += _section("## Time", times.time_table(run), times.NOTE)
    settings = recipe_tables(run.recipe, run.phases)
    if settings is not None:
        lines += ["", "## Data", "", *table_lines(settings.data)]
    lines += _section("### Warnings of the lint", lint.lint_table(run), lint.NOTE)
    if settings is not None:
        lines += ["", "## Settings that are not the defaults", "", *table_lines(settings.changed)]
    origin = ["", "## Where these numbers come from", "", *table_lines(run_tables.origin(run))]
    return lines, origin


def _section(title: str, table: Table, note: str) -> list[str]:
    """Return the lines of a section with one table; none if the table is empty."""
    return ["", title, "", *table_lines(table), "", note] if table.rows else []


def _html(run: Run, files: Sequence[str]) -> str:
    summary = run.summary
    warnings = run_sentences.warnings(run)
    replies, own_replies = marked(run.answers), marked(run.own_answers)
    held_out, stages = run_tables.held_out(run), run_tables.stages(run)
    change, scores, curves = change_charts(run), truthfulqa_charts(run), curves_by_phase(run)
    charts = [*change, *scores, *(chart for phase in curves.values() for chart in phase)]
    words = glossary.entries(run, [*_markdown_parts(run)[0], *map(_chart_words, charts)])
    return render(
        "run.html.jinja",
        name=run.name,
        about=run_sentences.about(run),
        unfinished=run_sentences.unfinished(run),
        verdict=summary.verdict if summary is not None else "",
        meaning=run_sentences.meaning(summary) if summary is not None else "",
        warnings=(warnings[:_OPEN], warnings[_OPEN:]),
        change=change,
        words=words,
        words_title=glossary.TITLE,
        replies=(replies[:_OPEN], replies[_OPEN:]),
        own_replies=(own_replies[:_OPEN], own_replies[_OPEN:]),
        held_out=held_out,
        held_out_note=run_tables.held_out_note(held_out),
        stages=stages,
        stages_note=run_tables.stages_note(stages),
        changes=run_tables.changes(run),
        changes_note=run_sentences.changes_note(run),
        contamination=run_sentences.contamination(run),
        style=run_tables.style(run),
        style_note=run_tables.STYLE_NOTE,
        scores=scores,
        flips=run_tables.flips(run),
        curves=curves,
        phases=run_tables.phases(run),
        phases_note=run_tables.PHASES_NOTE,
        curriculum=curriculum.curriculum_tables(run),
        confusions=eval_replies.confusions(run),
        confusion_note=eval_replies.CONFUSION_NOTE,
        fused=run_tables.fused(run),
        fused_note=run_tables.fused_note(run),
        times=times.time_table(run),
        times_note=times.NOTE,
        lint=lint.lint_table(run),
        lint_note=lint.NOTE,
        files=files,
        origin=run_tables.origin(run),
        settings=recipe_tables(run.recipe, run.phases),
        recipe=run.recipe,
    )


def _chart_words(chart: Chart) -> str:
    """Return what stands around a chart."""
    return " ".join([chart.title, chart.unit, *(entry.name for entry in chart.legend)])
