"""What the generators share: rows, the word material, and seeded choices."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

Row = dict[str, Any]
T = TypeVar("T")
U = TypeVar("U")

LANGUAGES = ("en", "de")
ENGLISH = 0.55
"""Share of English where a set has a choice."""
SYSTEM = {
    "en": "Keep it brief and do exactly what is asked.",
    "de": "Fasse dich kurz und tu genau, was verlangt wird.",
}


def fields(line: str) -> list[str]:
    """The fields of one line of a table."""
    return line.split(" | ")


def chat(language: str, category: str, user: str, answer: str, **extra: Any) -> Row:
    """One exchange; its id comes when the set is complete."""
    turns = (("system", SYSTEM[language]), ("user", user), ("assistant", answer))
    return {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "category": category,
        "language": language,
        **extra,
    }


def user(row: Row) -> str:
    """What is asked."""
    return str(row["messages"][1]["content"])


def answer(row: Row) -> str:
    """What is to be answered."""
    return str(row["messages"][2]["content"])


def unambiguous(rows: Iterable[Row]) -> list[Row]:
    """Each user text once; none that was given two answers."""
    found: dict[str, Row] = {}
    disputed = set()
    for row in rows:
        first = found.setdefault(user(row), row)
        if answer(first) != answer(row):
            disputed.add(user(row))
    return [row for text, row in found.items() if text not in disputed]


def numbered(rows: Iterable[Row], prefix: str, generator: random.Random) -> list[Row]:
    """In seeded order, with ids."""
    mixed = shuffled(rows, generator)
    return [{"id": f"{prefix}-{n:05d}", **row} for n, row in enumerate(mixed, 1)]


def shuffled(source: Iterable[T], generator: random.Random) -> list[T]:
    """A shuffled copy."""
    result = list(source)
    generator.shuffle(result)
    return result


def paired(
    first: Sequence[T], second: Sequence[U], generator: random.Random
) -> Iterator[tuple[T, U]]:
    """Every pair once; any beginning uses each of `first`, and each of `second`, evenly."""
    first, second = shuffled(first, generator), shuffled(second, generator)
    for turn in range(len(second)):
        for n, item in enumerate(first):
            yield item, second[(n + turn) % len(second)]


def by_language(count: int) -> dict[str, int]:
    """So many rows, divided between the languages."""
    english = round(count * ENGLISH)
    return {"en": english, "de": count - english}
