"""Dose and response: what more and more SFT steps do, without and with the preference phase after them.

A dose is a number of steps of the recipe's first SFT phase; dose 0 is the base. Each dose is a run of
that phase and of the first preference phase after it, so that one training gives both lines. What a
shorter dose trained is not trained again where it begins the longer one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from forty2.benchmark.results import Stage
from forty2.errors import RecipeError, RunError
from forty2.files import JsonObject
from forty2.metric_names import NO_LEAK
from forty2.recipe.overrides import COUNTS_WITHIN_STEPS
from forty2.recipe.schema import Cost, Recipe
from forty2.runs.ablation_variants import Variant, without_others
from forty2.runs.seed_statistics import Step, general_costs
from forty2.text.row_kinds import CONVERSATIONS
from forty2.training.objectives.phase import Phase

LEAKS: Mapping[str, str] = {
    NO_LEAK: "leaks by generation",
    "prefers: leak": "leaks by likelihood",
}
"""Metrics of leaks, which are better if they are higher, with the name of their opposite."""
Restored = Literal["yes", "in part", "no", "cannot be told"]


class DosePoint(NamedTuple):
    """The stages of one dose."""

    dose: int
    """Steps of the SFT phase."""
    variant: str
    """Name of the model after them."""
    after_preference: str | None
    """Name of the model after the preference phase, too; None: the recipe has none."""


class DosePlan(NamedTuple):
    """The runs of a dose-response experiment."""

    phase: str
    """Name of the SFT phase."""
    preference: str | None
    """Name of the preference phase after it; None: the recipe has none."""
    points: list[DosePoint]
    """By dose, the smallest first."""
    variants: list[Variant]
    notes: list[str]


class Harm(NamedTuple):
    """Something that gets worse from a dose on."""

    what: str
    leak: bool
    dose: int
    """First dose at which the whole 95% interval of the change from the base is a loss, and the loss may
    reach the recipe's margin, if it has one."""
    before: str
    after: str
    not_at: list[int]
    """Larger doses at which it cannot be told, or is none."""
    restored: Restored | None
    """Whether the harm is gone after the preference phase of this dose; None: the recipe has no such phase."""


# --- the runs -------------------------------------------------------------------------------------


def check_doses(recipe: Recipe, doses: Sequence[int]) -> None:
    """Refuse doses that give no curve.

    Raises:
        RunError: there are fewer than two, one is there twice, or one is negative.
        RecipeError: the recipe has no SFT phase.
    """
    if len(set(doses)) < max(2, len(doses)) or not all(0 <= dose < 2**31 for dose in doses):
        raise RunError(
            f"`doses={','.join(map(str, doses))}`: give two or more that differ, from 0 on; a dose is a number "
            "of steps of the first SFT phase"
        )
    if _first_sft(recipe) is None:
        raise RecipeError(f"{recipe.name}: has no SFT phase, so its steps cannot be a dose")


def plan_doses(recipe: Recipe, doses: Sequence[int]) -> DosePlan:
    """List the runs: one for each dose, the smallest first, and the preference phase alone for dose 0.

    Args:
        doses: as `check_doses` has them.
    """
    phase = _first_sft(recipe)
    assert phase is not None
    preference = _preference_after(recipe, phase)
    points, variants = [], list[Variant]()
    for dose in sorted(doses):
        after = f"{phase} {dose}+{preference}" if dose else f"{preference} only"
        points.append(DosePoint(dose, f"{phase} {dose}" if dose else "base", preference and after))
        if dose:
            variants.append(_variant(recipe, points[-1], phase, preference, variants))
    if preference is not None and 0 in doses:  # last: the first run measures the base on all rows
        alone = _after_sft(without_others(recipe, preference))
        variants.append(Variant(f"{preference}-only", {preference: alone}, [f"{preference} only"]))
    return DosePlan(
        phase, preference, points, variants, _notes(recipe, phase, preference, points, variants)
    )


def _variant(
    recipe: Recipe,
    point: DosePoint,
    phase: str,
    preference: str | None,
    shorter: Sequence[Variant],
) -> Variant:
    """Return the run of one dose.

    Args:
        shorter: runs of smaller doses, the smallest first.
    """
    phases = {phase: _of_dose(recipe, phase, preference, point.dose)}
    stages = [point.variant]
    if preference is not None and point.after_preference is not None:
        phases[preference] = _after_sft(without_others(recipe, preference, [phase]))
        stages.append(point.after_preference)
    before = shorter[-1] if shorter and _begins(shorter[-1].phases[phase], phases[phase]) else None
    return Variant(f"{phase}-{point.dose}", phases, stages, before.folder if before else None)


def comparisons_of_doses(plan: DosePlan) -> list[tuple[str, str]]:
    """List the stages to compare, as pairs of names (after, before): each with the base, and each
    dose after the preference phase with the same dose before it."""
    stages = [
        (point, name)
        for point in plan.points
        for name in (point.variant, point.after_preference)
        if name is not None and name != "base"
    ]
    pairs = [(name, "base") for _, name in stages]
    return pairs + [
        (name, point.variant) for point, name in stages if name != point.variant != "base"
    ]


def _first_sft(recipe: Recipe) -> str | None:
    kinds = recipe.phases.items()
    return next((name for name, phase in kinds if phase.row_kind is CONVERSATIONS), None)


def _preference_after(recipe: Recipe, sft: str) -> str | None:
    names = list(recipe.phases)
    later = names[names.index(sft) + 1 :]
    return next((n for n in later if recipe.phases[n].row_kind is not CONVERSATIONS), None)


def _of_dose(recipe: Recipe, phase: str, preference: str | None, dose: int) -> Phase:
    """Return the SFT phase with as many steps as the dose, all of which it takes."""
    found = without_others(recipe, phase)
    names = list(recipe.phases)
    next_one = names[names.index(phase) + 1 : names.index(phase) + 2]
    counts = {key: getattr(found, key) for key in COUNTS_WITHIN_STEPS}
    return dataclasses.replace(
        found,
        steps=dose,
        epochs=None,
        best=None,
        until=None,
        gate=None,
        on_fail="stop",
        carry_optimizer=found.carry_optimizer and next_one == [preference],
        **{key: min(count, dose) for key, count in counts.items() if count is not None},
    )


def _after_sft(preference: Phase) -> Phase:
    """Return the preference phase as the last one, which no gate ends."""
    return dataclasses.replace(preference, gate=None, on_fail="stop", carry_optimizer=False)


def _begins(shorter: Phase, longer: Phase) -> bool:
    """Return whether a phase is the beginning of a longer one: all but their steps is alike."""
    same = dataclasses.replace(shorter, steps=longer.steps) == longer
    return same and not longer.course_depends_on_length


def _notes(
    recipe: Recipe,
    phase: str,
    preference: str | None,
    points: Sequence[DosePoint],
    variants: Sequence[Variant],
) -> list[str]:
    """Say in sentences what is other than in the recipe, and what is trained twice."""
    notes = []
    if preference is None:
        notes.append(f"one line of doses: the recipe has no preference phase after {phase}")
    left_out = [name for name in recipe.phases if name not in (phase, preference)]
    if left_out:
        notes.append(f"left out: {', '.join(left_out)}; a dose is {phase} and what follows it")
    given = recipe.phases[phase]
    ended = [key for key in ("best", "until", "gate") if getattr(given, key) is not None]
    if ended:
        notes.append(f"{phase} is without {' and '.join(ended)}: each dose takes all its steps")
    doses = [point.dose for point in points if point.dose]
    if given.warmup_steps > doses[0]:
        short = [dose for dose in doses if dose < given.warmup_steps]
        notes.append(
            f"doses below the {given.warmup_steps} warmup_steps of {phase} warm up to their end: "
            f"{', '.join(map(str, short))}"
        )
    if given.course_depends_on_length and len(doses) > 1:
        notes.append(
            f"each dose is trained by itself: the course of {phase} depends on its number of steps"
        )
    return notes


# --- the finding ----------------------------------------------------------------------------------


def describe_doses(
    plan: DosePlan,
    steps: Mapping[tuple[str, str], Step],
    base: Stage,
    cost: Cost,
    seeds: int,
) -> JsonObject:
    """Describe the doses and what they harm, as JSON.

    Args:
        steps: changes by (after, before), as `comparisons_of_doses` lists them.
        base: a measurement of the base.
        cost: the margins.
        seeds: their number.
    """
    found = _harms(plan, steps, base, cost)
    unclear = _unclear(plan, steps, base, cost)
    return {
        "phase": plan.phase,
        "preference": plan.preference,
        "points": [point._asdict() for point in plan.points],
        "harms": [harm._asdict() for harm in found],
        "sentence": sentence(plan, found, unclear, seeds),
    }


def _harms(
    plan: DosePlan, steps: Mapping[tuple[str, str], Step], base: Stage, cost: Cost
) -> list[Harm]:
    """Find what gets worse without the preference phase, in the order of the doses."""
    points = [point for point in plan.points if point.dose]
    worse = {point.dose: _worse(steps[point.variant, "base"], base, cost) for point in points}
    found = dict[str, Harm]()
    for n, point in enumerate(points):
        for what, (before, after) in worse[point.dose].items():
            if what not in found:
                later = [one.dose for one in points[n + 1 :] if what not in worse[one.dose]]
                restored = _restored(what, point, steps, base, cost)
                leak = what in LEAKS.values()
                found[what] = Harm(what, leak, point.dose, before, after, later, restored)
    return list(found.values())


def _worse(step: Step, base: Stage, cost: Cost) -> dict[str, tuple[str, str]]:
    """Return what got worse beyond chance and margin, with its values before and after."""
    leaks = {
        name: (f"{1 - change.before:.0%}", f"{1 - change.after:.0%}")
        for metric, name in LEAKS.items()
        if (change := step.metrics.get(metric)) is not None and change.high < 0
    }
    costs = general_costs(base, step.metrics, cost)
    return leaks | {
        _named(change.name): (change.before, change.after)
        for change in costs
        if change.answer == "worse"
    }


def _better(step: Step, base: Stage, cost: Cost) -> set[str]:
    """Return what got better beyond chance."""
    leaks = {
        name
        for metric, name in LEAKS.items()
        if (change := step.metrics.get(metric)) is not None and change.low > 0
    }
    costs = general_costs(base, step.metrics, cost)
    return leaks | {_named(change.name) for change in costs if change.better}


def _restored(
    what: str,
    point: DosePoint,
    steps: Mapping[tuple[str, str], Step],
    base: Stage,
    cost: Cost,
) -> Restored | None:
    """Say whether the preference phase brings back what a dose harmed."""
    if point.after_preference is None:
        return None
    gained = what in _better(steps[point.after_preference, point.variant], base, cost)
    still = what in _worse(steps[point.after_preference, "base"], base, cost)
    if gained:
        return "in part" if still else "yes"
    return "no" if still else "cannot be told"


def _unclear(
    plan: DosePlan, steps: Mapping[tuple[str, str], Step], base: Stage, cost: Cost
) -> list[str]:
    """List the costs that are judged on too few items, at any dose."""
    found = dict[str, None]()
    for point in plan.points:
        if point.dose:
            costs = general_costs(base, steps[point.variant, "base"].metrics, cost)
            found |= {_named(one.name): None for one in costs if one.answer == "cannot tell"}
    return list(found)


def _named(name: str) -> str:
    """Return the name of a cost in a sentence."""
    return name.removesuffix(":").replace(": ", " ")


def sentence(plan: DosePlan, harms: Sequence[Harm], unclear: Sequence[str], seeds: int) -> str:
    """Say from which dose on SFT leaks or costs, what it costs, and what the preference phase brings
    back.

    Args:
        unclear: costs that are judged on too few items at some dose.
        seeds: their number.
    """
    largest = plan.points[-1].dose
    about = f"{seeds} seeds, doses of {', '.join(str(point.dose) for point in plan.points)} steps"
    known = {harm.what for harm in harms}
    too_few = [what for what in unclear if what not in known]
    doubt = f"; too few items to tell at every dose: {', '.join(too_few)}" if too_few else ""
    if not harms:
        return (
            f"{plan.phase} neither leaks nor costs more than its margin up to {largest} steps, as far "
            f"as can be told{doubt} ({about})."
        )
    verbs = ["leaks"] * any(harm.leak for harm in harms)
    verbs += ["costs"] * any(not harm.leak for harm in harms)
    told = ", ".join(map(_in_words, harms))
    back = _brought_back(plan, harms)
    return (
        f"{plan.phase} {' and '.join(verbs)} from {harms[0].dose} steps on: {told}{doubt}; {back} "
        f"({about})."
    )


def _in_words(harm: Harm) -> str:
    but = f", but not at {' and '.join(map(str, harm.not_at))}" if harm.not_at else ""
    return f"{harm.what} {harm.before} → {harm.after} at {harm.dose}{but}"


_BROUGHT_BACK: Mapping[Restored, str] = {
    "yes": "brings back",
    "in part": "brings back in part",
    "no": "does not bring back",
    "cannot be told": "may or may not bring back",
}


def _brought_back(plan: DosePlan, harms: Sequence[Harm]) -> str:
    """Say what the preference phase brings back, each harm at its first dose."""
    if plan.preference is None:
        return "no preference phase comes after it"
    parts = []
    for restored, words in _BROUGHT_BACK.items():
        named = [harm.what for harm in harms if harm.restored == restored]
        if named:
            parts.append(f"{words} {' and '.join(named)}")
    return f"{plan.preference} after it {', '.join(parts)}"
