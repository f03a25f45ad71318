"""The recipe of a recovery's arms: the user's, with what it leaves to them filled in."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe, recipe_text
from forty2.recipe.schema import Benchmark, Recipe
from forty2.training.objectives.sft import SftPhase


class FailingModel(NamedTuple):
    """The model that the failures are of."""

    name: str
    adapter: str | None


def recipe_of_arms(
    source: str | Path | Mapping[str, object],
    overrides: Sequence[str],
    model: FailingModel,
    data: str,
) -> Recipe:
    """Read the recipe, with what it leaves to the arms filled in.

    Args:
        data: data of its phase, until each arm has its own.

    Raises:
        RecipeError: it has another phase than one of SFT, replays data, has no number of epochs, or
            trains another model than that whose failures were found.
    """
    tree = _tree(source)
    phases = tree.get("phases")
    if not isinstance(phases, Mapping) or len(phases) != 1:
        raise RecipeError(
            f"{_name(source)}: phases: should have one phase, of SFT, to train each arm"
        )
    (name,) = phases
    filled = [f"phases.{name}.data={json.dumps(data)}"]
    given = {"model": model.name, "init_from": model.adapter}
    filled += [
        f"{key}={json.dumps(value)}"
        for key, value in given.items()
        if value is not None and tree.get(key) is None
    ]
    recipe = load_recipe(source, [*filled, *overrides])
    (phase,) = recipe.phases.values()
    if not isinstance(phase, SftPhase):
        raise RecipeError(f"{_name(source)}: phases.{name}: should have objective: sft")
    if phase.epochs is None:
        raise RecipeError(
            f"{_name(source)}: phases.{name}: give epochs in place of steps, so that both arms learn "
            "from as many tokens"
        )
    if phase.replay:
        raise RecipeError(
            f"{_name(source)}: phases.{name}.replay: remove it; a tenth of the tokens of each arm is "
            "original data already (`original`)"
        )
    _check_model(_name(source), recipe, model)
    benchmark = dataclasses.replace(recipe.benchmark or Benchmark(), held_out=True)
    return dataclasses.replace(recipe, fuse=None, benchmark=benchmark)


def from_here(path: Path) -> str:
    """Return a path relative to the working directory, if it is below it: the folder can then be moved."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith(os.pardir) else inside


def _tree(source: str | Path | Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(source, Mapping):
        return source
    tree = yaml.safe_load(recipe_text(str(source)))
    return tree if isinstance(tree, Mapping) else {}


def _name(source: str | Path | Mapping[str, object]) -> str:
    return "the recipe" if isinstance(source, Mapping) else str(source)


def _check_model(source: str, recipe: Recipe, model: FailingModel) -> None:
    """Refuse a recipe for another model than the one that fails."""
    from forty2.model.adapter import adapter_dir
    from forty2.model.loading import model_sha256, resolve_model

    ours, theirs = resolve_model(recipe.model), resolve_model(model.name)
    if ours.resolve() != theirs.resolve() and model_sha256(ours) != model_sha256(theirs):
        raise RecipeError(
            f"{source}: model: {recipe.model}, but the failures are those of {model.name}; leave model "
            "out"
        )
    begins, has = (
        None if adapter is None else adapter_dir(adapter).resolve()
        for adapter in (recipe.init_from, model.adapter)
    )
    if begins != has:
        raise RecipeError(
            f"{source}: init_from: {recipe.init_from}, but the failures are those of "
            f"{model.adapter or 'the model without an adapter'}; leave init_from out"
        )


def recipe_notes(source: str | Path | Mapping[str, object], recipe: Recipe) -> Iterator[str]:
    """Say what of a recipe the arms do without."""
    tree = _tree(source)
    (name,) = recipe.phases
    phases = tree["phases"]
    assert isinstance(phases, Mapping)
    if isinstance(phases[name], Mapping) and phases[name].get("data") is not None:
        yield (
            f"phases.{name}.data: {phases[name]['data']}: not read; each arm is trained on its own rows"
        )
    if tree.get("fuse") is not None:
        yield "fuse: nothing is fused"
