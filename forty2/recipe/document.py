"""YAML with the line of every key, so that a message can say where a value is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml

from forty2.errors import RecipeError, printable
from forty2.files import JsonObject

Location = tuple[str | int, ...]
"""Keys and list positions that lead to a value from the top."""
COMMAND_LINE = 0
"""Line number that stands for a value given by `--set`."""


class Problem(NamedTuple):
    """One thing to put right in a recipe."""

    line: int
    text: str
    """The whole message, with its place."""


@dataclass(slots=True)
class Document:
    """A recipe as it was written: its values, and the line of each key."""

    place: str
    """File or packaged name, for messages."""
    tree: JsonObject
    lines: dict[Location, int]
    """Line of every key; `COMMAND_LINE` for a key that an override gave."""
    has_lines: bool = True
    """False for a recipe that was given as a mapping: nobody has seen its lines."""

    def line_of(self, at: Location) -> int:
        """Return the line of a key, or of the nearest one above it that has a line."""
        above = (at[:n] for n in range(len(at), -1, -1))
        return next((self.lines[key] for key in above if key in self.lines), 1)

    def place_of(self, at: Location) -> str:
        """Return file and line of a key, or who gave it instead."""
        line = self.line_of(at)
        if line == COMMAND_LINE:
            return "`overrides`"
        return f"{self.place}:{line}" if self.has_lines else self.place

    def problem(self, at: Location, message: str) -> Problem:
        """Say what is wrong with the value at a location."""
        text = f"{self.place_of(at)}: {dotted(at) or 'recipe'}: {message}"
        return Problem(self.line_of(at), text)


def dotted(at: Location) -> str:
    """Write a location as `--set` takes it, e.g. phases.dpo.lr."""
    return ".".join(map(str, at))


def listed(problems: Iterable[Problem]) -> str:
    """List problems in the order of their lines, one a line, with control characters escaped."""
    texts = (problem.text for problem in sorted(problems, key=lambda problem: problem.line))
    return "\n".join(printable(text) for text in texts)


_MERGE = "tag:yaml.org,2002:merge"
_DEEPEST = 100
"""Most levels of nesting; no recipe needs ten."""


class _Loader(yaml.SafeLoader):
    """Safe YAML of limited depth in which 5e-6 is a number: YAML 1.1 wants a dot before the e."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_document(text: str, place: str, what: str = "recipe") -> Document:
    """Read the text of a recipe.

    Args:
        what: the kind of file, for messages.

    Raises:
        RecipeError: it is not YAML, not a mapping, or uses aliases, odd keys or a key twice.
    """
    try:
        reading = _Reading(_Loader(text), place)
        node = reading.loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{place}: a {what} is a mapping of keys to values")
        tree = reading.mapping(node, ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{place}:{line}: not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise RecipeError(f"{place}: nested too deeply") from error
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    if reading.problems:
        raise RecipeError(listed(reading.problems))
    return Document(place, tree, reading.lines)


def parse_value(text: str) -> object:
    """Read the value of an override.

    Raises:
        RecipeError: it is not YAML, or uses aliases, odd keys or a key twice.
    """
    try:
        reading = _Reading(_Loader(text), "")
        node = reading.loader.get_single_node()
        value = reading.value(node, ()) if node is not None else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError("the value is not valid YAML") from error
    if reading.problems:
        raise RecipeError(reading.problems[0].text.lstrip(":0123456789 "))
    return value


def yaml_type(text: str) -> str:
    """Return the type that YAML gives to an unquoted text: int, float, bool, null, str, ..."""
    scalar = yaml.ScalarNode
    tag: str = _Loader("").resolve(scalar, text.strip(), (True, False))  # type: ignore[no-untyped-call]
    return tag.rpartition(":")[2]


@dataclass(slots=True)
class _Reading:
    """Values made from YAML's nodes, with the line of each key and the problems found."""

    loader: _Loader
    place: str
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    visited: set[int] = field(default_factory=set)

    def report(self, node: yaml.Node, message: str) -> None:
        line = _line(node)
        self.problems.append(Problem(line, f"{self.place}:{line}: {message}"))

    def value(self, node: yaml.Node, at: Location) -> object:
        self.lines.setdefault(at, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self.visited:
            self.report(node, "aliases (*name) are not allowed; write the value out")
            return None
        self.visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*at, i)) for i, item in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _scalar(self, node: yaml.ScalarNode) -> object:
        """Construct a value; PyYAML fails at some with errors of Python's own, e.g. at `!!int _`."""
        try:
            value: object = self.loader.construct_object(node)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{node.value!r} is not of the type {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error
        return value

    def mapping(self, node: yaml.MappingNode, at: Location) -> JsonObject:
        self.visited.add(id(node))
        self.lines.setdefault(at, _line(node))
        values: JsonObject = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.report(key_node, "a key must be text")
                continue
            if key_node.tag == _MERGE:
                self.report(key_node, "merging (<<) is not allowed; write the keys out")
                continue
            key = self._scalar(key_node)
            if not isinstance(key, str):
                self.report(key_node, f"key {key!r} must be text")
                continue
            below = (*at, key)
            if key in values:
                self.report(key_node, f"{dotted(below)} is given twice")
            self.lines[below] = _line(key_node)
            values[key] = self.value(value_node, below)
        return values


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1
