"""Small Python functions to write: filters, changes and one result, with unit tests.

What a function has to do is put together from steps. Each step is a description, a line of Python
and the same as a function, so the tests' expected values are computed here, and nothing is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from forty2.failures.builtin.made import WORDS, Made

_TESTS = 5
_ASKS = (
    "Write a Python function `{name}(numbers)` that takes a list of integers. It {steps}.",
    "In Python, write `{name}(numbers)`: given a list of integers, it {steps}.",
    "Implement `{name}(numbers)` in Python. The argument is a list of integers; the function {steps}.",
    "I need a Python function called `{name}` with one argument, a list of integers. It {steps}.",
)
_ENDS = (" Reply with the code only.", " Give only the function.", "")


class _Step(NamedTuple):
    """One thing that is done to the numbers."""

    text: str
    code: str
    """Expression of `numbers`."""
    apply: Callable[[list[int]], list[int]]


class _Result(NamedTuple):
    """What is returned in the end."""

    text: str
    code: str
    apply: Callable[[list[int]], object]


def functions(rng: Random) -> Made:
    """Make a function of one to four steps."""
    level = rng.randint(1, 4)
    steps = [_step(rng) for _ in range(level)]
    result = _result(rng)
    words = rng.sample(WORDS, 2)
    name = "_".join(words)
    prompt = rng.choice(_ASKS).format(
        name=name, steps=_joined([s.text for s in steps], result.text)
    )
    lines = [f"    numbers = {step.code}" for step in steps]
    body = "\n".join([f"def {name}(numbers):", *lines, f"    return {result.code}"])
    cases = [_case(rng, place) for place in range(_TESTS)]
    tests = "\n".join(
        f"assert {name}({case!r}) == {_expected(case, steps, result)!r}" for case in cases
    )
    verifier = {"kind": "unit_test", "entry_point": name, "tests": tests}
    return Made(prompt + rng.choice(_ENDS), verifier, f"```python\n{body}\n```", level)


def _joined(steps: Sequence[str], result: str) -> str:
    return ", then ".join(steps) + f", and returns {result}"


def _case(rng: Random, place: int) -> list[int]:
    """Return a list to test with; the first is empty."""
    return [rng.randint(-30, 60) for _ in range(rng.randint(4, 12))] if place else []


def _expected(case: list[int], steps: Sequence[_Step], result: _Result) -> object:
    numbers = list(case)
    for step in steps:
        numbers = step.apply(numbers)
    return result.apply(numbers)


def _step(rng: Random) -> _Step:
    n, m, k = rng.randint(2, 9), rng.randint(-9, 30), rng.randint(1, 4)
    return rng.choice(
        [
            _Step(
                f"keeps only the numbers greater than {m}",
                f"[x for x in numbers if x > {m}]",
                lambda xs: [x for x in xs if x > m],
            ),
            _Step(
                f"drops all numbers below {m}",
                f"[x for x in numbers if x >= {m}]",
                lambda xs: [x for x in xs if x >= m],
            ),
            _Step(
                f"keeps the multiples of {n} (0 counts)",
                f"[x for x in numbers if x % {n} == 0]",
                lambda xs: [x for x in xs if x % n == 0],
            ),
            _Step(
                f"removes every multiple of {n} (0 counts)",
                f"[x for x in numbers if x % {n} != 0]",
                lambda xs: [x for x in xs if x % n],
            ),
            _Step(
                f"multiplies each number by {n}",
                f"[x * {n} for x in numbers]",
                lambda xs: [x * n for x in xs],
            ),
            _Step(
                f"adds {m + 10} to each",
                f"[x + {m + 10} for x in numbers]",
                lambda xs: [x + m + 10 for x in xs],
            ),
            _Step(
                f"subtracts {n} from each",
                f"[x - {n} for x in numbers]",
                lambda xs: [x - n for x in xs],
            ),
            _Step(
                "squares each number", "[x * x for x in numbers]", lambda xs: [x * x for x in xs]
            ),
            _Step(
                "takes the absolute value of each",
                "[abs(x) for x in numbers]",
                lambda xs: [abs(x) for x in xs],
            ),
            _Step("sorts them, the smallest first", "sorted(numbers)", sorted),
            _Step(
                "sorts them, the largest first",
                "sorted(numbers, reverse=True)",
                lambda xs: sorted(xs, reverse=True),
            ),
            _Step("reverses their order", "numbers[::-1]", lambda xs: xs[::-1]),
            _Step(
                f"drops the first {k + 1} numbers", f"numbers[{k + 1} :]", lambda xs: xs[k + 1 :]
            ),
            _Step(
                f"keeps only every {_ordinal(k + 1)} number, beginning with the first",
                f"numbers[::{k + 1}]",
                lambda xs: xs[:: k + 1],
            ),
            _Step(
                "removes repeated numbers and keeps the first of each",
                "list(dict.fromkeys(numbers))",
                lambda xs: list(dict.fromkeys(xs)),
            ),
        ]
    )


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third", 4: "fourth", 5: "fifth"}[n]


def _result(rng: Random) -> _Result:
    n = rng.randint(0, 40)
    return rng.choice(
        [
            _Result("the list", "numbers", lambda xs: xs),
            _Result("their sum", "sum(numbers)", sum),
            _Result("how many there are", "len(numbers)", len),
            _Result(
                f"the largest, or {n} if there is none",
                f"max(numbers, default={n})",
                lambda xs: max(xs, default=n),
            ),
            _Result(
                f"the smallest, or {n} if there is none",
                f"min(numbers, default={n})",
                lambda xs: min(xs, default=n),
            ),
            _Result(
                f"how many of them are greater than {n}",
                f"sum(x > {n} for x in numbers)",
                lambda xs: sum(x > n for x in xs),
            ),
            _Result(
                "a list of the running totals",
                "[sum(numbers[: i + 1]) for i in range(len(numbers))]",
                lambda xs: [sum(xs[: i + 1]) for i in range(len(xs))],
            ),
            _Result(
                "them as one text, separated by commas without spaces",
                '",".join(map(str, numbers))',
                lambda xs: ",".join(map(str, xs)),
            ),
        ]
    )
