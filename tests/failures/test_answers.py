"""What a reply answers: the last stated part, and no other number, letter or text in it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forty2.failures.answers import (
    candidates,
    chosen,
    code_blocks,
    final_number,
    json_values,
    numbers_in,
    program_of,
    stated_answer,
)

CHOICES = {"A": "a dog", "B": "a cat", "C": "4", "D": "the Moon"}


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("12", 12),
        ("12.0", 12),
        ("The answer is 12.", 12),
        ("112", 112),
        ("1,200", 1200),
        ("1,234,567.5", Fraction("1234567.5")),
        ("-5", -5),
        ("−5", -5),
        ("-$5", -5),
        ("$1,200.50", Fraction("1200.5")),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"So \boxed{12} it is, not 13.", 12),
        (r"$x = 12$", 12),
        (r"1{,}200", 1200),
        ("2e3", 2000),
        ("**12**", 12),
        ("12 boxes of 5 make **60 pens**, in 3 steps.", 60),
        ("**Step 1**: 4\n**Step 2**: 9", 9),
        ("There are 3 and 4, so 7", 7),
        ("The answer is 12. That took 3 steps.", 12),
        ("Answer: 12 because 3 * 4 is 12 and 5 is not", 12),
        ("The answer is 3 * 4 = 12 apples", 12),
        ("The answer is not 11, but the answer is 12, I think", 12),
        ("first 7\n#### 42", 42),
        ("Final answer:\n\n42", 42),
        ("the answer is 7. No: the answer is 8.", 8),
        ("between 10-12", 12),
        ("12kg", 12),
        ("12%", 12),
        ("<think>maybe 9</think>12", 12),
        ("the 3rd of 12", 12),
        ("12, the 2nd", 12),
        ("12 is right, not 13", 12),
        ("```\n12\n```", 12),
        ("H2O", None),
        ("none", None),
        ("", None),
        ("The answer is unknown, 5 or 6", 5),
    ],
)
def test_the_final_number(reply: str, value: object) -> None:
    found = final_number(reply)
    assert (found.value if found else None) == value


def test_several_numbers_stay_apart() -> None:
    values = [found.value for found in numbers_in("1, 200 and 1,200; 3-4; 12,5; 5 m/s")]
    assert values == [1, 200, 1200, 3, 4, 12, 5, 5]
    assert [found.unit for found in numbers_in("5 km, 6cm, 7 % and 8")] == ["km", "cm", "%", ""]


@given(st.fractions(max_denominator=1).map(int), st.sampled_from(["{}", "It is {}.", "x\n#### {}"]))
def test_every_whole_number_is_found_with_and_without_commas(value: int, form: str) -> None:
    for text in (str(value), f"{value:,}"):
        found = final_number(form.format(text))
        assert found is not None and found.value == value


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B. a cat", "B"),
        ("B) a cat", "B"),
        ("a cat", "B"),
        ("A cat.", "B"),
        ("The answer is B.", "B"),
        ("The answer is (b) a cat", "B"),
        ("The correct answer is **B**, a cat", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("Answer: B because cats purr", "B"),
        ("A is a dog. So the answer is D", "D"),
        ("The answer is a cat.", "B"),
        ("I think option C fits", "C"),
        ("It must be (D), as it is bright", "D"),
        ("Long thoughts about a dog.\n\nB) a cat", "B"),
        ("A. a dog\nB. a cat\nC. 4\nD. the Moon", None),
        ("A. a dog\nB. a cat\nC. 4\nD. the Moon\nThe answer is C", "C"),
        ("A dog is an animal", None),
        ("The answer is a small animal", None),
        ("I do not know", None),
        ("(A) or (B)", None),
        ("B or C", None),
        ("", None),
        ("AB", None),
        ("<think>A? The answer is A.</think>\nB", "B"),
    ],
)
def test_the_choice_made(reply: str, label: str | None) -> None:
    assert chosen(reply, CHOICES) == label


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("olleh", "olleh"),
        ("  olleh.\n", "olleh"),
        ("`olleh`", "olleh"),
        ('"olleh".', "olleh"),
        ("**olleh**", "olleh"),
        ("```\nolleh\n```", "olleh"),
        ("The reversed word is 'olleh'.", "olleh"),
        ("Reversed: olleh", "olleh"),
        ("The answer is olleh.", "olleh"),
        ("The answer is: **olleh**", "olleh"),
        (r"\boxed{\text{olleh}}", "olleh"),
        ("two  spaces", "two spaces"),
    ],
)
def test_the_text_is_among_the_candidates(reply: str, text: str) -> None:
    assert text in candidates(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "ollehh",
        "hello",
        "It is not 'olleh'",
        "'hello' becomes 'olleh'",
        "The answer is hello, olleh",
    ],
)
def test_a_text_that_is_not_the_answer_is_no_candidate(reply: str) -> None:
    assert "olleh" not in candidates(reply)


def test_a_stated_answer_is_the_last_one_and_a_box_comes_first() -> None:
    assert stated_answer("The answer is 3.\nAnswer: 4") == "4"
    assert stated_answer(r"The answer is 3, \boxed{a{b}c}") == "a{b}c"
    assert stated_answer("No answer here") is None
    assert stated_answer(r"\boxed{open") is None


def test_the_program_is_the_block_that_defines_the_function() -> None:
    reply = "Use it:\n```python\nf(1)\n```\nThis is it:\n```python\ndef f(x):\n    return x\n```"
    assert program_of(reply, "f") == "def f(x):\n    return x\n"
    assert program_of("def f(x):\n    return x", "f") == "def f(x):\n    return x"
    assert program_of("```\ndef g(): pass\n```", "f") == "def g(): pass\n"
    assert code_blocks("```py\nx = 1\n") == ["x = 1\n"], "a reply cut off inside its block"


def test_json_is_found_whole_in_a_block_and_in_a_text() -> None:
    assert json_values('{"a": 1}') == [{"a": 1}]
    assert json_values('Here:\n```json\n{"a": 1}\n```\nThat is {"b": 2}.') == [{"a": 1}]
    assert json_values('It is {"a": 1}, and {broken and [1, 2].') == [{"a": 1}, [1, 2]]
    assert json_values("none") == [] and json_values("[" * 100_000) == []


@given(st.text(max_size=60))
def test_no_text_breaks_the_readers(text: str) -> None:
    final_number(text), chosen(text, CHOICES), candidates(text), json_values(text)
    program_of(text, "f"), stated_answer(text)
