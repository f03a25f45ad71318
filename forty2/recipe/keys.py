"""A reference of every recipe key: its type, default and meaning, taken from the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from forty2.errors import RecipeError
from forty2.files import JsonObject
from forty2.recipe.schema import SECTIONS, keys_of
from forty2.training.objectives import OBJECTIVES

_WIDTH = 100
_NO_LIMIT = 2**31
"""Upper bounds from here on only keep numbers within 32 bits; the reference leaves them out."""


class Key(NamedTuple):
    """One key of a section."""

    name: str
    type: str
    """Values that it takes, in words: "whole number above 0"."""
    default: str | None
    """Default as YAML; None for a required key and for a section that has its own defaults."""
    required: bool
    about: str
    """Meaning of the key: the docstring below its field."""


class Section(NamedTuple):
    """Keys of one mapping in a recipe."""

    name: str
    """"recipe" for the top, the objective (or several) for a phase, else the key that holds the section."""
    about: str
    """Meaning of the section: the docstring of its dataclass."""
    keys: tuple[Key, ...]


@functools.cache
def sections() -> tuple[Section, ...]:
    """Describe every section of a recipe, the top first."""
    return tuple(_section(name, kind) for name, kind in SECTIONS.items())


def as_text(section: str | None = None) -> str:
    """Write the reference, one section of it, or a key in each section that has it, for a terminal.

    Args:
        section: name of a section, or of a key; with what is around it in a recipe, it is that one's.

    Raises:
        RecipeError: there is neither.
    """
    return "\n\n".join(map(_text, _chosen(section)))


def as_markdown() -> str:
    """Write the whole reference as Markdown, with a heading and a table for each section."""
    return "\n\n".join(map(_markdown, sections())) + "\n"


def _chosen(name: str | None) -> list[Section]:
    if name is None:
        return list(sections())
    *around, last = name.split(".")  # phases.dpo and benchmark.tasks, as in a recipe
    chosen = [section for section in sections() if section.name == last]
    chosen = chosen or _having_key(last, around)
    if not chosen:
        raise RecipeError(f"{last}: no such section or key; sections are {', '.join(SECTIONS)}")
    return chosen


def _having_key(name: str, around: Sequence[str]) -> list[Section]:
    """Return the sections with this key alone; objectives that have it alike are one.

    Args:
        around: the sections and phases that it was asked for in. The nearest that names a section
            with the key chooses it; a phase that is called as an objective is taken for one of it.
    """
    having = {}
    for section in sections():
        keys = tuple(key for key in section.keys if key.name == name)
        if keys:
            having[section.name] = section._replace(about="", keys=keys)
    asked = next((part for part in reversed(around) if part in having), None)
    if asked is not None:
        return [having[asked]]
    alike: dict[object, list[Section]] = {}
    for section in having.values():
        alike.setdefault((section.keys, section.name in OBJECTIVES or section.name), []).append(
            section
        )
    return [
        same[0]._replace(name=", ".join(section.name for section in same))
        for same in alike.values()
    ]


def _text(section: Section) -> str:
    lines = [f"{section.name}: {_place(section.name)}"]
    lines += textwrap.wrap(section.about, _WIDTH)
    for key in section.keys:
        lines += ["", f"  {key.name}: {key.type}{_default(key)}"]
        lines += textwrap.wrap(
            key.about, _WIDTH, initial_indent="      ", subsequent_indent="      "
        )
    return "\n".join(lines)


def _markdown(section: Section) -> str:
    rows = [
        f"| `{key.name}` | {key.type} | {_cell(key)} | {key.about.replace('|', chr(92) + '|')} |"
        for key in section.keys
    ]
    return "\n".join(
        [
            f"## {section.name}",
            "",
            f"*{_place(section.name).capitalize()}.* {section.about}",
            "",
            "| Key | Values | Default | Meaning |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def _default(key: Key) -> str:
    if key.required:
        return "; required"
    return f"; default {key.default}" if key.default is not None else ""


def _cell(key: Key) -> str:
    if key.required:
        return "**required**"
    return f"`{key.default}`" if key.default is not None else "its own defaults"


def _place(section: str) -> str:
    """Say where in the file a section belongs."""
    if section == "recipe":
        return "keys at the top of the file"
    if section.partition(", ")[0] in OBJECTIVES:
        return f"keys of a phase with objective: {section}"
    return f"keys below {section}"


def _section(name: str, kind: type) -> Section:
    schema: JsonObject = TypeAdapter(kind).json_schema()
    about, names = field_docs(kind), keys_of(kind)
    required = set(schema.get("required", ()))
    keys = [
        Key(
            names[field.name],
            _type(schema["properties"][names[field.name]]),
            _yaml(field.default),
            names[field.name] in required,
            about.get(field.name, ""),
        )
        for field in dataclasses.fields(kind)
    ]
    keys.sort(key=lambda key: not key.required)
    return Section(name, _plain(inspect.getdoc(kind) or ""), tuple(keys))


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass; its own replace those of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            docs.update(_docs_below_fields(tree))
    return docs


def _docs_below_fields(tree: ast.stmt) -> Iterator[tuple[str, str]]:
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, below in itertools.pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, _plain(text)


def _plain(text: str) -> str:
    """Put a docstring on one line."""
    return " ".join(text.split())


def _yaml(default: object) -> str | None:
    if default is dataclasses.MISSING or isinstance(default, FieldInfo):
        return None
    return default if isinstance(default, str) else json.dumps(default)


def _type(schema: JsonObject) -> str:
    """Describe the values that a JSON schema allows."""
    match schema:
        case {"$ref": str(ref)}:
            return f"keys of {_section_named(ref)}"
        case {"const": const}:
            return str(const)
        case {"enum": values}:
            return f"one of {', '.join(map(str, values))}"
        case {"oneOf": options}:
            names = [_section_named(option["$ref"]) for option in options]
            return f"keys of {_either(names)}"
        case {"anyOf": options}:
            types = [_type(option) for option in options]
            long = any("," in type or " or " in type for type in types)
            return (", or " if long else " or ").join(types)
        case {"type": "array", "items": items}:
            return f"list of {_type(items)}"
        case {"type": "object", "patternProperties": by_name}:
            return f"mapping of names to {_type(*by_name.values())}"
        case {"type": "object", "additionalProperties": {"type": _} as values}:
            return f"mapping of names to {_type(values)}"
        case {"type": "object"}:
            return "mapping of names to any values"
        case {"type": "string", "pattern": _}:
            return "name of at most 64 letters, digits, '_', '-' and '.'"
        case {"type": "integer" | "number" as kind}:
            return _number("whole number" if kind == "integer" else "number", schema)
    return {"string": "text", "boolean": "true or false", "null": "null"}[schema["type"]]


def _number(kind: str, schema: JsonObject) -> str:
    low = [
        f"{word} {schema[key]:g}"
        for key, word in (("exclusiveMinimum", "above"), ("minimum", "at least"))
        if key in schema
    ]
    high = [
        f"{word} {schema[key]:,}"
        for key, word in (("exclusiveMaximum", "below"), ("maximum", "at most"))
        if schema.get(key, _NO_LIMIT) < _NO_LIMIT
    ]
    comma = "," if "minimum" in schema else ""
    return " ".join([f"{kind}{comma}", " and ".join(low + high)]) if low + high else kind


def _section_named(ref: str) -> str:
    """Return the name of the section whose dataclass a JSON schema refers to."""
    kind = ref.rpartition("/")[2]
    return next(name for name, section in SECTIONS.items() if section.__name__ == kind)


def _either(names: list[str]) -> str:
    return " or ".join(", ".join(names).rsplit(", ", 1))
