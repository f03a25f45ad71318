"""Verifiers: does a reply pass, by a rule that always says the same of the same reply?

    exact         the text of the answer
    regex         a pattern in the reply, or of all of it
    number        the number, in whatever form; its unit, if one is asked for
    choice        the label of one of several choices
    unit_test     the tests of the function that the reply defines, run in the sandbox
    json_schema   a JSON value of a schema, or with a given content
    tool_call     one call of a tool, with the right arguments

A verifier is data, `{"kind": "number", "answer": 12}`, and a reply either passes or fails. Where the
check itself cannot work (`CheckFailed`), nothing is said of the reply.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.exceptions import ValidationError as JsonSchemaError
from jsonschema.validators import extend
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from referencing import Registry
from referencing.exceptions import Unresolvable

from forty2.benchmark import sandbox
from forty2.errors import DataError, Forty2Error, on_one_line
from forty2.failures.answers import (
    bare,
    candidates,
    chosen,
    final_number,
    json_values,
    program_of,
    without_thoughts,
)

_STRICT = ConfigDict(extra="forbid", strict=True)
_SECONDS = 2.0
"""Longest search for a pattern; one that backtracks without end says nothing about the reply."""
_CALL_KEYS = (("name", "arguments"), ("name", "parameters"), ("tool", "arguments"))
"""Names of the two keys of a tool call in common formats."""
_HUGE = re.compile(r"e[-+]?\d{4}", re.IGNORECASE)
_LARGE = 10**60
"""Size from which a number is not written out."""
_SHOWN = 60
"""Characters of an answer that a reason quotes."""

_UNIT_WORDS = """
mm cm m km ft yd mi mg g kg ml cl l s sec min h % ° °C °F km/h m/s millimetres centimetres metres
kilometres millimeters centimeters meters kilometers inches feet yards miles milligrams grams kilograms
tonnes millilitres centilitres litres milliliters liters seconds minutes hours days weeks months years
cents dollars euros
"""
_UNITS = frozenset(_UNIT_WORDS.split())
"""Units that contradict another one when they stand after a number."""


def _matches(
    validator: Any, pattern: str, value: object, schema: object
) -> Iterator[JsonSchemaError]:
    """Search for the pattern of a schema, for as long as any other pattern."""
    if validator.is_type(value, "string") and not _search(pattern, str(value)):
        yield JsonSchemaError(f"{value!r} does not match {pattern!r}")


_Validator: type[Draft202012Validator] = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"pattern": _matches}
)


class Checked(NamedTuple):
    """Whether a reply passed, and the reason in a few words."""

    passed: bool
    reason: str


class CheckFailed(Exception):
    """A check that could not be made; the message says why. Nothing is known of the reply."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Exact:
    """The reply's answer is this text."""

    kind: Literal["exact"] = "exact"
    answer: str
    accept: tuple[str, ...] = ()
    """Other texts that are right, too."""
    ignore_case: bool = False

    def check(self, reply: str) -> Checked:
        found = candidates(reply)
        right = {self._form(text) for text in (self.answer, *self.accept)}
        if right & {self._form(text) for text in found}:
            return Checked(True, "the text is right")
        return Checked(False, f"says {_short(found[-1])}")

    def _form(self, text: str) -> str:
        text = bare(text)
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Regex:
    """A pattern is found in the reply, or matches all of it."""

    kind: Literal["regex"] = "regex"
    pattern: str
    whole: bool = False
    ignore_case: bool = False

    def __post_init__(self) -> None:
        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise ValueError(f"is no pattern ({error})") from error

    def check(self, reply: str) -> Checked:
        flags = regex.IGNORECASE if self.ignore_case else 0
        found = _search(self.pattern, without_thoughts(reply), flags, whole=self.whole)
        return Checked(found, "matches" if found else "does not match the pattern")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Number:
    """The reply's number is this one."""

    kind: Literal["number"] = "number"
    answer: int | float | str
    """A text may be a fraction or a decimal number of any length."""
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest difference that still counts as equal."""
    unit: tuple[str, ...] = ()
    """Spellings of the unit. Another known unit after the number is wrong, no unit is not."""

    def __post_init__(self) -> None:
        try:
            self._value()
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            raise ValueError(f"{self.answer!r} is no number") from error

    def check(self, reply: str) -> Checked:
        found = final_number(reply)
        if found is None:
            return Checked(False, "says no number")
        said = f"says {_short(_decimal(found.value))}"
        if abs(found.value - self._value()) > Fraction(str(self.tolerance)):
            return Checked(False, said)
        right_units = {unit.casefold() for unit in self.unit}
        unit = found.unit.casefold()
        if right_units and unit not in right_units and (found.unit in _UNITS or unit in _UNITS):
            return Checked(False, f"{said}, but in {found.unit}, not in {self.unit[0]}")
        return Checked(True, "the number is right")

    def _value(self) -> Fraction:
        text = str(self.answer).replace(",", "")
        if _HUGE.search(text):  # it would take all memory to write out
            raise ValueError("the exponent has more than three digits")
        return Fraction(text)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Choice:
    """The reply chooses this label."""

    kind: Literal["choice"] = "choice"
    answer: str
    choices: dict[str, str]
    """Text of each choice, by its label."""

    def __post_init__(self) -> None:
        if self.answer not in self.choices:
            raise ValueError(f"answer {self.answer!r} is none of the choices")

    def check(self, reply: str) -> Checked:
        found = chosen(reply, self.choices)
        if found is None:
            return Checked(False, "makes no choice, or several")
        right = found == self.answer
        return Checked(right, "the choice is right" if right else f"chooses {found}")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UnitTest:
    """The function that the reply defines passes tests."""

    kind: Literal["unit_test"] = "unit_test"
    entry_point: str
    """Name of the function."""
    tests: str
    """Program that raises if the function is wrong; it runs after the reply's."""
    head: str = ""
    """Beginning of the program that the reply goes on with or writes again, such as its imports."""

    def __post_init__(self) -> None:
        if not self.entry_point.isidentifier():
            raise ValueError(f"entry_point {self.entry_point!r} is no name of a function")
        try:  # tests that cannot run would fail every reply
            ast.parse(self.tests)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"tests are no Python ({on_one_line(error)})") from error

    def check(self, reply: str) -> Checked:
        outcome = sandbox.run(self.program(reply))
        return Checked(outcome.passed, outcome.why)

    def program(self, reply: str) -> str:
        """Return the program that is run for a reply."""
        return f"{self.head}{program_of(reply, self.entry_point)}\n{self.tests}\n"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class JsonSchema:
    """The reply gives one JSON value, which fits a schema and, if there is one, an answer."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] = Field(alias="schema")
    answer: Any = None
    """The value itself; None: any that fits."""

    def __post_init__(self) -> None:
        try:
            Draft202012Validator.check_schema(self.json_schema)
        except SchemaError as error:
            raise ValueError(f"is no JSON schema ({error.message})") from error
        try:
            self._validator().is_valid(None)
        except RecursionError as error:
            raise ValueError("is no JSON schema (it refers to itself without end)") from error
        except Unresolvable:
            pass  # said when a reply is checked

    def _validator(self) -> Draft202012Validator:
        # an empty registry: no schema is fetched from anywhere
        return _Validator(self.json_schema, registry=Registry())

    def check(self, reply: str) -> Checked:
        values = json_values(reply)
        if len(values) != 1:
            return Checked(False, f"gives {len(values)} JSON values, not one")
        try:
            error = best_match(self._validator().iter_errors(values[0]))
        except Unresolvable as unknown:
            raise CheckFailed(f"the schema refers to {unknown.ref}, which it lacks") from unknown
        if error is not None:
            return Checked(False, f"does not fit the schema: {_short(error.message)}")
        if self.answer is not None and not same_json(values[0], self.answer):
            return Checked(False, f"gives {_short(json.dumps(values[0], ensure_ascii=False))}")
        return Checked(True, "the JSON is right")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ToolCall:
    """The reply calls one tool with these arguments."""

    kind: Literal["tool_call"] = "tool_call"
    name: str
    arguments: dict[str, Any]
    optional: tuple[str, ...] = ()
    """Arguments that may be left out."""

    def check(self, reply: str) -> Checked:
        calls = [call for value in json_values(reply) for call in _calls(value)]
        if len(calls) != 1:
            return Checked(False, f"makes {len(calls)} calls, not one")
        name, arguments = calls[0]
        if name != self.name:
            return Checked(False, f"calls {_short(name)}")
        for key in sorted({*self.arguments, *arguments}):
            if key not in arguments:
                if key not in self.optional:
                    return Checked(False, f"leaves out the argument {key}")
            elif key not in self.arguments:
                return Checked(False, f"gives an argument {_short(key)} that is not asked for")
            elif not same_json(arguments[key], self.arguments[key]):
                return Checked(False, f"gives {key} as {_short(json.dumps(arguments[key]))}")
        return Checked(True, "the call is right")


Verifier = Exact | Regex | Number | Choice | UnitTest | JsonSchema | ToolCall
_ANY: TypeAdapter[Verifier] = TypeAdapter(Annotated[Verifier, Field(discriminator="kind")])


def parse_verifier(value: object, where: str) -> Verifier:
    """Read a verifier from its JSON.

    Args:
        where: file and line, for an error's message.

    Raises:
        DataError: it is of no known kind, or an argument is missing, unknown or wrong.
    """
    try:
        # as JSON, where strict types allow an object for a dataclass and a list for a tuple
        return _ANY.validate_json(json.dumps(value))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise DataError(f"{where}: verifier: is no JSON ({error})") from error
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        at = f"verifier.{place}" if place else "verifier"
        raise DataError(f"{where}: {at}: {message}") from error


def check(verifier: Verifier, reply: str) -> Checked:
    """Check a reply; whatever a model writes, nothing but `CheckFailed` is raised.

    Raises:
        CheckFailed: the check could not be made.
    """
    try:
        return verifier.check(reply)
    except (CheckFailed, Forty2Error):
        raise
    except RecursionError as error:
        return Checked(False, f"is nested too deeply to read ({on_one_line(error)})")
    except Exception as error:  # a check that breaks is a fault of ours, not of the reply
        raise CheckFailed(f"the check broke: {on_one_line(error)}") from error


def _search(pattern: str, text: str, flags: int = 0, *, whole: bool = False) -> bool:
    """Return whether a pattern is found.

    Raises:
        CheckFailed: it takes too long.
    """
    find = regex.fullmatch if whole else regex.search
    try:
        return find(pattern, text, flags, timeout=_SECONDS) is not None
    except TimeoutError:
        raise CheckFailed(f"the pattern searched for more than {_SECONDS:g} seconds") from None


def same_json(one: object, other: object) -> bool:
    """Return whether two JSON values are equal: 12 and 12.0 are, 1 and true are not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other


def _calls(value: object) -> list[tuple[str, Mapping[str, object]]]:
    """Return the calls in a JSON value: a call, a list of calls, or either under `tool_calls`."""
    if isinstance(value, list):
        return [call for part in value for call in _calls(part)]
    if not isinstance(value, Mapping):
        return []
    for key in ("tool_calls", "tool_call", "function"):
        if isinstance(value.get(key), list | Mapping):
            return _calls(value[key])
    for name, arguments in _CALL_KEYS:
        given = value.get(arguments)
        if isinstance(given, str):  # as OpenAI's interface writes them
            try:
                given = json.loads(given)
            except ValueError:
                continue
        if isinstance(value.get(name), str) and isinstance(given, Mapping):
            return [(value[name], given)]
    return []


def _decimal(value: Fraction) -> str:
    if abs(value) >= _LARGE:
        return f"a number of more than {len(str(_LARGE)) - 1} digits"
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
