"""Questions made by programs, each with a verifier and a right reply: no file and no model needed.

A question is a function of the seed, its kind and its number alone, so a larger test set begins with
the smaller one's questions.
"""

from __future__ import annotations

import random
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

__all__ = ["KINDS", "Made", "made_items"]

KINDS: Mapping[str, Mapping[str, Callable[[random.Random], Made]]] = {
    "code": {"functions": functions},
    "reasoning": {"dates": dates, "orders": orders},
    "mathematics": {"arithmetic": arithmetic, "word-problems": word_problems},
    "tools": {"json": json_objects, "tool-calls": tool_calls},
    "other": {"strings": strings, "units": units},
}
"""Makers of questions by name, for each stratum that they are made for."""


def made_items(stratum: str, seed: int) -> Iterator[tuple[str, Made]]:
    """Yield source and question without end, the kinds of a stratum in turn; none for other strata."""
    number = 0
    while makers := KINDS.get(stratum):
        for name, make in makers.items():
            made = make(random.Random(f"{seed} {name} {number}"))
            yield f"builtin:{name}-{made.level}", made
        number += 1
