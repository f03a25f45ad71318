"""Conversions between units, of one or two steps."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from random import Random

from forty2.failures.builtin.made import Made, number_question

_KINDS: dict[str, dict[str, tuple[Fraction, tuple[str, ...]]]] = {
    "length": {
        "millimetres": (Fraction(1, 1000), ("mm", "millimetres", "millimeters")),
        "centimetres": (Fraction(1, 100), ("cm", "centimetres", "centimeters")),
        "metres": (Fraction(1), ("m", "metres", "meters")),
        "kilometres": (Fraction(1000), ("km", "kilometres", "kilometers")),
    },
    "mass": {
        "milligrams": (Fraction(1, 1000), ("mg", "milligrams")),
        "grams": (Fraction(1), ("g", "grams")),
        "kilograms": (Fraction(1000), ("kg", "kilograms")),
    },
    "time": {
        "seconds": (Fraction(1), ("seconds", "s", "sec")),
        "minutes": (Fraction(60), ("minutes", "min")),
        "hours": (Fraction(3600), ("hours", "h")),
    },
    "volume": {
        "millilitres": (Fraction(1, 1000), ("ml", "millilitres", "milliliters")),
        "centilitres": (Fraction(1, 100), ("cl", "centilitres", "centiliters")),
        "litres": (Fraction(1), ("l", "litres", "liters")),
    },
}
_ASKS = (
    "How many {to} are {given}?",
    "Convert {given} to {to}.",
    "Express {given} in {to}.",
    "{given}: how much is that in {to}?",
)


def units(rng: Random) -> Made:
    """Make a conversion of one amount, or of the sum of two in different units."""
    level = rng.randint(1, 2)
    kind = _KINDS[rng.choice(sorted(_KINDS))]
    first, other = rng.sample(sorted(kind, key=lambda name: kind[name][0]), 2)
    small, large = sorted((first, other), key=lambda name: kind[name][0])
    n, more = rng.randint(2, 9999), rng.randint(2, 999)
    if level == 1 and rng.random() < 0.3 and _is_decimal(n * kind[small][0] / kind[large][0]):
        return _question(rng, f"{n} {small}", n * kind[small][0], large, kind, level)
    base = n * kind[large][0]
    if level == 1:
        return _question(rng, f"{n} {large}", base, small, kind, level)
    given = f"{n} {large} and {more} {small}"
    return _question(rng, given, base + more * kind[small][0], small, kind, level)


def _question(
    rng: Random,
    given: str,
    base: Fraction,
    to: str,
    kind: dict[str, tuple[Fraction, tuple[str, ...]]],
    level: int,
) -> Made:
    size, spellings = kind[to]
    value = base / size
    answer = (
        int(value)
        if value.denominator == 1
        else str(Decimal(value.numerator) / Decimal(value.denominator))
    )
    prompt = rng.choice(_ASKS).format(given=given, to=to)
    return number_question(prompt, answer, f"{given} = {answer} {spellings[0]}", level, spellings)


def _is_decimal(value: Fraction) -> bool:
    """Return whether a value has at most six decimals."""
    return (value * 10**6).denominator == 1
