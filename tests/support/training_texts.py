"""Texts of the built-in training sets, for tests of what they share with benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from forty2.data.build import NAMES, build


def every_text(value: Any) -> Iterator[str]:
    """Yield every text within a value, and keys that are texts themselves."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key if " " in key else ""
            yield from every_text(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from every_text(part)


def words(text: str) -> list[str]:
    """Split a text into words in lower case."""
    return re.findall(r"\w+", text.lower())


def grams(texts: Iterator[str], n: int) -> set[tuple[str, ...]]:
    """Collect all runs of n words."""
    return {tuple(w[i : i + n]) for t in texts for w in [words(t)] for i in range(len(w) - n + 1)}


def training_texts() -> Iterator[str]:
    """Yield every text of every full training set."""
    for name in NAMES:
        if name.endswith("-full"):
            data = build(name)
            yield from every_text([dict(row) for row in (*data.train, *data.valid)])
