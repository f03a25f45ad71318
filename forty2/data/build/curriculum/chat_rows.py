"""Functions that the builders of the curriculum share: rows of one exchange, and seeded choices."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from forty2.files import JsonObject

Row = JsonObject
T = TypeVar("T")
U = TypeVar("U")

LANGUAGES = ("en", "de")
ENGLISH = 0.55
"""Share of English rows where a set can choose."""
SYSTEM = {
    "en": "Keep it brief and do exactly what is asked.",
    "de": "Fasse dich kurz und tu genau, was verlangt wird.",
}


def fields(line: str) -> list[str]:
    """Split one line of a table into its fields."""
    return line.split(" | ")


def chat(language: str, category: str, user: str, answer: str, **extra: str) -> Row:
    """Make a row of one exchange; `numbered` gives it its id."""
    turns = (("system", SYSTEM[language]), ("user", user), ("assistant", answer))
    return {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "category": category,
        "language": language,
        **extra,
    }


def user(row: Row) -> str:
    """Return the text of the user's turn."""
    return str(row["messages"][1]["content"])


def answer(row: Row) -> str:
    """Return the text of the assistant's turn."""
    return str(row["messages"][2]["content"])


def unambiguous(rows: Iterable[Row]) -> list[Row]:
    """Return the first row with each user text, and no row whose user text has different answers."""
    found: dict[str, Row] = {}
    disputed = set()
    for row in rows:
        first = found.setdefault(user(row), row)
        if answer(first) != answer(row):
            disputed.add(user(row))
    return [row for text, row in found.items() if text not in disputed]


def numbered(rows: Iterable[Row], prefix: str, generator: random.Random) -> list[Row]:
    """Return the rows in seeded order, with ids."""
    mixed = shuffled(rows, generator)
    return [{"id": f"{prefix}-{n:05d}", **row} for n, row in enumerate(mixed, 1)]


def shuffled(source: Iterable[T], generator: random.Random) -> list[T]:
    """Return a shuffled copy."""
    result = list(source)
    generator.shuffle(result)
    return result


def paired(
    first: Sequence[T], second: Sequence[U], generator: random.Random
) -> Iterator[tuple[T, U]]:
    """Yield every pair once, so that the first pairs use the items of both sequences evenly."""
    first, second = shuffled(first, generator), shuffled(second, generator)
    for turn in range(len(second)):
        for n, item in enumerate(first):
            yield item, second[(n + turn) % len(second)]


def by_language(count: int) -> dict[str, int]:
    """Divide a number of rows between the languages."""
    english = round(count * ENGLISH)
    return {"en": english, "de": count - english}
