"""Rows are near duplicates by their similarity."""

from __future__ import annotations

import random

import pytest
from support.lint_rows import WORDS, chat, chats, found


@pytest.mark.parametrize("similarity", [0.5, 0.98])
def test_near_duplicates_are_found_by_similarity(similarity: float) -> None:
    """Of rows changed beyond recognition few are reported, of rows hardly changed nearly all."""
    generator = random.Random(7)
    rows = chats(200)
    changed = []
    for row in rows:
        words = generator.choices(WORDS, k=90)
        row["messages"][1]["content"] = " ".join(words) + "."
        other = words[:]
        for _ in range(round((1 - similarity) * len(words) / 3)):
            other[generator.randrange(len(other))] = generator.choice(WORDS)
        changed.append(chat(row["messages"][0]["content"] + " x", " ".join(other) + "."))
    near = sum(f.count for f in found(rows + changed) if f.check == "near")
    assert near > 180 if similarity > 0.9 else near < 20
