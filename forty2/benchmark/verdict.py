"""The verdict on a model: its benefit, and its cost.

The benefit is what the run's own held-out rows show, or else the first benchmark; plain facts, neutral
text and divergence from the base never are a benefit. The cost is judged
on what the model could do before: the perplexity of neutral text, plain facts answered right, and the
other benchmarks of the recipe, each with a margin that the recipe states before the run
(`benchmark.cost`). A cost is

    none         the whole interval of the change lies within the margin
    worse        the whole interval is a loss, and the loss may reach the margin
    cannot tell  anything else: too few items

Run, comparison, report and table take word and sentence from here. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from forty2.benchmark.stage_scores import Scores
from forty2.benchmark.stats import Interval, Verdict, overall, verdict
from forty2.benchmark.tasks import task_class
from forty2.metric_names import metric_name
from forty2.recipe.schema import Cost

HELD_OUT = "held_out"
"""Name of the task that measures the run's own held-out rows."""
STYLE = "reply_style"
"""Name of the task that measures the style of replies."""
ModelVerdict = Verdict | Literal["gain, cost unclear"]
"""A verdict on benefit and cost; the last: a gain whose cost was not measured, or on too few items."""
Answer = Literal["none", "worse", "cannot tell"]
_ANSWERS: Mapping[Verdict, Answer] = {
    "gain": "none",
    "no tax": "none",
    "no change": "none",
    "tax": "worse",
    "inconclusive": "cannot tell",
}
_MORE_DIGITS = 3
"""Most digits that a small change gets beyond the usual ones."""
_WORDS: Mapping[Answer, Verdict] = {
    "none": "no tax",
    "worse": "tax",
    "cannot tell": "inconclusive",
}


class JudgedChange(Protocol):
    """A metric's change with its 95% interval, over the items of one run or of several seeds."""

    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...
    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def verdict(self) -> Verdict: ...


class TaskChange(NamedTuple):
    """The metrics that one benchmark's verdict is over, and that verdict."""

    judged: tuple[str, ...]
    verdict: Verdict


class CostChange(NamedTuple):
    """A change in one thing that the base could do."""

    where: str
    """Name of the texts or questions, for a reader."""
    name: str
    """The same, with the metric."""
    before: str
    after: str
    n: int
    """Items that it is judged by."""
    margin: float
    """Largest loss that counts as none, in the unit of the score: a share, or nats a token."""
    answer: Answer
    better: bool = False
    """True if the whole interval is a gain."""


class Judgement(NamedTuple):
    """The verdict on the changes of all metrics."""

    questions: str
    """Name of the questions that show the benefit; "": none do."""
    n: int
    """Their number."""
    judged: tuple[str, ...]
    """Metrics that the benefit is over."""
    tasks: dict[str, TaskChange]
    """Each benchmark's own verdict."""
    costs: tuple[CostChange, ...]
    verdict: ModelVerdict
    sentence: str


def judge(
    scores: Scores,
    changes: Mapping[str, JudgedChange],
    cost: Cost,
    *,
    same: bool,
    left_out: bool = False,
) -> Judgement:
    """Judge benefit and cost.

    Args:
        scores: those before.
        changes: by metric, of those metrics that have two items or more.
        cost: margins of the cost.
        same: whether the model is still the same, as far as was measured.
        left_out: whether something was measured in one of the two alone, and left out.
    """
    task = scores.benefit_task
    own = scores.tasks.get(task, ())
    judged = tuple(name for name in own if name in changes)
    single = tuple(name for name in own if name not in changes)
    tasks = _by_task(scores, changes)
    benefit: Verdict = "no change"
    if not same:
        too_few: list[Verdict] = ["inconclusive"] * len(single)
        benefit = benefit_of(task, [*(changes[name].verdict for name in judged), *too_few])
    costs = () if same else costs_of(changes, tasks, task, cost)
    shown = {metric_name(name): changes[name] for name in judged}
    questions = scores.names.get(task, "")
    named = tuple(map(metric_name, single))
    return Judgement(
        questions=questions,
        n=max((len(scores.metrics[name].by_place) for name in own), default=0),
        judged=judged,
        tasks=tasks,
        costs=costs,
        verdict=word(benefit, costs),
        sentence=sentence(task, questions, benefit, shown, costs, named, left_out=left_out),
    )


def _by_task(scores: Scores, changes: Mapping[str, JudgedChange]) -> dict[str, TaskChange]:
    """Judge each benchmark by its own metrics; those with too few questions are left out."""
    by_task = {}
    for task, names in scores.tasks.items():
        judged = tuple(name for name in names if name in changes)
        if judged:
            by_task[task] = TaskChange(judged, overall([changes[name].verdict for name in judged]))
    return by_task


def costs_of(
    metrics: Mapping[str, JudgedChange], tasks: Mapping[str, TaskChange], benefit: str, cost: Cost
) -> tuple[CostChange, ...]:
    """Judge what a stage of a run cost, from its comparison with the base.

    Args:
        metrics: changes by metric.
        tasks: each benchmark's judged metrics, by the task's name.
        benefit: the task whose change is the benefit, and no cost.
        cost: the margins.

    Returns:
        Nothing where nothing but the benefit was measured.
    """
    costs = []
    for task, judged in tasks.items():
        if task == benefit:
            continue
        for name in judged.judged:
            if task == STYLE or (task == "behaviour" and not name.endswith("right")):
                continue  # what training is for, or not: no ability that could be lost
            change = metrics[name]
            values, digits, unit = (change.before, change.after), 3, "f"
            if task == "perplexity":
                values, digits = (math.exp(-change.before), math.exp(-change.after)), 1
                where, metric, margin = "neutral text", " perplexity", math.log(cost.perplexity)
            elif task == "behaviour":
                digits, unit = 0, "%"
                where, metric, margin = "plain facts", "", cost.facts
            else:
                where, metric = task_class(task).label(), f" {metric_name(name)}"
                margin = cost.tasks.get(task, cost.other)
            judgement = verdict(Interval(change.low, change.high), margin, change.n)
            answer, better = _ANSWERS[judgement], judgement == "gain"
            if better or answer == "worse":
                digits = _digits(digits, *values, scale=100 if unit == "%" else 1)
            before, after = (f"{value:.{digits}{unit}}" for value in values)
            named = f"{where}:{metric}"
            costs.append(CostChange(where, named, before, after, change.n, margin, answer, better))
    return tuple(costs)


def word(benefit: Verdict, costs: Sequence[CostChange]) -> ModelVerdict:
    """Return the verdict on both halves: the weaker one's, so that no gain hides a cost."""
    if benefit == "no change":
        return benefit
    cost = overall([_WORDS[cost.answer] for cost in costs]) if costs else "inconclusive"
    if benefit == "gain" and cost == "inconclusive":
        return "gain, cost unclear"
    return overall([benefit, cost]) if costs else benefit


def benefit_of(task: str, verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on the benefit, over the judged metrics of its task; of none: inconclusive.

    Held-out chats, pairs, ratings and eval prompts are different things, each with a clause of its own
    in the sentence: one that gained is a gain if none lost. Other metrics are views of one thing: the
    weakest verdict counts.
    """
    if task == HELD_OUT and "gain" in verdicts and "tax" not in verdicts:
        return "gain"
    return overall(verdicts) if verdicts else "inconclusive"


def sentence(
    task: str,
    questions: str,
    benefit: Verdict,
    changes: Mapping[str, JudgedChange],
    costs: Sequence[CostChange],
    single: Collection[str] = (),
    *,
    left_out: bool = False,
) -> str:
    """Say in a sentence what a model gained, and what it cost.

    Args:
        task: the task whose change is the benefit; "": none was measured.
        questions: name of its questions.
        benefit: the verdict on them alone.
        changes: the metrics that it is over, by the name for a reader.
        costs: from `costs_of`.
        single: metrics of the task with one item, which has no interval.
        left_out: as for `judge`.
    """
    if benefit == "no change":
        return "As far as was measured, this is still the base model."
    if not task:
        both = "in both " if left_out else ""
        own = f"no held-out rows and no benchmark were measured {both}that could show a benefit"
    elif task == HELD_OUT:
        own = _held_out(changes, single)
    else:
        own = _benefit(questions, benefit, changes)
    text = f"{own}; {_cost(costs)}."
    return text[0].upper() + text[1:]


_OWN: Mapping[str, tuple[str, str]] = {
    "pairs right": ("the better answer of", "held-out pairs"),
    "ratings right": ("the rating of", "held-out answers"),
    "chat loss": ("loss on", "held-out chats"),
    "prompts passed": ("passed of", "eval prompts"),
}
"""The words for a metric of the held-out rows, and for its items, by its name in `tasks/held_out.py`."""


def _held_out(changes: Mapping[str, JudgedChange], single: Collection[str]) -> str:
    """Say what changed on the held-out rows: better first, then worse, equal, and unknown."""
    clauses: dict[str, list[str]] = {}
    if single:
        clauses["inconclusive"] = [f"1 {_OWN[name][1].removesuffix('s')}" for name in single]
    for name, change in changes.items():
        what, items = _OWN[name]
        if change.verdict in ("inconclusive", "no tax"):
            clauses.setdefault(change.verdict, []).append(f"{change.n:,} {items}")
            continue
        before, after, low, high = change.before, change.after, change.low, change.high
        if name == "chat loss":
            d = _digits(2, before, after, low, high)
            moved = f"{before:.{d}f} → {after:.{d}f} nats a token"
            moved += f" (95% interval of the change {low:+.{d}f} to {high:+.{d}f})"
        else:
            d = _digits(0, before, after, low, high, scale=100)
            moved = f"{before:.{d}%} → {after:.{d}%} ({100 * change.difference:+.{d}f} points, "
            moved += f"95% interval {100 * low:+.{d}f} to {100 * high:+.{d}f})"
        clauses.setdefault(change.verdict, []).append(f"{what} {change.n:,} {items} {moved}")
    parts = []
    if "gain" in clauses:
        parts.append(f"better on your held-out rows: {', '.join(clauses['gain'])}")
    if "tax" in clauses:
        parts.append(f"worse on your held-out rows: {', '.join(clauses['tax'])}")
    if "no tax" in clauses:
        parts.append(f"no measurable change on {_and(clauses['no tax'])}")
    if "inconclusive" in clauses:
        verb = "is" if len(clauses["inconclusive"]) == len(single) == 1 else "are"
        parts.append(f"{_and(clauses['inconclusive'])} {verb} too few to tell")
    return "; ".join(parts)


def _benefit(questions: str, benefit: Verdict, changes: Mapping[str, JudgedChange]) -> str:
    n = max((change.n for change in changes.values()), default=1)
    if benefit == "inconclusive":
        items = "1 item" if n == 1 else f"{n:,} items"
        return f"{items} of {questions} {'is' if n == 1 else 'are'} too few to tell"
    if benefit == "no tax":
        return f"no measurable change on {questions}"
    moved = []
    for name, change in changes.items():
        if change.verdict == benefit:
            d = _digits(3, change.before, change.after, change.low, change.high)
            moved.append(
                f"{name} {change.before:.{d}f} → {change.after:.{d}f} ({change.difference:+.{d}f}, 95% "
                f"interval {change.low:+.{d}f} to {change.high:+.{d}f})"
            )
    return f"{'better' if benefit == 'gain' else 'worse'} on {questions}: {', '.join(moved)}"


def _digits(least: int, before: float, after: float, *ends: float, scale: float = 1) -> int:
    """Return the digits after the point with which a change is no equality, and no end of its interval zero."""
    for digits in range(least, least + _MORE_DIGITS):
        differs = round(scale * before, digits) != round(scale * after, digits)
        if differs and all(round(scale * end, digits) for end in ends):
            return digits
    return least + _MORE_DIGITS


def _cost(costs: Sequence[CostChange]) -> str:
    if not costs:
        return "the cost was not measured"
    worse = [f"{c.name} {c.before} → {c.after}" for c in costs if c.answer == "worse"]
    better = [f"{c.name} {c.before} → {c.after}" for c in costs if c.better]
    unclear = [f"{c.where} ({c.n:,})" for c in costs if c.answer == "cannot tell"]
    parts = [f"worse on {_and(worse)}"] if worse else []
    if unclear:
        parts.append(f"too few items to judge the cost on {_and(dict.fromkeys(unclear))}")
    same = dict.fromkeys(c.where for c in costs if c.answer == "none" and not c.better)
    if not parts and same:
        parts.append(f"no measurable cost on {_and(same)}")
    if better:
        parts.append(f"better on {_and(better)}, too")
    return "; ".join(parts)


def _and(names: Sequence[str] | Mapping[str, None]) -> str:
    first = list(names)
    return " and ".join([", ".join(first[:-1]), first[-1]] if len(first) > 1 else first)
