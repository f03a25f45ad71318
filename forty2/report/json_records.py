"""JSON that runs wrote, read for a reader: every character of every text can be seen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forty2.errors import RunError
from forty2.files import JsonObject, read_json

_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters other than line breaks and tabs, overrides of direction, lone surrogates and
characters without width."""
DAMAGE = (
    RunError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""Errors that reading a damaged record may raise."""


def visible(value: Any) -> Any:
    """Return the same JSON with every character of every text visible."""
    if isinstance(value, str):
        return _INVISIBLE.sub(lambda match: ascii(match[0])[1:-1], value)
    if isinstance(value, Mapping):
        return {visible(key): visible(inner) for key, inner in value.items()}
    return [visible(inner) for inner in value] if isinstance(value, list) else value


def read_object(path: Path) -> JsonObject:
    """Read a file that holds one JSON object.

    Raises:
        RunError: it is missing, or is no JSON.
        TypeError: it holds another value.
    """
    value = visible(read_json(path))
    if not isinstance(value, dict):
        raise TypeError(f"{path.name} holds no object")
    return value


def read_whole_lines(path: Path) -> list[JsonObject]:
    """Read the lines of a log, which may still be written to; empty if there is none."""
    if not path.exists():
        return []
    return [visible(json.loads(line)) for line in path.read_text("utf-8").split("\n")[:-1]]
