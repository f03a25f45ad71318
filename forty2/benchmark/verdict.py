"""The verdict on a model: its benefit, and its cost.

The benefit is what the compared questions show. The cost is judged on what the model could do before:
the perplexity of neutral text, plain facts answered right, and the other benchmarks of the recipe, each
with a margin that the recipe states before the run (`benchmark.cost`). A cost is

    none         the whole interval of the change lies within the margin
    worse        the whole interval is a loss, and the loss may reach the margin
    cannot tell  anything else: too few items

Run, comparison, report and table take word and sentence from here. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from forty2.benchmark.stats import Interval, Verdict, overall, verdict
from forty2.recipe.schema import Cost

if TYPE_CHECKING:
    from forty2.benchmark.compare import Change, TaskChange

Answer = Literal["none", "worse", "cannot tell"]
_ANSWERS: Mapping[Verdict, Answer] = {
    "gain": "none",
    "no tax": "none",
    "no change": "none",
    "tax": "worse",
    "inconclusive": "cannot tell",
}
_WORDS: Mapping[Answer, Verdict] = {
    "none": "no tax",
    "worse": "tax",
    "cannot tell": "inconclusive",
}


class CostChange(NamedTuple):
    """A change in one thing that the base could do."""

    name: str
    """Name of it for a reader."""
    before: str
    after: str
    n: int
    """Items that it is judged by."""
    margin: float
    """Largest loss that counts as none, in the unit of the score: a share, or nats a token."""
    answer: Answer


def costs_of(
    metrics: Mapping[str, Change], tasks: Mapping[str, TaskChange], benefit: str, cost: Cost
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
    found = []
    for task, judged in tasks.items():
        if task == benefit:
            continue
        for name in judged.judged:
            if task == "behaviour" and not name.endswith("right"):
                continue  # its other metrics are what training is for
            change = metrics[name]
            if task == "perplexity":
                before, after = (f"{math.exp(-x):.1f}" for x in (change.before, change.after))
                where, margin = "neutral text: perplexity", math.log(cost.perplexity)
            elif task == "behaviour":
                before, after = f"{change.before:.0%}", f"{change.after:.0%}"
                where, margin = "plain facts:", cost.facts
            else:
                before, after = f"{change.before:.3f}", f"{change.after:.3f}"
                where, margin = f"{task}: {name}", cost.tasks.get(task, cost.other)
            answer = _ANSWERS[verdict(Interval(change.low, change.high), margin, change.n)]
            found.append(CostChange(where, before, after, change.n, margin, answer))
    return tuple(found)


def word(benefit: Verdict, costs: Sequence[CostChange]) -> Verdict:
    """Return the verdict on both halves: the weaker one's, so that no gain hides a cost."""
    if benefit == "no change":
        return benefit
    return overall([benefit, *(_WORDS[cost.answer] for cost in costs)])


def sentence(
    questions: str, benefit: Verdict, changes: Mapping[str, Change], costs: Sequence[CostChange]
) -> str:
    """Say in a sentence what a model gained, and what it cost.

    Args:
        questions: name of the compared questions.
        benefit: the verdict on them alone.
        changes: the metrics that it is over, by the name for a reader.
        costs: from `costs_of`.
    """
    if benefit == "no change":
        return "As far as was measured, this is still the base model."
    text = f"{_benefit(questions, benefit, changes)}; {_cost(costs)}."
    return text[0].upper() + text[1:]


def _benefit(questions: str, benefit: Verdict, changes: Mapping[str, Change]) -> str:
    n = max(change.n for change in changes.values())
    if benefit == "inconclusive":
        return f"{n:,} items of {questions} are too few to tell"
    if benefit == "no tax":
        return f"no measurable change on {questions}"
    moved = ", ".join(
        f"{name} {one.before:.3f} → {one.after:.3f} ({one.difference:+.3f}, 95% interval "
        f"{one.low:+.3f} to {one.high:+.3f})"
        for name, one in changes.items()
        if one.verdict == benefit
    )
    return f"{'better' if benefit == 'gain' else 'worse'} on {questions}: {moved}"


def _cost(costs: Sequence[CostChange]) -> str:
    if not costs:
        return "the cost was not measured"
    worse = [f"{c.name} {c.before} → {c.after}" for c in costs if c.answer == "worse"]
    unclear = [f"{c.name.partition(':')[0]} ({c.n:,})" for c in costs if c.answer == "cannot tell"]
    parts = [f"worse on {_and(worse)}"] if worse else []
    if unclear:
        parts.append(f"too few items to judge the cost on {_and(dict.fromkeys(unclear))}")
    if not parts:
        parts = [
            f"no measurable cost on {_and(dict.fromkeys(c.name.partition(':')[0] for c in costs))}"
        ]
    return "; ".join(parts)


def _and(names: Sequence[str] | Mapping[str, None]) -> str:
    first = list(names)
    return " and ".join([", ".join(first[:-1]), first[-1]] if len(first) > 1 else first)
