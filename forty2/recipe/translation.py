"""Recipes in another schema, translated to ours key by key: what every such translation shares.

Each of their keys is translated, left out for a stated reason, or refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from forty2.recipe.document import COMMAND_LINE, Document, Location, Problem


class Folders(NamedTuple):
    """Paths at which PhaseGPT writes a run."""

    run: Path
    log: Path
    results: Path


@dataclass
class Translation:
    """A recipe of ours, made from one in their schema."""

    document: Document
    """Our recipe; the line of a key is that of the key that it comes from."""
    notes: dict[Location, str] = field(default_factory=dict)
    """Remarks on our keys: what each comes from, and what is not as it was."""
    adapted: list[str] = field(default_factory=list)
    """Sentences about values that are not those of the file."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Their keys that have no counterpart, and why."""
    folders: Folders | None = None


class Translator:
    """Reads the keys of one recipe in their schema, and writes ours."""

    left_out_keys: ClassVar[Mapping[str, str]]
    """Their keys that never have a counterpart, each with the reason."""
    absent: ClassVar[str] = "as published"
    """Note on a value that the file leaves out."""

    def __init__(self, document: Document) -> None:
        """Begin with an empty recipe of ours, and the document in their schema."""
        self.theirs = document
        self.problems: list[Problem] = []
        self.taken: set[str] = set()
        self.result = Translation(Document(document.place, {}, {}, document.has_lines))

    # --- reading ---

    def given(self, path: str) -> object:
        """Return a value of the file, None where it is absent; the key counts as read."""
        self.taken.add(path)
        here: object = self.theirs.tree
        for key in path.split("."):
            here = here.get(key) if isinstance(here, dict) else None
        return here

    def take(self, path: str, kind: Any, default: Any = None) -> Any:
        """Return a value of one kind; report another."""
        value = self.given(path)
        if value is None:
            return default
        number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        boolean = isinstance(value, bool) and kind is not bool
        if not (number or (isinstance(value, kind) and not boolean)):
            words = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
            self.report(path, f"should be {words.get(kind, 'a ' + kind.__name__)}, not {value!r}")
            return default
        return value

    def take_values(self, path: str, default: Sequence[str] = ()) -> list[Any]:
        """Return a list of texts, numbers or truth values; report another value."""
        values: list[Any] = self.take(path, list, [*default])
        other = next((one for one in values if not isinstance(one, str | int | float)), values)
        if other is not values:
            self.report(path, f"should be a list of single values, without {str(other)[:40]!r}")
            return [*default]
        return values

    def report(self, path: str, message: str) -> None:
        problem = self.theirs.problem(tuple(path.split(".")), message)
        if problem not in self.problems:  # a key may be read more than once
            self.problems.append(problem)

    def line(self, path: str) -> int:
        return self.theirs.line_of(tuple(path.split(".")))

    # --- writing ---

    def put(self, at: str, value: object, path: str, note: str = "") -> None:
        """Set a key of ours, with the key that it comes from and a note."""
        location = tuple(at.split("."))
        here = self.result.document.tree
        for key in location[:-1]:
            here = here.setdefault(key, {})
        here[location[-1]] = value
        flag = path.startswith("--")
        self.result.document.lines[location] = COMMAND_LINE if flag else self.line(path)
        if path and not flag and self.given(path) is None:
            path, note = "", note or self.absent
        remark = f"{path}: {note}" if path and note else path or note
        if remark:
            self.result.notes[location] = remark

    def adapt(self, at: str, value: object, path: str, note: str) -> None:
        """Set a key of ours to a value that is not the file's, and say so."""
        self.put(at, value, path, note)
        self.result.adapted.append(f"{path}: {note}")

    def leave_out(self, path: str, why: str) -> None:
        self.taken.add(path)
        if self.given(path) is not None:
            self.result.left_out[path] = why

    def account_for_rest(self) -> None:
        """Account for every key that nothing has read."""
        for path in _leaves(self.theirs.tree):
            if any(path == one or path.startswith(f"{one}.") for one in self.result.left_out):
                continue
            key = next(
                (k for k in self.left_out_keys if path == k or path.startswith(f"{k}.")), None
            )
            if key is not None and not self._said(path):
                self.result.left_out[key] = self.left_out_keys[key]
            elif path not in self.taken:
                known = [*self.taken, *self.left_out_keys]
                if any(key.startswith(f"{path}.") for key in known):
                    self.report(path, "should be a mapping of keys to values")
                    continue
                close = difflib.get_close_matches(path, known, 1, 0.75)
                hint = f"did you mean {close[0]}?" if close else "remove it"
                self.report(path, f"not a key of this schema; {hint}")

    def _said(self, path: str) -> bool:
        """Return whether a note of ours names the key already."""
        return any(note.partition(":")[0] == path for note in self.result.notes.values())


def _leaves(tree: Mapping[str, object], above: str = "") -> Iterable[str]:
    """Yield the dotted path of every value that is not a mapping; null sections hold nothing."""
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}.")
        elif value is not None:
            yield path
