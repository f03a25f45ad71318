"""Times and sizes are written with the unit that a reader would choose."""

from __future__ import annotations

import pytest

from forty2.report.units import duration, file_size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (119.4, "119 s"), (119.6, "2 min"), (3570, "1 h 0 min"), (8000, "2 h 13 min")],
)
def test_times_are_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(999, "999 B"), (1000, "1 KB"), (3_240_000, "3 MB"), (269_060_000_000, "269.1 GB")],
)
def test_sizes_are_in_the_unit_that_fits(count: int, words: str) -> None:
    assert file_size(count) == words
