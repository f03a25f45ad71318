"""Marks stand for the texts of a conversation, and are found in what a template writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forty2.text.marks import Conversation, Shape, find_places


def call(arguments: object, **more: object) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"function": function, **more}]}


def test_each_message_has_its_own_texts() -> None:
    chat = Conversation([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], ())
    assert chat.own_values(0) == ["a"] and chat.own_values(1) == ["b"]
    assert chat.values(1) == ["a", "b"]


def test_parts_of_a_content_belong_to_the_key_that_they_are_in() -> None:
    parts = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "c"}]
    _, owners = Conversation([{"role": "assistant", "content": parts}], ()).marked(0)
    assert owners == [(0, "thinking"), (0, "content")]


TEXT = 'Café "au\nlait"'
ESCAPED = json.dumps(TEXT, ensure_ascii=False)[1:-1]


@pytest.mark.parametrize(
    "written",
    [TEXT, ESCAPED, json.dumps(TEXT)[1:-1], json.dumps(ESCAPED, ensure_ascii=False)[1:-1]],
    ids=["as it is", "as JSON", "as JSON in ASCII", "as JSON in JSON"],
)
def test_a_text_is_found_however_it_is_written(written: str) -> None:
    shape = Shape(["<a>", "</a>"], [0], [0], [], tools_dropped=False)
    assert find_places(f"<a>{written}</a>", shape, [TEXT]) == [(3, 3 + len(written))]


@pytest.mark.parametrize("stripped", [str.strip, str.lstrip, str.rstrip])
@pytest.mark.parametrize("what", [None, "\n"])
def test_a_text_is_found_without_the_white_space_at_its_ends(
    stripped: Any, what: str | None
) -> None:
    text = "\n a \n"
    written = stripped(text, what)
    shape = Shape(["<a>", "</a>"], [0], [0], [], tools_dropped=False)
    assert find_places(f"<a>{written}</a>", shape, [text]) == [(3, 3 + len(written))]


def test_each_argument_that_is_not_null_is_written_otherwise() -> None:
    chat = Conversation([call({"none": None, "yes": True, "number": 3, "empty": ""})], ())
    changed: dict[str, list[object]] = {}
    for _, name, messages in chat.without_arguments(0):
        arguments = messages[0]["tool_calls"][0]["function"]["arguments"]
        changed.setdefault(name, []).append(arguments.get(name, "left out"))
    assert changed == {
        "yes": ["left out", "left out", False],
        "number": ["left out", "left out", 10],
        "empty": ["left out", "left out", "x"],
    }


def test_calls_that_a_template_may_write_in_another_way_are_told_apart() -> None:
    different = [
        call({"a": value}) for value in (True, False, 1, 0, "", None, " ", [1], {"b": 1}, "text")
    ]
    different += [call({"a": 1}, type=kind) for kind in ("function", "custom")]
    shapes = [Conversation([message], ()).call_shape(0) for message in different]
    assert len({*shapes}) == len(shapes)
    alike = [Conversation([call({"a": value})], ()).call_shape(0) for value in (2, 3.5)]
    assert len({*alike}) == 1
