"""Grids: the recipe keys that a sweep tries, in a YAML file as W&B sweeps have it.

    method: grid                                  # or random, tpe (W&B: bayes)
    metric: {name: mc2, goal: maximize}
    parameters:
      phases.dpo.beta: {values: [0.05, 0.1, 0.3]}
      phases.dpo.lr: {min: 1e-6, max: 1e-4, distribution: log_uniform_values}
    run_cap: 20

Keys are those that `--set` takes. Plain lists, `phases.dpo.beta: [0.05, 0.1]`, are read as well,
below `parameters` or at the top of the file. Every problem is reported at once, with its line.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forty2.errors import RecipeError
from forty2.files import JsonObject, is_number
from forty2.recipe.document import Document, Location, Problem, dotted, listed, parse_document
from forty2.recipe.reading import (
    GRID,
    packaged_grid_text,
    packaged_recipes,
    read_text,
    recipe_file,
)

Method = Literal["grid", "random", "tpe"]
Goal = Literal["maximize", "minimize"]

_METHODS: Mapping[object, Method] = {
    "grid": "grid",
    "random": "random",
    "tpe": "tpe",
    "bayes": "tpe",
}
_DISTRIBUTIONS = {
    "uniform": "min max",
    "int_uniform": "min max",
    "q_uniform": "min max q",
    "log_uniform": "min max",
    "log_uniform_values": "min max",
}
"""Distributions over a range, by W&B's name, with the keys that each takes."""
_FORMS = ("values", "value", "min", "max", "q", "probabilities", "distribution")
"""Keys of a parameter."""
_NOT_OFFERED = (
    *("inv_log_uniform", "inv_log_uniform_values", "q_log_uniform", "q_log_uniform_values"),
    *("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"),
)
_LARGEST_EXPONENT = 700
"""Largest exponent of e in a range; beyond it e^x is no finite number, or 0."""
_OWN_KEYS = ("method", "metric", "parameters", "run_cap", "name", "description")
_NOT_USED = {
    "program": "a sweep runs the recipe that the command names; remove it",
    "command": "a sweep runs the recipe that the command names; remove it",
    "early_terminate": "not used; remove it, and give `early_stop=True` for the median rule",
    "project": "not used: nothing is uploaded; remove it",
    "entity": "not used: nothing is uploaded; remove it",
    "controller": "not used: each process takes the next configuration by itself; remove it",
    "job": "not used: a sweep runs on this machine; remove it",
    "image_uri": "not used: a sweep runs on this machine; remove it",
    "resource": "not used: a sweep runs on this machine; remove it",
    "_": "lists of settings that go together are not offered; write a whole section as a value, "
    "e.g. phases.dpo: [{…}, {…}]",
}
"""Keys of other packages' sweeps that mean nothing here, each with what to do."""
NOT_SWEPT = {
    "seed": "seeds are replicates, never searched; remove it, and give `seeds`",
    "version": "is the same for all; remove it",
    "name": "is the same for all; remove it",
    "fuse": "nothing is fused in a sweep; remove it",
    "report_to": "changes no result; remove it, and set it in the recipe",
    "project": "changes no result; remove it, and set it in the recipe",
    "benchmark": "every configuration is measured alike; remove it, and set it in the recipe",
}
"""Keys of a recipe that a sweep leaves alone, with all keys below them."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A key of the recipe, and the values that it takes."""

    key: str
    """The key as `--set` takes it, e.g. phases.dpo.beta."""
    line: int
    values: tuple[object, ...] = ()
    """Values to choose from; empty: a range."""
    weights: tuple[float, ...] = ()
    """Probabilities of the values, for random search; empty: all alike."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether values are drawn evenly by their logarithm."""
    step: float | None = None
    """Distance of the values in the range; None: any value."""
    whole: bool = False
    """Whether values are whole numbers."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that a sweep tries, and the metric that decides between them."""

    place: str
    """File or packaged name, for messages."""
    text: str
    """Content of the file."""
    method: Method
    metric: str
    metric_line: int
    goal: Goal
    parameters: tuple[Parameter, ...]
    run_cap: int | None
    """Most configurations."""
    description: str = ""

    def where(self, key: str) -> tuple[int, str]:
        """Return line and place of the parameter to which a recipe's key belongs, for a message."""
        for parameter in self.parameters:
            if _overlap(key, parameter.key):
                return parameter.line, f"{self.place}:{parameter.line}"
        return 0, self.place

    @property
    def size(self) -> int | None:
        """Number of combinations; None: there is a range."""
        if any(not parameter.values for parameter in self.parameters):
            return None
        return math.prod(len(parameter.values) for parameter in self.parameters)


def read_grid(grid: str | Path | None, recipe: str | Path | Mapping[str, object]) -> Grid:
    """Read and check a grid, without the recipe's own checks of its keys.

    Args:
        grid: a file; None: NAME.sweep.yaml beside the recipe NAME.yaml, or the one that comes with a
            packaged recipe.
        recipe: as `load_recipe` takes it.

    Raises:
        RecipeError: there is none, or listing every problem, one a line, with its place.
    """
    if grid is not None:
        place, text = str(grid), read_text(Path(grid), "grid")
    else:
        place, text = _grid_of(recipe)
    document = parse_document(text, place, "grid")
    reading = _Reading(document)
    read = reading.grid(text)
    if reading.problems or read is None:
        raise RecipeError(listed(reading.problems))
    return read


def _grid_of(recipe: str | Path | Mapping[str, object]) -> tuple[str, str]:
    """Return place and text of the grid that belongs to a recipe."""
    if not isinstance(recipe, Mapping):
        source = str(recipe)
        if source in packaged_recipes():
            text = packaged_grid_text(source)
            if text is not None:
                return f"{source}{GRID}", text
        else:
            beside = recipe_file(source).with_suffix(GRID)
            if os.path.isfile(beside):
                return str(beside), read_text(beside, "grid")
        raise RecipeError(f"{source}: has no grid beside it; name one with `grid`")
    raise RecipeError("the recipe: has no grid beside it; name one with `grid`")


class _Reading:
    """The parts of a grid, and the problems found."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []

    def report(self, at: Location, message: str) -> None:
        line = self.document.line_of(at)
        where = f"{self.document.place}:{line}"
        self.problems.append(Problem(line, f"{where}: {dotted(at) or 'grid'}: {message}"))

    def grid(self, text: str) -> Grid | None:
        """Read the whole file; None if there is a problem."""
        tree = self.document.tree
        for key, why in _NOT_USED.items():
            if key in tree:
                self.report((key,), why)
        own = {key: tree[key] for key in _OWN_KEYS if key in tree}
        others = {k: v for k, v in tree.items() if k not in own and k not in _NOT_USED}
        parameters: list[Parameter] = []
        if "parameters" in tree:
            for key in others:
                close = difflib.get_close_matches(key, _OWN_KEYS, 1)
                hint = (
                    f"; did you mean {close[0]}?"
                    if close
                    else "; a recipe's keys go below parameters"
                )
                self.report((key,), f"unknown key of a grid{hint}")
            if isinstance(tree["parameters"], dict):
                parameters = list(self.parameters(tree["parameters"], ("parameters",), ""))
            else:
                self.report(("parameters",), "should be a mapping of recipe keys to their values")
        else:
            meant = {key: own_key for key in others if (own_key := _own_key(key)) is not None}
            for key, own_key in meant.items():
                self.report((key,), f"unknown key of a grid; did you mean {own_key}?")
            others = {key: value for key, value in others.items() if key not in meant}
            parameters = list(self.parameters(others, (), ""))
        if not parameters and not self.problems:
            self.report((), "empty; name a key of the recipe with its values below parameters")
        self.check_overlap(parameters)
        method = self.method(parameters)
        metric = self.metric()
        run_cap = tree.get("run_cap")
        if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
            self.report(("run_cap",), f"should be a whole number above 0, not {run_cap!r}")
        elif run_cap is None and method in ("random", "tpe"):
            self.report((), f"run_cap: missing; {method} search needs a number of configurations")
        for key in ("name", "description"):
            if key in tree and not isinstance(tree[key], str):
                self.report((key,), "should be text")
        if self.problems or metric is None or method is None:
            return None
        name, goal = metric
        about = [str(tree[key]) for key in ("name", "description") if key in tree]
        return Grid(
            place=self.document.place,
            text=text,
            method=method,
            metric=name,
            metric_line=self.document.line_of(("metric", "name")),
            goal=goal,
            parameters=tuple(parameters),
            run_cap=run_cap,
            description=": ".join(about),
        )

    def method(self, parameters: list[Parameter]) -> Method | None:
        given = self.document.tree.get("method", "grid")
        method = _METHODS.get(given) if isinstance(given, str) else None
        if method is None:
            self.report(("method",), f"should be grid, random or tpe (or bayes), not {given!r}")
        for parameter in parameters:
            if method == "grid" and not parameter.values:
                self.at(parameter, "a grid needs its values; write values: […], or method: random")
            if method != "random" and parameter.weights:
                self.at(parameter, "probabilities are for method: random; remove them")
        return method

    def at(self, parameter: Parameter, message: str) -> None:
        where = f"{self.document.place}:{parameter.line}"
        self.problems.append(Problem(parameter.line, f"{where}: {parameter.key}: {message}"))

    def metric(self) -> tuple[str, Goal] | None:
        given = self.document.tree.get("metric")
        form = "write metric: {name: mc2, goal: maximize}"
        if not isinstance(given, dict):
            what = "missing" if given is None else f"should be a mapping, not {given!r}"
            self.report(
                ("metric",) if given is not None else (), _prefixed("metric", what, given, form)
            )
            return None
        for key in given:
            if key not in ("name", "goal"):
                self.report(("metric", key), "not used; a metric has name and goal: remove it")
        name, goal = given.get("name"), given.get("goal")
        if not isinstance(name, str):
            self.report(("metric",), f"name: missing; {form}")
        if goal not in ("maximize", "minimize"):
            what = "missing" if goal is None else f"should be maximize or minimize, not {goal!r}"
            hint = "; write goal: maximize or goal: minimize" if goal is None else ""
            self.report(
                ("metric",) if goal is None else ("metric", "goal"), _goal(goal, what) + hint
            )
            return None
        return (name, goal) if isinstance(name, str) else None

    def parameters(self, tree: JsonObject, at: Location, above: str) -> Iterator[Parameter]:
        """Read the parameters of a mapping, and those nested below them as W&B has it."""
        for name, given in tree.items():
            key, here = f"{above}{name}", (*at, name)
            if "=" in key or not all(part.strip() for part in key.split(".")):
                self.report(here, "not a key; write it as key.subkey")
                continue
            if why := NOT_SWEPT.get(key.partition(".")[0]):
                self.report(here, why)
                continue
            if isinstance(given, dict) and isinstance(given.get("parameters"), dict):
                for other in given.keys() - {"parameters"}:
                    self.report((*here, other), "cannot stand beside nested parameters; remove it")
                nested = (*here, "parameters")
                if not given["parameters"]:
                    self.report(nested, "empty; name a key of the recipe with its values")
                yield from self.parameters(given["parameters"], nested, f"{key}.")
                continue
            parameter = self.parameter(key, given, here)
            if parameter is not None:
                yield parameter

    def parameter(self, key: str, given: object, at: Location) -> Parameter | None:
        line = self.document.line_of(at)
        if isinstance(given, list):
            given = {"values": given}
        if not isinstance(given, dict):
            self.report(at, "should be a list of values, or a mapping with values, or min and max")
            return None
        before = len(self.problems)
        below = next((name for name in given if not _close(name, _FORMS)), None)
        if below is not None and not given.keys() & {*_FORMS}:
            self.report(
                (*at, below),
                f"a parameter has {', '.join(_FORMS)}; for a key below it, write {key}.{below}",
            )
            return None
        kind = given.get("distribution", _default_distribution(given))
        if not isinstance(kind, str):
            self.report(at, f"distribution: should be text, not {kind!r}")
            return None
        if kind in _NOT_OFFERED:
            self.report((*at, "distribution"), f"{kind} is not offered; {_offered()}")
            return None
        allowed = {
            "constant": "value",
            "categorical": "values",
            "categorical_w_probabilities": "values probabilities",
            **_DISTRIBUTIONS,
        }.get(kind)
        if allowed is None:
            self.report((*at, "distribution"), f"{kind}: unknown; {_offered()}")
            return None
        keys = allowed.split()
        for other in given:
            if other not in (*keys, "distribution"):
                self.report((*at, other), f"not a key of {kind}, which takes {' and '.join(keys)}")
        for needed in keys if len(self.problems) == before else ():
            if needed not in given:
                self.report(at, f"{needed}: missing")
        if len(self.problems) > before:
            return None
        if kind == "constant":
            return Parameter(key, line, (given["value"],))
        if kind.startswith("categorical"):
            return self._choice(key, line, given, at)
        return self._range(key, line, kind, given, at)

    def _choice(self, key: str, line: int, given: JsonObject, at: Location) -> Parameter | None:
        values = given["values"]
        if not isinstance(values, list) or not values:
            self.report(at, "empty; give a list of one value or more")
            return None
        for n, value in enumerate(values):
            if any(_same(value, other) for other in values[:n]):
                self.report(at, f"{value!r} is there twice; remove one")
                return None
        weights = given.get("probabilities", [])
        if "probabilities" in given and (
            not isinstance(weights, list)
            or len(weights) != len(values)
            or not all(is_number(weight) and weight >= 0 for weight in weights)
            or not math.isclose(sum(weights), 1.0, abs_tol=1e-6)
        ):
            self.report((*at, "probabilities"), "should be a number for each value, in all 1")
            return None
        return Parameter(key, line, tuple(values), tuple(map(float, weights)))

    def _range(
        self, key: str, line: int, kind: str, given: JsonObject, at: Location
    ) -> Parameter | None:
        low, high, step = given["min"], given["max"], given.get("q")
        for name in ("min", "max", "q"):
            if name in given and not is_number(given[name]):
                self.report((*at, name), f"should be a number, not {given[name]!r}")
                return None
        if kind == "log_uniform":  # W&B: the ends are exponents of e
            if max(abs(low), abs(high)) > _LARGEST_EXPONENT:
                self.report(
                    at,
                    "min and max of log_uniform are exponents of e, from "
                    f"-{_LARGEST_EXPONENT} to {_LARGEST_EXPONENT}; for the values themselves use "
                    "log_uniform_values",
                )
                return None
            low, high = math.exp(low), math.exp(high)
        if not low < high:
            self.report(at, f"min {low:g} should be below max {high:g}")
        elif kind.startswith("log") and low <= 0:
            self.report(at, f"min {low:g} should be above 0, since its logarithm is taken")
        elif step is not None and step <= 0:
            self.report((*at, "q"), f"should be above 0, not {step:g}")
        elif step is not None and step > high - low:
            self.report((*at, "q"), f"{step:g} is more than max - min, which leaves one value")
        elif kind == "int_uniform" and not (_is_whole(low) and _is_whole(high)):
            self.report(at, "min and max should be whole numbers")
        else:
            whole = kind == "int_uniform" or (
                step is not None and all(map(_is_whole, (low, high, step)))
            )
            step = 1.0 if kind == "int_uniform" else step
            log = kind.startswith("log")
            return Parameter(key, line, (), (), float(low), float(high), log, step, whole)
        return None

    def check_overlap(self, parameters: list[Parameter]) -> None:
        for n, parameter in enumerate(parameters):
            for other in parameters[:n]:
                if parameter.key == other.key:
                    self.at(parameter, "given twice; remove one")
                elif _overlap(parameter.key, other.key):
                    self.at(parameter, f"overlaps with {other.key}; remove one")


def _own_key(key: str) -> str | None:
    """Return the key of a grid for which another one seems to stand; None: it is no such slip."""
    return None if "." in key else _close(key, _OWN_KEYS)


def _close(key: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(key, known, 1, 0.75)), None)


def _prefixed(key: str, what: str, given: object, form: str) -> str:
    return f"{key}: {what}; {form}" if given is None else f"{what}; {form}"


def _goal(goal: object, what: str) -> str:
    return f"goal: {what}" if goal is None else what


def _offered() -> str:
    return f"use {', '.join(_DISTRIBUTIONS)}, categorical or constant"


def _default_distribution(given: JsonObject) -> str:
    """Return the distribution of a parameter that names none, as W&B chooses it."""
    if "value" in given:
        return "constant"
    if "probabilities" in given:
        return "categorical_w_probabilities"
    if "values" in given or not {"min", "max", "q"} & given.keys():
        return "categorical"
    if "q" in given:
        return "q_uniform"
    ends = [given[key] for key in ("min", "max") if key in given]
    return "int_uniform" if all(type(end) is int for end in ends) else "uniform"


def _same(value: object, other: object) -> bool:
    return type(value) is type(other) and value == other


def _is_whole(value: float) -> bool:
    return float(value).is_integer()


def _overlap(key: str, other: str) -> bool:
    """Return whether two keys are the same, or one lies below the other."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")
