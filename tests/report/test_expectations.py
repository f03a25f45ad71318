"""What eval prompts expect, in words: no reader has to read a pattern that init wrote."""

from __future__ import annotations

import pytest

from forty2.data.eval_proposals import propose_eval_prompts
from forty2.data.records import Chat
from forty2.report.expectations import in_words
from forty2.report.glossary import BUCKETS


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
    assert in_words(pattern, "regex") == f"matches the pattern {pattern}"


def chat(question: str, answer: str) -> Chat:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Chat(messages=messages, origin="rows:1")


def test_what_init_proposes_is_said_in_words_and_each_of_its_buckets_has_a_meaning() -> None:
    answers = ["I do not know.", "It costs 1.50 euros.", "By card."]
    held_out = [chat(f"Question {n}?", answer) for n, answer in enumerate(answers)]
    content = propose_eval_prompts(held_out, [chat("A?", answers[0]), chat("B?", answers[0])])
    assert content is not None
    assert {name.rpartition("_")[0] for name in content["prompts"]} == set(BUCKETS)
    expected, match = content["expected_outputs"]["number_1"], content["match"]["number_1"]
    assert in_words(expected, match) == "contains the number 1.50"
