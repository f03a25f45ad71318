"""Real names beside invented ones of about their length.

The library's invented names have 20 letters on average and its real ones 13, so that length alone tells
them apart (AUC 0.81). Of twins it tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

LETTERS_APART = 2
"""Largest difference of two twins in letters."""


def pair_twins(
    real: Sequence[T],
    invented: Sequence[T],
    name: Callable[[T], str],
    kind: Callable[[T], object],
) -> list[tuple[T, T]]:
    """Pair real things with invented ones of about their length, preferably of their kind.

    A thing has one twin at most; real ones choose in their order. Things without a twin are left out.
    """
    free = list(invented)
    found = []
    for one in real:

        def distance(other: T, one: T = one) -> tuple[bool, int]:
            return kind(one) != kind(other), abs(len(name(one)) - len(name(other)))

        near = [other for other in free if distance(other)[1] <= LETTERS_APART]
        if near:
            twin = min(near, key=distance)
            free.remove(twin)
            found.append((one, twin))
    return found
