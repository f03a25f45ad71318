"""Paths of this machine, which nothing that leaves it may hold: they name its user and its folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PART = r"[^\s/'\"`,;|()<>]"
_ANY_PATH = re.compile(rf"(?<![\w:/<.~])(?:(?:~|\.\.)/(?:{_PART}+/)*|/(?:{_PART}+/)+)({_PART}*)")
"""An absolute path of at least two parts, or one that leads out of this folder; not part of an
address or a tag of HTML."""
_END = r"(?![\w-])"
"""End of a path: the name of its last part does not go on."""


def machine_paths(*records: object) -> list[str]:
    """List the paths that identify this machine, the longest first.

    Args:
        records: JSON that may name more of them.
    """
    named = {
        text.rstrip("/")
        for text in _strings(records)
        if os.path.isabs(text) and "\n" not in text and len(Path(text).parts) > 2
    }
    found = named | _homes() | _working_directories()
    return sorted(found - {os.sep}, key=lambda path: (-len(path), path))


def without_paths(text: str, paths: Sequence[str]) -> str:
    """Cut every path in a text that leads out of this folder down to its last part.

    Args:
        paths: known ones, from `machine_paths`; others are only recognised up to a space.
    """
    homes, here = _homes(), _working_directories()
    for path in paths:
        known = re.escape(path)
        if path in homes:
            text = re.sub(rf"{known}{_END}", "~", text)
        elif path in here:
            text = re.sub(rf"{known}(?:/|{_END})", "", text)
        else:
            name = Path(path).name.replace("\\", r"\\")
            text = re.sub(rf"{known}{_END}", name, text)
    return _ANY_PATH.sub(r"\1", text)


def find_path(text: str, paths: Sequence[str]) -> str | None:
    """Return the first known path that a text holds; None: it holds none."""
    return next((path for path in paths if re.search(rf"{re.escape(path)}{_END}", text)), None)


def _homes() -> set[str]:
    return {str(Path.home()), os.path.realpath(Path.home())}


def _working_directories() -> set[str]:
    return {os.getcwd(), os.path.realpath(os.getcwd())}


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
