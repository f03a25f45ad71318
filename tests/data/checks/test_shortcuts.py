"""A feature that predicts the preferred side is named."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from support.lint_rows import Row, found, pairs


def longer(row: Row) -> Row:
    return {**row, "chosen": f"{row['chosen']} {row['rejected']}"}


def marked(row: Row) -> Row:
    return {**row, "chosen": f"[good] {row['chosen']}", "rejected": f"so-so! {row['rejected']}"}


def opening(row: Row) -> Row:
    return {**row, "rejected": f"Well now, {row['rejected']}"}


@pytest.mark.parametrize(
    ("change", "feature"),
    [(longer, "length"), (marked, "the word 'good'"), (opening, "the word 'well'")],
)
def test_a_shortcut_is_named(change: Callable[[Row], Row], feature: str) -> None:
    """Shuffled sides lose the shortcut and the finding with it."""
    rows = [change(row) for row in pairs(100)]
    (finding,) = (f for f in found(rows) if f.check == "shortcut")
    assert finding.level == "error" and "100%" in finding.message
    if feature == "length":
        assert finding.message.startswith("length")
    else:
        assert feature in finding.message
    rated = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in rows
    ]
    assert [f.message for f in found(rated) if f.check == "shortcut"] == [finding.message]
    generator = random.Random(1)
    for row in rows:
        if generator.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    assert not [f for f in found(rows) if f.check == "shortcut"]
