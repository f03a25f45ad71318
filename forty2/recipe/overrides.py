"""Overrides of a recipe from the command line: `--set phases.dpo.lr=2e-6`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from forty2.errors import RecipeError
from forty2.recipe.document import COMMAND_LINE, Document, Problem, parse_value
from forty2.recipe.schema import Recipe, keys_of

_MOST_KEYS = 10
"""Most keys in the path of an override; no field of a recipe is as deep."""
COUNTS_WITHIN_STEPS = ("eval_every_steps", "save_every_steps", "warmup_steps")
"""Keys of a phase that count steps and must not exceed its `steps`."""
LENGTHS = ("steps", "epochs")
"""Keys of a phase that give its length; a phase has one of them."""


class Applied(NamedTuple):
    """The outcome of applying overrides to a recipe."""

    problems: list[Problem]
    """Overrides that cannot be applied."""
    notes: list[str]
    """Sentences about values that were changed along with an override."""


def apply_overrides(document: Document, overrides: Sequence[str]) -> Applied:
    """Apply overrides, each "dotted.key=value", to a document in place.

    An override that lowers the `steps` of a phase also lowers the phase's other step counts in the
    file that would no longer be reached. An override of `steps` replaces `epochs` in the file, and
    the other way round.
    """
    steps_before = {name: phase.get("steps") for name, phase in _phases(document)}
    names = [str(at[1]) for at in document.lines if len(at) == 2 and at[0] == "phases"]
    problems = []
    for override in overrides:
        try:
            _check_place(override, names)
            _apply(document, override)
        except RecipeError as error:
            problems.append(Problem(COMMAND_LINE, f"`overrides` {override[:200]}: {error}"))
    problems += _unknown_phases(document, names)
    return Applied(problems, [*_one_length(document), *_shorten(document, steps_before)])


def _check_place(override: str, phases: Sequence[str]) -> None:
    """Refuse a key of a phase without `phases.` before it."""
    path, _, _ = override.partition("=")
    first, _, _ = path.strip().partition(".")
    if first in phases and first not in keys_of(Recipe).values():
        raise RecipeError(f"unknown key; did you mean phases.{path.strip()}?")


def _apply(document: Document, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > _MOST_KEYS:
        raise RecipeError("write it as key.subkey=value")
    value = parse_value(text)
    holder = document.tree
    for key in keys[:-1]:
        if holder.get(key) is None:
            holder[key] = {}
        if not isinstance(holder[key], dict):
            raise RecipeError(f"{key} is a value, it has no keys below it")
        holder = holder[key]
    holder[keys[-1]] = value
    for at in [at for at in document.lines if at[: len(keys)] == tuple(keys)]:
        del document.lines[at]  # what the override replaces
    for n in range(1, len(keys)):
        document.lines.setdefault(tuple(keys[:n]), COMMAND_LINE)
    document.lines[tuple(keys)] = COMMAND_LINE


def _unknown_phases(document: Document, known: Sequence[str]) -> Iterator[Problem]:
    """Drop and report phases that overrides name, but that neither they nor the file define."""
    phases = document.tree.get("phases")
    replaced = document.line_of(("phases",)) == COMMAND_LINE
    if not known or replaced or not isinstance(phases, dict):
        return
    for name in [name for name in phases if name not in known]:
        if not isinstance(phases[name], dict) or "objective" not in phases[name]:
            del phases[name]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "a new one needs an objective"
            message = f"no such phase; the recipe has {', '.join(known)}; {hint}"
            yield document.problem(("phases", name), message)


def _one_length(document: Document) -> Iterator[str]:
    """Drop the file's `epochs` where an override gives `steps`, and the other way round, in place."""
    for name, phase in _phases(document):
        lines = {key: document.line_of(("phases", name, key)) for key in LENGTHS}
        for given, other in (LENGTHS, LENGTHS[::-1]):
            overridden = lines[given] == COMMAND_LINE and phase.get(given) is not None
            if overridden and lines[other] != COMMAND_LINE and phase.get(other) is not None:
                yield (
                    f"phases.{name}: {given} {phase[given]} takes the place of {other} "
                    f"{phase.pop(other)}"
                )


def _shorten(document: Document, steps_before: Mapping[str, object]) -> Iterator[str]:
    """Lower step counts of the file to the `steps` that an override has lowered, in place."""
    for name, phase in _phases(document):
        at = ("phases", name)
        steps, before = phase.get("steps"), steps_before.get(name)
        overridden = document.line_of((*at, "steps")) == COMMAND_LINE
        if not overridden or not _is_count(steps) or (_is_count(before) and before <= steps):
            continue
        for key in COUNTS_WITHIN_STEPS:
            count = phase.get(key)
            in_file = document.line_of((*at, key)) != COMMAND_LINE
            if in_file and _is_count(count) and count > steps:
                phase[key] = steps
                yield (
                    f"phases.{name}: {key} is {steps}, not {count}: the phase now ends at step {steps}"
                )


def _phases(document: Document) -> Iterator[tuple[str, dict[str, object]]]:
    phases = document.tree.get("phases")
    for name, section in phases.items() if isinstance(phases, dict) else ():
        if isinstance(section, dict):
            yield name, section


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def apply_flags(document: Document, *, lr: float | None, kl_weight: float | None) -> list[Problem]:
    """Apply the flags `--lr` and `--lambda` to a recipe of ours, in place; return what is wrong."""
    phases = document.tree.get("phases")
    named = (
        {n: p for n, p in phases.items() if isinstance(p, dict)} if isinstance(phases, dict) else {}
    )
    problems = []
    if lr is not None:
        if len(named) == 1:
            for name, phase in named.items():
                phase["lr"] = lr
                document.lines["phases", name, "lr"] = COMMAND_LINE
        else:
            keys = ", ".join(f"phases.{name}.lr" for name in named)
            problems.append(
                Problem(COMMAND_LINE, f"`lr`: several phases have one; set one of {keys}")
            )
    if kl_weight is not None:
        terms = {name: p["kl"] for name, p in named.items() if isinstance(p.get("kl"), dict)}
        for name, term in terms.items():
            term["weight"] = kl_weight
            document.lines["phases", name, "kl", "weight"] = COMMAND_LINE
        if not terms:
            problems.append(
                Problem(
                    COMMAND_LINE,
                    "`kl_weight`: no phase has a term λ·KL; give a phase of dpo or kto kl: {weight: "
                    f"{kl_weight:g}}}",
                )
            )
    return problems
