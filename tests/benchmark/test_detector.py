"""Detectors of what an answer does, on labelled answers."""

from __future__ import annotations

import pytest

from forty2.benchmark.detector import ACTS, quality
from forty2.data.library import rows


def test_the_labelled_replies_are_many_balanced_and_in_two_halves() -> None:
    labelled = rows("heldout/reply_labels")
    assert len(labelled) >= 120
    assert len({(row["prompt"], row["reply"]) for row in labelled}) == len(labelled)
    for act in ACTS:
        for half in ("develop", "held out"):
            labels = [r["label"] for r in labelled if r["act"] == act and r["half"] == half]
            assert 2 * sum(labels) == len(labels) >= 8
    held_out = {row["reply"] for row in labelled if row["half"] == "held out"}
    assert not held_out & {row["reply"] for row in labelled if row["half"] == "develop"}


@pytest.mark.parametrize(
    ("act", "source", "precision", "recall"),
    [
        ("hedges", "held out", 0.95, 0.5),
        ("hedges", "pairs", 0.95, 0.35),
        ("declines", "held out", 0.85, 0.9),
        ("declines", "pairs", 0.95, 0.8),
        ("weighs", "held out", 0.75, 0.75),
        ("weighs", "pairs", 0.9, 0.85),
        ("corrects", "held out", 0.85, 0.85),
        ("corrects", "pairs", 0.95, 0.95),
        ("rejects", "held out", 0.85, 0.85),
        ("rejects", "pairs", 0.95, 0.95),
    ],
)
def test_the_detectors_on_answers_they_were_not_developed_on(
    act: str, source: str, precision: float, recall: float
) -> None:
    """Floors, just under what was measured: what a share by generation is worth."""
    measured = quality(act, source)
    assert measured.precision is not None and measured.precision >= precision, measured
    assert measured.recall >= recall, measured
