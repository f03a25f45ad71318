"""The configurations of a sweep: recipes that differ in the keys of its grid, checked up front."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from forty2.errors import RecipeError
from forty2.recipe.differences import on_one_line
from forty2.recipe.document import Problem, listed
from forty2.recipe.grid import NOT_SWEPT, Grid, Parameter
from forty2.recipe.places import changed
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.schema import Benchmark, Recipe

MOST = 10_000
"""Most configurations of one sweep."""
_MOST_TRIED = 64
"""Most combinations that are checked before a TPE search."""
_DIGITS = 6
"""Significant digits of a value that random search draws."""
_ATTEMPTS = 1000
"""Draws that may repeat an earlier one before random search ends."""

Settings = Mapping[str, object]
"""Values by the recipe's key."""


class Configuration(NamedTuple):
    """One combination of values, and its recipe."""

    name: str
    """Name of its folder: c001, c002, …"""
    settings: Settings
    recipe: Recipe


@dataclass(frozen=True)
class RecipeSource:
    """A recipe as `load_recipe` takes it, to which a configuration's settings are added."""

    recipe: str | Path | Mapping[str, object]
    overrides: Sequence[str] = ()

    def load(self, settings: Settings | None = None) -> Recipe:
        """Load the recipe with these settings, as a sweep runs it."""
        added = [f"{key}={on_one_line(value)}" for key, value in (settings or {}).items()]
        return as_swept(load_recipe(self.recipe, [*self.overrides, *added]))


def as_swept(recipe: Recipe) -> Recipe:
    """Return the recipe without fusing, and measured only at its base and its end."""
    benchmark = recipe.benchmark or Benchmark(tasks=[])
    return changed(recipe, fuse=None, benchmark=dataclasses.replace(benchmark, each_phase=False))


def configuration_name(number: int) -> str:
    """Return the name of the configuration of this number, from 1."""
    return f"c{number:03d}"


def configurations(grid: Grid, source: RecipeSource) -> list[Configuration]:
    """List the configurations of a grid or of random search.

    Raises:
        RecipeError: the recipe refuses one; every problem once, one a line, with its place.
    """
    recipe = source.load()
    settings = _combinations(grid) if grid.method == "grid" else _drawn(grid, recipe.seed)
    return _checked(grid, source, list(settings))


def check_ranges(grid: Grid, source: RecipeSource) -> list[Configuration]:
    """Check what a TPE search may propose; return what was tried.

    Tried are all combinations of values and of the ends of ranges, or each value by itself where there
    are too many combinations.

    Raises:
        RecipeError: the recipe refuses one; every problem once, one a line, with its place.
    """
    keys = [parameter.key for parameter in grid.parameters]
    choices = [parameter.values or _ends(parameter) for parameter in grid.parameters]
    settings: list[Settings]
    if math.prod(map(len, choices)) <= _MOST_TRIED:
        settings = [dict(zip(keys, one, strict=True)) for one in itertools.product(*choices)]
    else:
        lows = {key: values[0] for key, values in zip(keys, choices, strict=True)}
        settings = [{key: values[-1] for key, values in zip(keys, choices, strict=True)}]
        for key, values in zip(keys, choices, strict=True):
            settings += [{**lows, key: value} for value in values]
    return _checked(grid, source, settings)


def configure(grid: Grid, source: RecipeSource, number: int, settings: Settings) -> Configuration:
    """Make one configuration.

    Raises:
        RecipeError: the recipe refuses it.
    """
    (configuration,) = _checked(grid, source, [settings])
    return configuration._replace(name=configuration_name(number))


def _checked(grid: Grid, source: RecipeSource, every: Sequence[Settings]) -> list[Configuration]:
    configurations: list[Configuration] = []
    problems: dict[str, Problem] = {}
    lines: set[str] = set()
    notes: set[str] = set()
    recipes: dict[str, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each configuration says the same
        base = source.load()
    for number, settings in enumerate(every, 1):
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                recipe = source.load(settings)
        except RecipeError as error:
            for line in str(error).splitlines():
                if line not in lines:
                    problem = in_grid(grid, settings, line)
                    problems.setdefault(problem.text, problem)
            lines |= {*str(error).splitlines()}
            continue
        notes |= {str(warning.message) for warning in said}
        if searched := _not_swept(recipe, base):
            text = f"{grid.place}: with {in_words(settings)}: {searched}: {NOT_SWEPT[searched]}"
            problems.setdefault(searched, Problem(0, text))
            continue
        same = recipes.setdefault(to_yaml(recipe), number)
        if same != number and grid.method == "grid":
            same_as = in_words(every[same - 1])
            text = f"{grid.place}: {in_words(settings)}: the same recipe as {same_as}; remove one of the two"
            problems.setdefault(text, Problem(0, text))
        configurations.append(Configuration(configuration_name(number), settings, recipe))
    if problems:
        raise RecipeError(listed(problems.values()))
    for note in sorted(notes):
        warnings.warn(note, stacklevel=2)
    return configurations


def _not_swept(recipe: Recipe, base: Recipe) -> str | None:
    """Return a key that a sweep leaves alone and that differs from the base's; None: there is none.

    In another schema such a key has another name, e.g. experiment.seed.
    """
    differ = (key for key in NOT_SWEPT if getattr(recipe, key) != getattr(base, key))
    return next(differ, None)


_OVERRIDE = re.compile(r"^`overrides`:? (?P<key>[^=:\s]+)(?:=[^:]*)?: (?P<message>.*)$")


def in_grid(grid: Grid, settings: Settings, line: str) -> Problem:
    """Say of a problem where in the grid it is, or else which settings have it."""
    override = _OVERRIDE.match(line)
    number, where = grid.where(override["key"]) if override is not None else (0, "")
    if override is None or not number:
        return Problem(0, f"{grid.place}: with {in_words(settings)}: {line}")
    return Problem(number, f"{where}: {override['key']}: {override['message']}")


def in_words(settings: Settings) -> str:
    """Write settings as overrides are written, on one line."""
    return ", ".join(f"{key}={on_one_line(value)}" for key, value in settings.items())


def _combinations(grid: Grid) -> Iterator[Settings]:
    count = min(grid.size or 0, grid.run_cap or MOST + 1)
    if count > MOST:
        raise RecipeError(
            f"{grid.place}: {grid.size:,} combinations are more than {MOST:,}; give run_cap, or "
            "method: random"
        )
    names = [parameter.key for parameter in grid.parameters]
    combined = itertools.product(*(parameter.values for parameter in grid.parameters))
    for values in itertools.islice(combined, count):
        yield dict(zip(names, values, strict=True))


def _drawn(grid: Grid, seed: int) -> Iterator[Settings]:
    """Draw settings without repetition; fewer than `run_cap` if there are no more."""
    rng = random.Random(seed)
    drawn: set[str] = set()
    most = min(grid.run_cap or 0, MOST, grid.size or MOST)
    for _ in range(_ATTEMPTS * most):
        if len(drawn) == most:
            return
        settings = {parameter.key: _draw(parameter, rng) for parameter in grid.parameters}
        words = in_words(settings)
        if words not in drawn:
            drawn.add(words)
            yield settings


def _draw(parameter: Parameter, rng: random.Random) -> object:
    if parameter.values:
        return rng.choices(parameter.values, parameter.weights or None)[0]
    if parameter.log:
        value = math.exp(rng.uniform(math.log(parameter.low), math.log(parameter.high)))
    elif parameter.step is not None:
        value = parameter.low + parameter.step * rng.randint(
            0, math.floor((parameter.high - parameter.low) / parameter.step + 1e-9)
        )
    else:
        value = rng.uniform(parameter.low, parameter.high)
    value = float(f"{value:.{_DIGITS}g}")
    value = min(max(value, parameter.low), parameter.high)
    return int(value) if parameter.whole else value


def _ends(parameter: Parameter) -> tuple[object, object]:
    """Return both ends of a range."""
    ends = (parameter.low, parameter.high)
    return (int(ends[0]), int(ends[1])) if parameter.whole else ends
