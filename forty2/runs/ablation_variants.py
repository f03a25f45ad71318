"""The runs of an ablation: a recipe's phases one after the other, and its preference phase alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from forty2.recipe.schema import Recipe
from forty2.text.row_kinds import CONVERSATIONS
from forty2.training.objectives.phase import Phase


class Variant(NamedTuple):
    """A run that every seed has."""

    folder: str
    phases: dict[str, Phase]
    stages: list[str]
    """Names of the model after each of the phases."""
    longer_than: str | None = None
    """Folder of a variant whose first phase begins this one's, so that its run can go on; None: none."""


def variants_of(recipe: Recipe) -> list[Variant]:
    """List the full run, and a run of the first preference phase alone if others precede it."""
    names = list(recipe.phases)
    variants = [
        Variant("full", recipe.phases, ["+".join(names[: n + 1]) for n in range(len(names))]),
    ]
    at = first_preference(recipe.phases)
    if at:
        name = names[at]
        variants.append(
            Variant(f"{name}-only", {name: without_others(recipe, name)}, [f"{name} only"]),
        )
    return variants


def without_others(recipe: Recipe, name: str, kept: Collection[str] = ()) -> Phase:
    """Return a phase that replays no rows of the phases before it, which are left out.

    Args:
        kept: those before it that stay.
    """
    phase = recipe.phases[name]
    if not phase.replay:
        return phase
    absent = recipe.phases.keys() - set(kept)
    others = [entry for entry in phase.replay if entry.source not in absent]
    return dataclasses.replace(phase, replay=others or None)


def comparisons_of(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """List the stages to compare, as pairs of names (after, before).

    Each stage with the base, each with the one before it in the full run, and the preference phase
    after others with itself alone: the difference is what the phases before it gained.
    """
    full = variants[0].stages
    pairs = [(name, "base") for variant in variants for name in variant.stages]
    pairs += list(zip(full[1:], full[:-1], strict=True))
    if len(variants) > 1:
        at = first_preference(variants[0].phases)
        assert at is not None
        pairs.append((full[at], variants[1].stages[0]))
    return pairs


def first_preference(phases: Mapping[str, Phase]) -> int | None:
    """Return the place of the first preference phase, with a reference or without; None: there is none."""
    kinds = enumerate(phases.values())
    return next((n for n, phase in kinds if phase.row_kind is not CONVERSATIONS), None)
