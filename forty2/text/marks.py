"""Marks in place of the texts that users wrote, and where they stand in a rendered template.

A conversation is rendered once with a mark for every content, reasoning, name and argument of a
call. What the template writes around the marks is its own; any conversation of the same shape can
then be read against these pieces, from left to right.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from forty2.data.messages import REASONING
from forty2.data.records import Message
from forty2.files import JsonObject

MARK = "QxZ{}ZxQ"
MARKS = re.compile(r"QxZ(\d+)ZxQ")
"""Mark in place of a text, while a template is rendered to see what it writes itself."""
_NUMBERED = re.compile(r"functions\.(.+)(:\d+)")
"""Number of a call that names its function."""


@dataclass(frozen=True)
class Shape:
    """A template's rendering of a conversation's marks, up to an assistant turn."""

    parts: list[str]
    """Texts of the template before, between and after the marks."""
    order: list[int]
    """The marks, as they appear."""
    owners: list[int]
    """For each mark in `order`, the message whose text it stands for."""
    dropped: list[tuple[int, str]]
    """Messages and keys of texts that the template does not write."""
    tools_dropped: bool


class Conversation:
    """Messages and tools, with the texts that users wrote and marks in place of these.

    Args:
        first: the first message with marks; those before it stay as they are.
    """

    def __init__(
        self, messages: Sequence[Message], tools: Sequence[JsonObject], first: int = 0
    ) -> None:
        self.messages = messages
        self.tools = tools
        self._first = first
        self._values: list[str] = []
        self._owners: list[tuple[int, str]] = []
        self._ends: list[int] = []
        self._marked: list[Message] = []
        for i, message in enumerate(self.messages):
            self._marked.append(self._mark(i, message) if i >= first else message)
            self._ends.append(len(self._values))

    def values(self, turn: int) -> list[str]:
        """Return the texts up to and with a turn, by the number of their mark."""
        return self._values[: self._ends[turn]]

    def own_values(self, turn: int) -> list[str]:
        """Return the texts of one message."""
        return self._values[self._ends[turn - 1] if turn else 0 : self._ends[turn]]

    def marked(self, turn: int) -> tuple[list[Message], list[tuple[int, str]]]:
        """Return the messages up to and with a turn, with marks, and message and key of each mark."""
        return self._marked[: turn + 1], self._owners[: self._ends[turn]]

    def key(self, turn: int) -> str:
        """Return what conversations of one shape share."""
        return json.dumps([self._marked[: turn + 1], self.tools], ensure_ascii=False, default=str)

    def without_arguments(self, turn: int) -> Iterator[tuple[int, str, list[Message]]]:
        """Yield the marked messages up to a turn, each time with one argument written otherwise.

        A template that renders any of these as it renders the whole does not write that argument.
        Arguments that are null may be left out: tables of calls have a column for each.

        Yields:
            The message's index, the argument's name, and all messages.
        """
        for i, message in enumerate(self._marked[self._first : turn + 1], self._first):
            for c, call in enumerate(message.get("tool_calls") or ()):
                arguments = call.get("function", {}).get("arguments")
                for path, name in _paths(arguments):
                    for change in (_remove, _rename, _alter):
                        messages = copy.deepcopy(self._marked[: turn + 1])
                        owner = messages[i]["tool_calls"][c]["function"]["arguments"]
                        for step in path[:-1]:
                            owner = owner[step]
                        if change(owner, path[-1]):
                            yield i, name, messages

    def call_shape(self, turn: int) -> str:
        """Return what tells calls apart that a template may write in another way."""
        calls = [message.get("tool_calls") for message in self._marked[self._first : turn + 1]]
        # A mark stays one: a template may leave out an empty argument, and not one with a text.
        return MARKS.sub(MARK, json.dumps(_likeness(calls), ensure_ascii=False))

    def _mark(self, i: int, message: Message) -> Message:
        marked = dict(message)
        seen: dict[object, object] = {}  # templates read reasoning under one of its names
        for key in REASONING:
            if key in message:
                if message[key] not in seen:
                    seen[message[key]] = self._replace(i, key, message[key])
                marked[key] = seen[message[key]]
        if "content" in message:
            marked["content"] = self._mark_content(i, message["content"])
        calls = message.get("tool_calls")
        if isinstance(calls, list | tuple):
            marked["tool_calls"] = [self._mark_call(i, call) for call in calls]
        return marked

    def _mark_content(self, i: int, content: object) -> object:
        if not isinstance(content, list):
            return self._replace(i, "content", content)
        keys = {"thinking": "thinking", "text": "content"}  # of the message, by the part's own
        return [
            {key: self._replace(i, keys[key], v) if key in keys else v for key, v in part.items()}
            for part in content
        ]

    def _mark_call(self, i: int, call: object) -> object:
        if not isinstance(call, dict):
            return call
        function = call.get("function")
        if not isinstance(function, dict):
            return call
        name = function.get("name")
        named = {**function, "name": self._replace(i, "tool_calls", name)}
        if "arguments" in function:
            named["arguments"] = self._replace_all(i, function["arguments"])
        marked = {**call, "function": named}
        number = _NUMBERED.fullmatch(str(call.get("id")))
        if number and number[1] == name:  # templates may write the name in this place alone (Kimi)
            marked["id"] = f"functions.{named['name']}{number[2]}"
        return marked

    def _replace_all(self, i: int, value: object) -> object:
        if isinstance(value, dict):
            return {key: self._replace_all(i, each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._replace_all(i, each) for each in value]
        return self._replace(i, "tool_calls", value)

    def _replace(self, i: int, key: str, value: object) -> object:
        """Take a text in, and return its mark; an empty text stays, since templates test for it."""
        if not isinstance(value, str) or not value.strip():
            return value
        self._values.append(value)
        self._owners.append((i, key))
        return MARK.format(len(self._values) - 1)


def range_of(shape: Shape, turn: int) -> tuple[int, int]:
    """Return the places in the order of marks of a message's first mark, and after its last."""
    own = [place for place, owner in enumerate(shape.owners) if owner == turn]
    return (own[0], own[-1] + 1) if own else (0, 0)


def find_places(text: str, shape: Shape, values: Sequence[str]) -> list[tuple[int, int]] | None:
    """Find where each text stands in a rendering; None: the rendering is not as the shape says.

    Read from left to right: the template's own pieces must follow one another, with the texts
    between them, whole or without white space at their ends, plain or written as JSON.
    """
    places: list[tuple[int, int]] = []
    at = 0
    for part, mark, after in zip(shape.parts, shape.order, shape.parts[1:], strict=False):
        if not text.startswith(part, at):
            return None
        at += len(part)
        for written in _ways_to_write(values[mark]):
            if text.startswith(written, at) and text.startswith(after, at + len(written)):
                places.append((at, at + len(written)))
                at += len(written)
                break
        else:
            return None
    return places if text[at:] == shape.parts[-1] else None


def _ways_to_write(value: str) -> Iterator[str]:
    """Yield a text as templates write it, the likeliest first."""
    yield value
    if value[0].isspace() or value[-1].isspace():
        yield from (value.strip(), value.lstrip(), value.rstrip())
        yield from (value.strip("\n"), value.lstrip("\n"), value.rstrip("\n"))
    escaped = json.dumps(value, ensure_ascii=False)[1:-1]
    yield from (escaped, json.dumps(value)[1:-1], json.dumps(escaped, ensure_ascii=False)[1:-1])


def _paths(arguments: object) -> Iterator[tuple[list[str | int], str]]:
    """Yield the way to each argument that is not null, at any depth, with its name."""
    entries = (
        arguments.items()
        if isinstance(arguments, dict)
        else enumerate(arguments)
        if isinstance(arguments, list)
        else ()
    )
    for key, value in entries:
        if value is None:
            continue
        yield [key], str(key)
        yield from (([key, *path], f"{key}.{name}") for path, name in _paths(value))


def _remove(owner: dict[str, object] | list[object], key: str | int) -> bool:
    del owner[key]  # type: ignore[arg-type]
    return True


def _rename(owner: dict[str, object] | list[object], key: str | int) -> bool:
    if isinstance(owner, list):
        return False
    entries = [(f"{name}_" if name == key else name, value) for name, value in owner.items()]
    owner.clear()
    owner.update(entries)
    return True


def _alter(owner: dict[str, object] | list[object], key: str | int) -> bool:
    """Change a value that is no text with a mark, whose own place shows that it is written."""
    value = owner[key]  # type: ignore[index]
    if isinstance(value, dict | list) or (isinstance(value, str) and value.strip()):
        return False
    if isinstance(value, bool):
        owner[key] = not value  # type: ignore[index]
    elif isinstance(value, int | float):
        owner[key] = value + 7  # type: ignore[index]
    else:
        owner[key] = "x"  # type: ignore[index]
    return True


def _likeness(value: object) -> object:
    """Return a value with its numbers as no more than zero or one."""
    if isinstance(value, dict):
        return {key: _likeness(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_likeness(each) for each in value]
    return (
        float(bool(value))
        if isinstance(value, int | float) and not isinstance(value, bool)
        else value
    )
