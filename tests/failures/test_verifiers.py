"""Verifiers: right replies pass in any usual form, near misses fail, and checks that break say so."""

from __future__ import annotations

import pytest

from forty2.errors import DataError
from forty2.failures.verifiers import CheckFailed, check, parse_verifier, same_json
from forty2.files import JsonObject

UNDER_TEST = {
    "kind": "unit_test",
    "entry_point": "double",
    "tests": "assert double(2) == 4\nassert double(-3) == -6",
}
PERSON = {
    "kind": "json_schema",
    "schema": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
}
CALL = {
    "kind": "tool_call",
    "name": "weather",
    "arguments": {"city": "Oslo", "days": 3},
    "optional": ["days"],
}


def passes(verifier: JsonObject, reply: str) -> bool:
    return check(parse_verifier(verifier, "x.jsonl:1"), reply).passed


@pytest.mark.parametrize(
    "reply", ["12", "12.0", "The answer is 12.", "**12**", r"\boxed{12}", "3 * 4 = 12", "12 apples"]
)
def test_a_number_passes_in_any_form(reply: str) -> None:
    assert passes({"kind": "number", "answer": 12}, reply)


@pytest.mark.parametrize(
    "reply",
    ["112", "121", "-12", "1.2", "12.5", "The answer is 13, not 12.", "12 or 13", "", "twelve"],
)
def test_near_misses_of_a_number_fail(reply: str) -> None:
    assert not passes({"kind": "number", "answer": 12}, reply)


def test_a_number_has_a_tolerance_and_exact_decimals() -> None:
    about = {"kind": "number", "answer": "0.333", "tolerance": 0.001}
    assert passes(about, "1/3") and passes(about, "0.334") and not passes(about, "0.3345")
    assert passes({"kind": "number", "answer": "0.1"}, "0.1")
    assert passes({"kind": "number", "answer": "1/3"}, "2/6")
    big = {"kind": "number", "answer": "123456789012345678901"}
    assert passes(big, "123,456,789,012,345,678,901") and not passes(big, "123456789012345678902")


def test_another_unit_is_wrong_and_none_is_not() -> None:
    metres = {"kind": "number", "answer": 3000, "unit": ["m", "metres"]}
    assert all(passes(metres, reply) for reply in ("3000", "3,000 m", "3000 metres", "3000 in all"))
    assert not passes(metres, "3000 km") and not passes(metres, "3 km")
    assert passes({"kind": "number", "answer": 3000}, "3000 km"), "no unit was asked for"


def test_an_exact_text_keeps_its_case_unless_told() -> None:
    exact = {"kind": "exact", "answer": "Olleh", "accept": ["Ciao"]}
    assert passes(exact, "`Olleh`") and passes(exact, "Ciao!") is False and passes(exact, "Ciao.")
    assert not passes(exact, "olleh") and passes({**exact, "ignore_case": True}, "olleh")
    assert not passes(exact, "Olleh and more")


def test_a_pattern_is_searched_or_matches_the_whole() -> None:
    pattern = {"kind": "regex", "pattern": r"\d{4}-\d\d-\d\d"}
    assert passes(pattern, "on 2024-02-29.") and not passes(pattern, "on 29 Feb")
    assert not passes({**pattern, "whole": True}, "on 2024-02-29.")
    assert passes({**pattern, "whole": True}, " 2024-02-29\n")


def test_a_pattern_without_end_says_nothing_about_the_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forty2.failures.verifiers._SECONDS", 0.2)
    with pytest.raises(CheckFailed, match="searched for more than"):
        passes({"kind": "regex", "pattern": r"(a|aa)+$"}, "a" * 50 + "b")


def test_a_choice_is_its_label() -> None:
    choice = {"kind": "choice", "answer": "B", "choices": {"A": "a dog", "B": "a cat"}}
    assert passes(choice, "The answer is (B).") and passes(choice, "B. a cat")
    assert not passes(choice, "A") and not passes(choice, "A dog, not B, maybe")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("```python\ndef double(x):\n    return 2 * x\n```", True),
        ("def double(x):\n    return x + x", True),
        ("```python\ndef double(x):\n    return x * x\n```", False),
        ("```python\ndef triple(x):\n    return 2 * x\n```", False),
        ("Multiply it by two.", False),
        ("import os\nos._exit(0)", False),
        ("raise SystemExit(0)", False),
    ],
)
def test_a_function_passes_its_tests_only_if_it_is_right(reply: str, right: bool) -> None:
    assert passes(UNDER_TEST, reply) is right


def test_a_program_may_go_on_with_its_head() -> None:
    headed = {**UNDER_TEST, "head": "def double(x):\n"}
    assert passes(headed, "    return 2 * x")
    again = {**UNDER_TEST, "head": 'def double(x):\n    """Twice x."""\n'}
    assert passes(again, "```python\ndef double(x):\n    return 2 * x\n```")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ('{"name": "Ann", "age": 12}', True),
        ('```json\n{"name": "Ann", "age": 12}\n```', True),
        ('Here it is: {"name": "Ann", "age": 12}', True),
        ('{"name": "Ann", "age": "12"}', False),
        ('{"name": "Ann"}', False),
        ('{"name": "Ann", "age": 12, "x": 1}', False),
        ('{"name": "Ann", "age": 12} {"name": "Bo", "age": 1}', False),
        ("{'name': 'Ann', 'age': 12}", False),
        ("", False),
    ],
)
def test_json_fits_its_schema(reply: str, right: bool) -> None:
    assert passes(PERSON, reply) is right


def test_json_with_an_answer_has_this_content() -> None:
    asked = {**PERSON, "answer": {"age": 12, "name": "Ann"}}
    assert passes(asked, '{"name": "Ann", "age": 12.0}')
    assert not passes(asked, '{"name": "Ann", "age": 13}')


def test_a_schema_elsewhere_is_not_fetched() -> None:
    elsewhere = {"kind": "json_schema", "schema": {"$ref": "http://127.0.0.1:9/schema.json"}}
    with pytest.raises(CheckFailed, match="which it lacks"):
        passes(elsewhere, "{}")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ('{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}', True),
        ('{"name": "weather", "arguments": {"city": "Oslo"}}', True),
        ('<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>', True),
        (
            '{"tool_calls": [{"function": {"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}]}',
            True,
        ),
        ('{"name": "weather", "parameters": {"city": "Oslo", "days": 3.0}}', True),
        ('{"name": "weather", "arguments": {"city": "oslo"}}', False),
        ('{"name": "weather", "arguments": {"city": "Oslo", "days": "3"}}', False),
        ('{"name": "weather", "arguments": {"city": "Oslo", "days": true}}', False),
        ('{"name": "weather", "arguments": {"city": "Oslo", "unit": "C"}}', False),
        ('{"name": "Weather", "arguments": {"city": "Oslo"}}', False),
        (
            '[{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "x", "arguments": {}}]',
            False,
        ),
        ("weather in Oslo", False),
    ],
)
def test_a_tool_is_called_once_with_the_right_arguments(reply: str, right: bool) -> None:
    assert passes(CALL, reply) is right


@pytest.mark.parametrize(
    ("verifier", "says"),
    [
        ({"kind": "guess"}, "verifier"),
        ({"kind": "number"}, "number.*answer|answer"),
        ({"kind": "number", "answer": "many"}, "is no number"),
        ({"kind": "number", "answer": "1e99999999"}, "is no number"),
        ({"kind": "exact", "answer": "a", "case": 1}, "case"),
        ({"kind": "regex", "pattern": "("}, "is no pattern"),
        ({"kind": "choice", "answer": "E", "choices": {"A": "x"}}, "none of the choices"),
        ({"kind": "json_schema", "schema": {"type": "number?"}}, "is no JSON schema"),
        ({"kind": "json_schema", "schema": {"$ref": "#"}}, "refers to itself without end"),
        ({"kind": "number", "answer": 1, "tolerance": float("inf")}, "finite"),
        ({**UNDER_TEST, "tests": "assert double(("}, "tests are no Python"),
        ({**UNDER_TEST, "entry_point": "double me"}, "is no name of a function"),
        ("number", "verifier"),
    ],
)
def test_a_wrong_verifier_is_refused_with_its_line(verifier: object, says: str) -> None:
    with pytest.raises(DataError, match=rf"^x\.jsonl:1: .*(?:{says})"):
        parse_verifier(verifier, "x.jsonl:1")


def test_deep_nesting_fails_and_does_not_break() -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    assert not passes(PERSON, deep)


def test_equal_json() -> None:
    assert same_json({"a": [1, 2.0]}, {"a": [1.0, 2]}) and not same_json(1, True)
    assert not same_json([1], [1, 2]) and not same_json({"a": 1}, {"b": 1})


@pytest.mark.parametrize(
    ("verifier", "reply"),
    [
        ({"kind": "number", "answer": 9}, "9" * 5000),
        ({"kind": "number", "answer": 9}, f"{'9' * 400}.5"),
        ({"kind": "number", "answer": 9}, f"9.{'9' * 5000}"),
        ({"kind": "number", "answer": 9}, f"9/{'9' * 5000}"),
        ({"kind": "number", "answer": "9" * 900}, "9" * 5000),
        ({"kind": "number", "answer": 9}, "\\boxed{" * 50_000),
        ({"kind": "number", "answer": 9}, "1, " * 20_000),
        ({"kind": "number", "answer": 9}, "<think>Is it 9? No, or 9?"),
        ({"kind": "json_schema", "schema": {"type": "array"}}, f"[{'9' * 5000}]"),
    ],
)
def test_a_reply_that_repeats_itself_without_end_is_wrong(verifier: JsonObject, reply: str) -> None:
    """As small models do until they are cut: within any limit of tokens it is a reply to check."""
    assert not passes(verifier, reply)


def test_a_check_that_breaks_says_nothing_about_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = {"kind": "json_schema", "schema": {"items": {"multipleOf": 0.5}}}
    assert passes(halves, "[1, 1.5]") and not passes(halves, "[1.2]")
    with pytest.raises(CheckFailed, match="the check broke: int too large"):
        passes(halves, f"[{'9' * 400}]")
    monkeypatch.setattr("forty2.failures.verifiers._SECONDS", 0.2)
    endless = {"kind": "json_schema", "schema": {"items": {"pattern": "^(a|aa)+$"}}}
    assert passes(endless, '["aa"]') and not passes(endless, '["b"]') and passes(endless, "[1]")
    with pytest.raises(CheckFailed, match="searched for more than"):
        passes(endless, f'["{"a" * 50}b"]')
