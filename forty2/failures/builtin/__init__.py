"""Questions made by programs, each with a verifier and a right reply: no file and no model needed.

A question is a function of the seed, its kind and its number alone, so a larger test set begins with
the smaller one's questions.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping

from forty2.failures.builtin.arithmetic import arithmetic
from forty2.failures.builtin.dates import dates
from forty2.failures.builtin.functions import functions
from forty2.failures.builtin.made import Made
from forty2.failures.builtin.orders import orders
from forty2.failures.builtin.strings import strings
from forty2.failures.builtin.tools import json_objects, tool_calls
from forty2.failures.builtin.units import units
from forty2.failures.builtin.word_problems import word_problems

__all__ = ["KINDS", "Made", "harder", "is_made", "made_items"]

KINDS: Mapping[str, Mapping[str, Callable[[random.Random], Made]]] = {
    "code": {"functions": functions},
    "reasoning": {"dates": dates, "orders": orders},
    "mathematics": {"arithmetic": arithmetic, "word-problems": word_problems},
    "tools": {"json": json_objects, "tool-calls": tool_calls},
    "other": {"strings": strings, "units": units},
}
"""Makers of questions by name, for each stratum that they are made for."""
_MAKERS = {name: make for makers in KINDS.values() for name, make in makers.items()}
_BUILTIN = "builtin:"
_SOURCE = re.compile(
    rf"{_BUILTIN}(?P<name>{'|'.join(_MAKERS)})(?:/(?P<form>\w+))?-(?P<level>[0-9]{{1,2}})"
)
_LOOKED_AT = 1000
"""Questions of a kind from which its forms and levels are known."""


def made_items(stratum: str, seed: int) -> Iterator[tuple[str, Made]]:
    """Yield source and question without end: the kinds of a stratum in turn, or those of one kind.

    Args:
        stratum: its name, or that of a kind; of others there are none.
    """
    kind = {stratum: _MAKERS[stratum]} if stratum in _MAKERS else {}
    number = 0
    while makers := KINDS.get(stratum) or kind:
        for name, make in makers.items():
            made = make(random.Random(f"{seed} {name} {number}"))
            yield _source(name, made), made
        number += 1


def harder(source: str, rng: random.Random) -> tuple[str, Made] | None:
    """Make a question as another one is, one level harder, or as hard as such questions get.

    Args:
        source: source of the other question.

    Returns:
        Source and question; None: the other was not made here.
    """
    if (found := _SOURCE.fullmatch(source)) is None:
        return None
    name, form, level = found["name"], found["form"] or "", found["level"]
    forms = _levels(name)
    levels = forms.get(form) or sorted({*itertools.chain(*forms.values())})
    wanted = next((one for one in levels if one > int(level)), levels[-1])
    while True:
        made = _MAKERS[name](rng)
        if made.level == wanted and (made.form == form or form not in forms):
            return _source(name, made), made


def is_made(source: str) -> bool:
    """Return whether a question with this source was made here."""
    return _SOURCE.fullmatch(source) is not None


def _source(name: str, made: Made) -> str:
    form = f"/{made.form}" if made.form else ""
    return f"{_BUILTIN}{name}{form}-{made.level}"


@functools.cache
def _levels(name: str) -> dict[str, list[int]]:
    """Return the levels of each form of a kind, ascending; the rarest is one in 24 questions."""
    rng, found = random.Random(name), dict[str, set[int]]()
    for _ in range(_LOOKED_AT):
        made = _MAKERS[name](rng)
        found.setdefault(made.form, set()).add(made.level)
    return {form: sorted(levels) for form, levels in found.items()}
