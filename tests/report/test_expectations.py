"""What eval prompts expect, in words: no reader has to read a pattern that init wrote."""

from __future__ import annotations

import pytest

from forty2.data.eval_proposals import number_of
from forty2.report.expectations import in_words


@pytest.mark.parametrize(
    ("expected", "match", "words"),
    [
        (r"(^|\D)18($|\D)", "regex", "contains the number 18"),
        (r"(^|\D)1\.5($|\D)", "", "contains the number 1.5"),
        (r"^a|b$", "regex", "matches the pattern ^a|b$"),
        (r"(^|\D)18($|\D)", "exact", r'equals "(^|\D)18($|\D)"'),
        ("18 ", "contains", 'contains "18"'),
        ("Yes.", "exact", 'equals "Yes."'),
        ("Yes.", "", "Yes."),
    ],
)
def test_each_check_is_said_in_words(expected: str, match: str, words: str) -> None:
    assert in_words(expected, match) == words


@pytest.mark.parametrize("pattern", ["18", r"(^|\D)x($|\D)", r"(^|\D)1.5($|\D)", r"(^|\D)18"])
def test_other_patterns_are_no_number(pattern: str) -> None:
    assert number_of(pattern) is None
