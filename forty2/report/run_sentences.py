"""Sentences of a run's report: the verdict, warnings, and questions in training rows.

Each takes a `Quote`, which makes the texts of the run safe in one kind of report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import yaml

from forty2.metric_names import TEXTS, metric_name
from forty2.report.markdown import Quote
from forty2.report.metrics import interval, signed
from forty2.report.run_changes import shown_changes
from forty2.report.run_types import HELD_OUT, Run, SummaryRecord, TaskRecord
from forty2.run_paths import phase_label

_VERDICTS = {
    "gain": "At least one score rose by more than chance explains, and none fell by the margin "
    "({margin}) or more.",
    "no tax": "No score fell by the margin ({margin}) or more.",
    "tax": "At least one score fell, and the loss may reach the margin ({margin}).",
    "inconclusive": "Too few questions to tell whether a score fell by the margin ({margin}).",
    "gain, cost unclear": "At least one score rose by more than chance explains; what it cost was not "
    "measured, or on too few questions.",
    "no change": "As far as was measured, this is still the base model.",
}
_CHANGES_NOTE = (
    "Paired: both models answered the same questions. p is corrected for all metrics that were "
    "compared. Margin: the largest loss that counts as none, in the unit of the change."
)
_PERPLEXITY_NOTE = "A change of perplexity is in percent of what it was."
_METRIC_VERDICTS = {
    "gain": "the whole interval is on the better side of zero: above it, or below it where lower is "
    "better",
    "no tax": "any loss is smaller than the margin",
    "tax": "the whole interval is on the worse side of zero, and the loss may reach the margin",
    "inconclusive": "too few questions to tell",
    "no change": "as far as was measured, this is still the base model",
}
_KINDS = {
    "pairs right": "pair",
    "ratings right": "rated answer",
    "chat loss": "chat",
    "prompts passed": "eval prompt",
}
"""Nouns for what held-out metrics are counted over."""
_NAMED = 10
"""Largest number of rows or steps that a warning names."""
_DETAIL = re.compile(
    r" on rows .*|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d[\d.,]*(e[+-]?\d+)?%?", re.DOTALL
)
"""What may differ between two warnings of one kind: rows, quotes and figures."""


def about(run: Run, quote: Quote = str) -> str:
    """Say in a sentence which model the run started from, and when."""
    try:
        started = f"{datetime.fromisoformat(run.started):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        started = run.started
    return f"Model {quote(run.provenance.model)}, started {quote(started)}."


def unfinished(run: Run, quote: Quote = str) -> str:
    """Say which phases of the recipe are still to be trained, and how to go on; "" if none is."""
    try:
        phases = list(yaml.safe_load(run.recipe)["phases"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return ""
    missing = [quote(str(name)) for name in phases[len(run.phases) :]]
    if not missing:
        return ""
    return (
        f"This run is not finished. Still to be trained: {', '.join(missing)}. To go on, add resume to "
        "the command that began it."
    )


def meaning(summary: SummaryRecord, quote: Quote = str) -> str:
    """Explain the verdict in a sentence, and say what was compared."""
    margin = "not recorded" if summary.margin is None else f"{summary.margin:g}"
    sentence = quote(summary.sentence) or _VERDICTS.get(summary.verdict, "").format(margin=margin)
    stage = summary.comparisons[-1].stage if summary.comparisons else "the last stage"
    number = _asked(summary)
    compared = (
        f"Compared: {quote(stage)} with the base model, on {quote(summary.questions)}{number}."
    )
    return f"{sentence} {compared}".strip()


def _asked(summary: SummaryRecord) -> str:
    """Count in brackets what the last stage was compared on: held-out rows by their kind."""
    changes = summary.comparisons[-1].changes if summary.comparisons else {}
    kinds = [
        _count(change.n, _KINDS[name])
        for name, change in changes.items()
        if name in _KINDS and change.n is not None
    ]
    if kinds:
        return f" ({', '.join(kinds)})"
    noun = "row" if HELD_OUT in summary.tasks else "question"
    return f" ({_count(summary.n, noun)})" if summary.n is not None else ""


def lost(run: Run, quote: Quote = str) -> list[str]:
    """Say which phases lost what the one before had reached."""
    labels = {phase_label(n, phase.name): phase.name for n, phase in enumerate(run.phases, 1)}
    return [
        f"{quote(labels[stage])}, against the model before it: {quote(sentence)}"
        for stage, sentence in (run.summary.lost if run.summary is not None else [])
        if stage in labels
    ]


def changes_note(run: Run, quote: Quote = str) -> str:
    """Write the note on changes: the meaning of the verdicts that occur, and each benchmark's own."""
    margin = run.summary.margin if run.summary is not None else None
    changes = [shown_changes(comparison, margin) for comparison in run.comparisons]
    occur = {change.verdict for stage in changes for change in stage}
    meanings = [f"{name}: {text}" for name, text in _METRIC_VERDICTS.items() if name in occur]
    verdicts = []
    if len(run.tasks) > 1 and run.comparisons:
        last = run.comparisons[-1]
        by_task = "; ".join(
            f"{quote(task.label)} {quote(last.tasks[name].verdict)}"
            for name, task in run.tasks.items()
            if name in last.tasks
        )
        verdicts.append(f"Verdicts on {quote(last.stage)} by benchmark: {by_task}.")
    sentences = [f"{text[0].upper()}{text[1:]}." for text in meanings]
    if any(change.metric == TEXTS for stage in changes for change in stage):
        sentences.append(_PERPLEXITY_NOTE)
    lost = [change.name for change in (changes[-1] if changes else []) if change.verdict == "tax"]
    if lost and run.summary is not None and run.summary.verdict == "tax":
        sentences.append(f"The run's verdict is tax because of {_listed(lost, 'and')}.")
    return " ".join([_CHANGES_NOTE, *sentences, *verdicts])


def warnings(run: Run, quote: Quote = str) -> list[str]:
    """List the warnings about data, training and fusing."""
    lines = []
    for phase in run.phases:
        if phase.adapter_step == 0 < phase.steps:
            lines.append(
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
                lines.append(f"{quote(phase.name)}: {count} {what} ({named}{more})")
        lines += [f"{quote(phase.name)}: {quote(warning)}" for warning in phase.warnings]
    lines += map(quote, _logged(run))
    return [*lines, *map(quote, run.fused.warnings if run.fused is not None else [])]


def _logged(run: Run) -> list[str]:
    """List the warnings of training, each once a phase, with its steps and its last figures."""
    alike = dict[tuple[str, str], list[tuple[str, str]]]()
    for line in run.log:
        if line.warning is not None:
            start = rf"{re.escape(line.phase)}, (before training|step {line.step}): "
            found = re.match(start, line.warning)
            place, reason = (found[1], line.warning[found.end() :]) if found else ("", line.warning)
            kind = _DETAIL.sub("#", reason) if found else reason
            alike.setdefault((line.phase, kind), []).append((place, reason))
    return [_in_one_sentence(phase, places) for (phase, _), places in alike.items()]


def _in_one_sentence(phase: str, warnings: Sequence[tuple[str, str]]) -> str:
    """Join a phase's warnings of one kind, each with its place in the phase, if it names one."""
    last, reason = warnings[-1]
    places = list(dict.fromkeys(place for place, _ in warnings if place))
    if not places:
        return reason
    if len(places) == 1:
        return f"{phase}, {last}: {reason}"
    steps = [place.removeprefix("step ") for place in places if place.startswith("step ")]
    if len(steps) > _NAMED:
        steps = [*steps[:_NAMED], f"{len(steps) - _NAMED:,} more"]
    named = [place for place in places if not place.startswith("step ")]
    if len(steps) > 1:
        named.append(f"steps {', '.join(steps[:-1])} and {steps[-1]}")
    else:
        named += [f"step {step}" for step in steps]
    differs = any(other != reason for _, other in warnings)
    return f"{phase}, {' and '.join(named)}: {reason}{f' (at {last})' if differs else ''}"


def contamination(run: Run, quote: Quote = str) -> list[str]:
    """List sentences about benchmark questions in the training rows."""
    summary = run.summary
    if summary is None or not summary.stages:
        return []
    searched = summary.contamination
    counts = searched.questions if searched is not None else {}
    clean = [quote(task.label) for name, task in summary.tasks.items() if counts.get(name) == 0]
    lines = []
    if clean:
        lines.append(f"Contamination: no training row holds a question of {_listed(clean)}.")
    if searched is not None:
        lines += [
            _contaminated(task, counts[name], _without(summary, name, quote), quote)
            for name, task in summary.tasks.items()
            if counts.get(name)
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


def _contaminated(task: TaskRecord, questions: int, without: str, quote: Quote) -> str:
    """Say how many of a benchmark's questions are in training rows, and the result without them."""
    are, them = ("is", "it") if questions == 1 else ("are", "them")
    text = (
        f"Contamination: {_count(questions, 'question')} of {quote(task.label)} {are} in training "
        f"rows (contamination.json names {them})."
    )
    return f"{text} Without {them}, {without}." if without else text


def _without(summary: SummaryRecord, name: str, quote: Quote) -> str:
    """Give the last stage's changes in one benchmark without its questions in training rows."""
    if summary.contamination is None or not summary.comparisons:
        return ""
    comparisons = summary.contamination.comparisons
    if not comparisons or name not in comparisons[-1].tasks:
        return "too few are left to compare"
    last = comparisons[-1]
    changes = "; ".join(
        f"{quote(metric_name(metric))} {signed(change)} ({interval(change)}), {quote(change.verdict)}"
        for metric in last.tasks[name].metrics
        if (change := last.changes.get(metric)) is not None
    )
    return f"{quote(last.stage)} against the base model: {changes}"


def _count(n: int, noun: str) -> str:
    """Format a number with its noun, in the plural unless it is 1."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _listed(names: Sequence[str], last: str = "or") -> str:
    """Join names, with a word before the last one."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
