"""Tags around what a model thinks before its answer: `<think>`, `[THINK]`, `<|START_THINKING|>`."""

from __future__ import annotations

import re
from typing import NamedTuple

_OPENING = r"(?:<\|?|\[)(?!\w*(?i:end))[A-Za-z][\w:.-]*(?:\|?>|\])"
_FIRST = re.compile(_OPENING)
_LAST = re.compile(rf"({_OPENING})\s*\Z")
_ALONE = re.compile(rf"\s*({_OPENING})\s*(\S+)?\s*")
_TAG = re.compile(r"(?:<[|/]?|\[)/?[A-Za-z][\w:.-]*(?:\|?>|\])")
_LAST_TAG = re.compile(rf"{_TAG.pattern}\s*\Z")
_NAME = re.compile(r"think|thought|reason", re.IGNORECASE)
_BEGINS = {"START": "END", "start": "end", "begin": "end"}
"""Words in tags that begin something, and those in their place in the tags that end it."""


def is_thought(tag: str) -> bool:
    """Return whether a tag is named like one around a thought."""
    return _NAME.search(tag) is not None


def closing_of(tag: str) -> str:
    """Return the tag that closes one: `</think>`, `[/THINK]`, `<|END_THINKING|>`."""
    for begins, ends in _BEGINS.items():
        if begins in tag:
            return tag.replace(begins, ends)
    return re.sub(r"(?=[A-Za-z])", "/", tag, count=1)


def tag_at_end(text: str) -> str:
    """Return the tag with which a text ends and that it does not close; empty: there is none."""
    found = _LAST.search(text)
    return found[1] if found else ""


class TagAlone(NamedTuple):
    """A text that is nothing but a tag."""

    opening: str
    closed: bool
    """Whether the tag that closes it follows."""


def tag_alone(text: str) -> TagAlone | None:
    """Read a text that is a tag, alone or with the one that closes it; None: it is another text."""
    found = _ALONE.fullmatch(text)
    if found is None or found[2] not in (None, closing_of(found[1])):
        return None
    return TagAlone(found[1], found[2] is not None)


def closings(text: str) -> list[str]:
    """Return the tags in a text that close a thought, in order."""
    tags = (tag[0] for tag in _TAG.finditer(text) if not _FIRST.fullmatch(tag[0]))
    return [tag for tag in tags if is_thought(tag)]


def closes_unopened(text: str) -> str:
    """Return the first tag with which a text closes a thought that it has not opened; empty: none."""
    for closing in closings(text):
        before = text[: text.index(closing)]
        with_attributes = f"{closing[:-1].replace('/', '')} "  # XML's
        if with_attributes not in before and closing not in map(closing_of, _openings(before)):
            return closing
    return ""


def _openings(text: str) -> list[str]:
    return [tag[0] for tag in _FIRST.finditer(text)]


def closes_again(prompt: str, answer: str) -> bool:
    """Return whether an answer closes a thought that its prompt, or its own beginning, has closed."""
    if opened := tag_at_end(prompt):
        thought, closing, answer = answer.partition(closing_of(opened))
        prompt = thought + closing
        if thought.strip():
            return False
    last = _LAST_TAG.search(prompt)
    return last is not None and closings(last[0]) == [closes_unopened(answer)]


def continued(tag: str, answer: str) -> str:
    """Return an answer without the tag with which it begins, where its prompt has opened that tag."""
    opening = re.match(rf"\s*{re.escape(tag)}\s*", answer) if tag else None
    return answer[opening.end() :] if opening else answer


def begins_anew(prompt: str, answer: str) -> bool:
    """Return whether an answer begins with a thought, directly behind one that is closed."""
    tag = _FIRST.search(answer)
    if tag is None or not is_thought(tag[0]):
        return False
    return (prompt + answer[: tag.start()]).rstrip().endswith(closing_of(tag[0]))
