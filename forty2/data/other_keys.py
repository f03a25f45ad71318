"""A row's keys beside its prompt and answers: tools, what is known to matter, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from forty2.data.messages import REASONING, read_tools, refuse_media, short
from forty2.data.row_keys import (
    HISTORY,
    LEARNED,
    MATERIAL,
    SYSTEM,
    TOOLS,
    VERDICT,
    WEIGHT,
    is_blank,
    truth_of,
)
from forty2.errors import DataError
from forty2.files import JsonObject

_CHOICES = ("choices", "options")
"""Keys of the answers that a question gives to choose from."""
MOST_WEIGHT = 100
"""Most uses of a row per epoch."""
Row = JsonObject
Shape = Literal["chat", "text", "pair", "rated"]


def rest_of(
    row: Row, shape: Shape, taken: Sequence[str], origin: str
) -> tuple[tuple[JsonObject, ...], JsonObject]:
    """Return a row's tools and its other keys.

    Args:
        taken: keys that are used.

    Raises:
        DataError: one of the other keys would change what is learned.
    """
    nested: Row = row["input"] if "input" in taken and isinstance(row.get("input"), dict) else {}
    tools: tuple[JsonObject, ...] = ()
    for holder, prefix in ((row, ""), (nested, "input.")):
        for key in holder.keys() & set(TOOLS):
            found = read_tools(holder[key], f"{origin}: {prefix}{key}")
            if tools and found:
                raise DataError(f"{origin}: {prefix}{key} and other tools; keep one list, as tools")
            tools = tools or found
        refuse_media(holder, f"{origin}: {prefix}")
    if shape == "text" and tools:
        raise DataError(f"{origin}: tools stand beside text, which has no place for them")
    _refuse_unused(row, shape, taken, origin)
    check_weight(row.get(WEIGHT, 1.0), origin)
    others = {k: v for k, v in nested.items() if k != "messages" and k not in TOOLS}
    return tools, {**others, **_meta(row, *taken, *TOOLS)}


def _refuse_unused(row: Row, shape: Shape, taken: Sequence[str], origin: str) -> None:
    """Refuse keys that would change what is learned, and that this shape has no place for."""
    unused: set[str] = {*SYSTEM, "documents", "chat_template_kwargs", *VERDICT, *REASONING[:2]}
    if shape == "rated" or (shape == "chat" and "prompt" in taken):
        unused.add("reasoning")
    if shape != "text":
        unused |= {*MATERIAL, HISTORY, *_CHOICES}
    for key in (key for key in row if key in unused - {*taken}):
        of_reasoning = key in REASONING and not is_prose(row[key])
        if not is_blank(row[key]) and not of_reasoning:
            beside = next((name for name in taken if name in row), shape)
            advice = "keep one" if key in VERDICT else "write it into the messages, or remove it"
            raise DataError(
                f"{origin}: {key} stands beside {beside}, where it is not used; {advice}"
            )
    for key, yes in LEARNED.items():
        if key != WEIGHT and truth_of(row.get(key)) is (not yes):
            raise DataError(
                f"{origin}: {key} is {str(row[key]).lower()}: a row that is not to be learned must "
                "be left out"
            )


def check_weight(weight: object, origin: str) -> None:
    """Refuse a weight that is no number of uses per epoch."""
    number = weight if isinstance(weight, int | float) and not isinstance(weight, bool) else -1
    if number == 0:
        raise DataError(f"{origin}: weight is 0: a row that is not to be learned must be left out")
    if not 0 < number <= MOST_WEIGHT:
        raise DataError(
            f"{origin}: weight must be a number above 0, at most {MOST_WEIGHT}, not {short(weight)}"
        )


def is_prose(value: object) -> bool:
    """Return whether a value is a text of several words."""
    return isinstance(value, str) and len(value.split()) > 1


def _meta(row: Row, *taken: str) -> JsonObject:
    return {key: value for key, value in row.items() if key not in taken}
