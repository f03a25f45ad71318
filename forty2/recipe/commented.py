"""YAML of a translated recipe: each key with what it comes from, as a comment."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import yaml

from forty2.files import JsonObject
from forty2.recipe.document import Location
from forty2.recipe.translation import Translation

_WIDTH = 100


def commented_yaml(found: Translation, source: str) -> str:
    """Write a translated recipe; what its file says and ours has no key for is listed at the end."""
    lines = _comment(f"From {source}; paths are relative to the folder that you save this in.", "")
    if found.folders is not None:
        lines += _comment(f"Run from that file, it is kept in {found.folders.run}.", "")
    lines += _mapping(found.document.tree, found.notes, ())
    if found.left_out:
        lines += ["", "# Without a counterpart:"]
        for path, why in found.left_out.items():
            lines += _comment(f"{path}: {why}", "")
    return "\n".join(lines) + "\n"


def _mapping(tree: JsonObject, notes: dict[Location, str], at: Location) -> Iterator[str]:
    indent = "  " * len(at)
    for key, value in tree.items():
        here = (*at, key)
        note = notes.get(here, "")
        nested = isinstance(value, dict) and any(
            one[: len(here)] == here and len(one) > len(here) for one in notes
        )
        text = f"{indent}{key}:" if nested else f"{indent}{key}: {_inline(value)}"
        if note and len(text) + len(note) + 4 <= _WIDTH:
            yield f"{text}  # {note}"
        else:
            yield from _comment(note, indent) if note else ()
            yield text
        if nested:
            yield from _mapping(value, notes, here)


def _inline(value: object) -> str:
    """Write a value on one line."""
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))  # YAML wants a dot before the e
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )
