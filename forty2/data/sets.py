"""Writing of data sets: rows in files, and a manifest that counts them."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from forty2.data.checks.findings import Finding
from forty2.data.checks.lint import lint
from forty2.data.messages import is_learned
from forty2.data.record_texts import text_of, turn_text
from forty2.data.sources import MANIFEST, dumps
from forty2.errors import RunError
from forty2.files import JsonObject, atomic_write, read_json, staged_folder, write_json

Row = Mapping[str, object]

STRATA = (
    "pair_type",
    "element",
    "operator",
    "kind",
    "category",
    "difficulty",
    "language",
    "domain",
    "complexity",
    "subtlety",
    "source",
)
"""Keys of a row by whose values a manifest counts the rows."""
_MOST_STRATA = 60
"""Values of a key above which the manifest leaves the key out."""
SUFFIXES = (".jsonl", ".ndjson")
"""Suffixes of files that rows are written to; under any other they would be misread later."""


def write_set(
    folder: Path, splits: Mapping[str, Iterable[Row]], about: Mapping[str, object]
) -> JsonObject:
    """Write NAME.jsonl for each split and manifest.json, all or nothing.

    Args:
        splits: rows by name of the split: "train", and "valid" if there is one.
        about: first keys of the manifest: command, seed and whatever else says where the rows come
            from.

    Returns:
        The manifest.
    """
    with staged_folder(folder) as unfinished:
        tallies = {
            name: _write(unfinished / f"{name}.jsonl", rows) for name, rows in splits.items()
        }
        valid = unfinished / "valid.jsonl"
        findings = lint(unfinished / "train.jsonl", valid if valid.exists() else None)
        manifest = _manifest(tallies, about, findings)
        write_json(unfinished / MANIFEST, manifest)
    return manifest


def write_file(path: Path, rows: Iterable[Row], about: Mapping[str, object]) -> JsonObject:
    """Write one file of rows and NAME.manifest.json beside it; return the manifest."""
    tally = _write(path, rows)
    manifest = _manifest({path.stem: tally}, about, lint(path), path.suffix)
    write_json(manifest_of(path), manifest)
    return manifest


def manifest_of(path: Path) -> Path:
    """Return the path of the manifest that `write_file` writes for a file."""
    return path.with_suffix(".manifest.json")


def is_ours(path: Path) -> bool:
    """Return whether `write_file` wrote a file of this name, judging by the manifest beside it."""
    try:
        found = read_json(manifest_of(path))
    except RunError:
        return False
    sums = found.get("sha256") if isinstance(found, dict) else None
    return isinstance(sums, dict) and path.name in sums


class _Tally:
    """Counts of the rows written to a file."""

    def __init__(self) -> None:
        self.rows = 0
        self.digest = hashlib.sha256()
        self.strata: dict[str, Counter[str]] = defaultdict(Counter)
        self.words: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, row: Row, line: bytes) -> None:
        """Count a row; `line` is its line in the file."""
        self.rows += 1
        self.digest.update(line)
        for key in STRATA:
            if isinstance(row.get(key), str | int):
                self.strata[key][str(row[key])] += 1
        kind = str(row.get("pair_type") or row.get("element") or "all")
        self.words[kind]["rows"] += 1
        for side, text in _learned(row):
            self.words[kind][side] += len(text.split())


def _write(path: Path, rows: Iterable[Row]) -> _Tally:
    tally = _Tally()
    with atomic_write(path) as file:
        for row in rows:
            line = dumps([row]).encode()
            tally.add(row, line)
            file.write(line)
    return tally


def _manifest(
    tallies: Mapping[str, _Tally],
    about: Mapping[str, object],
    findings: Iterable[Finding],
    suffix: str = ".jsonl",
) -> JsonObject:
    first = next(iter(tallies.values()))
    counts: dict[str, Counter[str]] = {"error": Counter(), "warning": Counter()}
    for finding in findings:
        counts[finding.level][finding.check] += finding.count
    return {
        **about,
        "forty2": importlib.metadata.version("forty2"),
        "written": {name: tally.rows for name, tally in tallies.items()},
        "strata": {
            key: dict(sorted(counter.items()))
            for key, counter in first.strata.items()
            if len(counter) <= _MOST_STRATA
        },
        # Both sides of pairs are counted, to show whether length is a shortcut.
        "mean_words": {
            kind: {s: round(n / words["rows"], 1) for s, n in sorted(words.items()) if s != "rows"}
            for kind, words in sorted(first.words.items())
        },
        "lint": {level: dict(sorted(found.items())) for level, found in counts.items()},
        "sha256": {f"{name}{suffix}": t.digest.hexdigest() for name, t in tallies.items()},
    }


def _learned(row: Row) -> Iterable[tuple[str, str]]:
    """Yield the texts of a row in our own shape that are imitated, preferred or rejected."""
    for side in ("chosen", "rejected", "completion", "text"):
        value = row.get(side)
        if isinstance(value, str):
            yield side, value
        elif isinstance(value, list):
            yield side, text_of(value)
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if is_learned(message):
            yield "answer", turn_text(message)
