"""A row's keys beside its prompt and answers: tools, what is known to matter, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal

from forty2.data.messages import (
    OTHER_REASONING,
    REASONING,
    read_tools,
    refuse_media,
    says_not_learned,
    short,
)
from forty2.data.row_keys import (
    ANSWERS,
    HISTORY,
    LEARNED,
    MATERIAL,
    OTHER_VERDICTS,
    RESPONSES,
    SYSTEM,
    TOOLS,
    VERDICT,
    WEIGHT,
    is_blank,
    plain,
    truth_of,
)
from forty2.data.unused_keys import joined_texts, unused_kind
from forty2.errors import DataError
from forty2.files import JsonObject

_LEARNED = {plain(key): yes for key, yes in LEARNED.items() if key != WEIGHT}
_SWITCHES = frozenset(
    (
        *("on", "off", "true", "false", "yes", "no", "none", "null", "auto", "default"),
        *("enabled", "disabled", "minimal", "low", "medium", "high"),
    )
)
"""Texts under a key of reasoning that say whether to think, or how much."""
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
    if shape != "text":
        unused = {k: v for k, v in row.items() if k not in taken and k not in TOOLS}
        asked = [k for k in taken if k not in ANSWERS and k not in RESPONSES]
        prompt = {"messages": nested["messages"]} if nested else {k: row.get(k) for k in asked}
        for holder, prefix in ((unused, ""), (others, "input.")):
            _refuse_by_kind(holder, lambda: joined_texts(prompt), f"{origin}: {prefix}")
    return tools, {**others, **_meta(row, *taken, *TOOLS)}


def _refuse_unused(row: Row, shape: Shape, taken: Sequence[str], origin: str) -> None:
    """Refuse keys that would change what is learned, and that this shape has no place for."""
    beside = next((name for name in taken if name in row), shape)
    used = {*taken, *TOOLS, WEIGHT}
    for key in (key for key in row if key not in used and not is_blank(row[key])):
        name = _that_matter(shape).get(plain(key))
        thought = name in REASONING or OTHER_REASONING.fullmatch(plain(key))
        if thought and not is_reasoning(row[key]):
            continue
        if name in used:
            raise DataError(f"{origin}: {key} is not read; rename it to {name}, or remove it")
        if name or thought:
            advice = "keep one" if name in VERDICT else "write it into the messages, or remove it"
            if thought:
                renamed = name not in REASONING and taken[-1] in ANSWERS
                advice = (
                    f"{'rename it to' if renamed else 'write it into the messages as'} {REASONING[0]}, "
                    "or remove it"
                )
            raise DataError(
                f"{origin}: {key} stands beside {beside}, where it is not used; {advice}"
            )
    for key, value in row.items():
        yes = _LEARNED.get(plain(key))
        said = truth_of(value) is (not yes) if yes is not None else says_not_learned(key, value)
        if said:
            raise DataError(
                f"{origin}: {key} is {str(value).lower()}: a row that is not to be learned must be "
                "left out"
            )
        good = OTHER_VERDICTS.get(plain(key)) if shape in ("chat", "text") else None
        if good is not None and truth_of(value) is (not good):
            raise DataError(
                f"{origin}: {key} is {str(value).lower()}, and is not used; write it as label: false "
                "to learn from ratings, or leave the row out"
            )


def _refuse_by_kind(unused: Row, prompt: Callable[[], str], where: str) -> None:
    """Refuse keys of a conversation that matter under any of their names.

    Args:
        prompt: returns all texts of the row's prompt.
        where: begins each error.
    """
    lettered = {"A": "choice_a", "B": "choice_b"}  # columns of a question's choices
    renamed = lettered if lettered.keys() <= unused.keys() else {}
    for key, value in unused.items():
        if kind := unused_kind(renamed.get(key, key), value, prompt):
            raise DataError(f"{where}{key} is not used; {kind.advice}, or remove it")


@cache
def _that_matter(shape: Shape) -> Mapping[str, str]:
    """Return the keys that must not be missed beside a shape, by how `plain` writes them."""
    keys = [*SYSTEM, *TOOLS, WEIGHT, *VERDICT, *REASONING, "documents", "chat_template_kwargs"]
    if shape != "text":
        keys += [*MATERIAL, HISTORY]
    return {plain(key): key for key in keys}


def check_weight(weight: object, origin: str) -> None:
    """Refuse a weight that is no number of uses per epoch."""
    number = weight if isinstance(weight, int | float) and not isinstance(weight, bool) else -1
    if number == 0:
        raise DataError(f"{origin}: weight is 0: a row that is not to be learned must be left out")
    if not 0 < number <= MOST_WEIGHT:
        raise DataError(
            f"{origin}: weight must be a number above 0, at most {MOST_WEIGHT}, not {short(weight)}"
        )


def is_reasoning(value: object) -> bool:
    """Return whether a value under a key of reasoning says something: no blank, switch or number."""
    if isinstance(value, str):
        return bool(value.strip()) and value.strip().casefold() not in _SWITCHES
    return isinstance(value, list | dict) and not is_blank(value)


def _meta(row: Row, *taken: str) -> JsonObject:
    return {key: value for key, value in row.items() if key not in taken}
