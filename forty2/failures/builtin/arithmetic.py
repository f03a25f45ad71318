"""Sums of four levels: two small numbers, larger ones, several operations, fractions and percent."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from forty2.failures.builtin.made import Made, number_question

_ASKS = (
    "What is {}?",
    "Compute {}.",
    "Work out {}.",
    "Calculate {}.",
    "Find the value of {}.",
    "How much is {}?",
)
_SIGNS = {"+": "plus", "-": "minus", "*": "times"}


def arithmetic(rng: Random) -> Made:
    """Make a sum."""
    level = rng.randint(1, 4)
    return (_two_numbers, _two_numbers, _several, _shares)[level - 1](rng, level)


def _two_numbers(rng: Random, level: int) -> Made:
    sign = rng.choice("+-*")
    top = (999 if sign != "*" else 60) if level == 1 else (99_999 if sign != "*" else 999)
    a, b = rng.randint(2, top), rng.randint(2, top)
    answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
    written = f"{a} {_SIGNS[sign]} {b}" if rng.random() < 0.5 else f"{a} {sign} {b}"
    made = number_question(_ask(rng, written), answer, f"{a} {sign} {b} = {answer}", level)
    return made._replace(form=_SIGNS[sign])


def _several(rng: Random, level: int) -> Made:
    a, b, c, d = (rng.randint(2, 99) for _ in range(4))
    written, answer, working = rng.choice(
        [
            (
                f"({a} + {b}) * {c}",
                (a + b) * c,
                f"{a} + {b} = {a + b}\n{a + b} * {c} = {(a + b) * c}",
            ),
            (f"{a} * {b} + {c} * {d}", a * b + c * d, f"{a * b} + {c * d} = {a * b + c * d}"),
            (f"{a} * {b} - {c} + {d}", a * b - c + d, f"{a * b} - {c} + {d} = {a * b - c + d}"),
            (f"{a} - {b} * {c} + {d}", a - b * c + d, f"{a} - {b * c} + {d} = {a - b * c + d}"),
            (f"({a} - {b}) * ({c} - {d})", (a - b) * (c - d), f"{a - b} * {c - d}"),
        ]
    )
    return number_question(_ask(rng, written), answer, working, level)._replace(form="several")


def _shares(rng: Random, level: int) -> Made:
    if rng.random() < 0.5:
        percent, whole = 5 * rng.randint(1, 39), 20 * rng.randint(2, 500)
        answer = percent * whole // 100
        working = f"{whole} / 100 * {percent} = {answer}"
        made = number_question(_ask(rng, f"{percent}% of {whole}"), answer, working, level)
        return made._replace(form="percent")
    one, other = (Fraction(rng.randint(1, 29), rng.randint(2, 30)) for _ in range(2))
    sign = rng.choice("+-")
    total = one + other if sign == "+" else one - other
    prompt = _ask(rng, f"{one} {sign} {other}") + " Give a fraction or a whole number."
    made = number_question(prompt, str(total), f"{one} {sign} {other} = {total}", level)
    return made._replace(form="fractions")


def _ask(rng: Random, written: str) -> str:
    return rng.choice(_ASKS).format(written)
