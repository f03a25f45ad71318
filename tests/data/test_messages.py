"""Messages are read in one form, however a row writes them."""

from __future__ import annotations

from typing import Any

import pytest

from forty2.data.formats import parse, to_row
from forty2.data.messages import read_message, read_messages
from forty2.data.record_texts import answer_of, texts_of
from forty2.data.records import Chat, Pair
from forty2.errors import DataError

USER = {"role": "user", "content": "q"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWER = {"role": "assistant", "content": "a"}


def read(**message: Any) -> dict[str, Any]:
    return dict(read_message(message, "f:1: messages[0]"))


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("system developer System", "system"),
        ("user human Human prompter", "user"),
        ("assistant gpt bot model chatgpt ai Assistant", "assistant"),
        ("tool function observation ipython tool_response", "tool"),
    ],
)
def test_every_name_of_a_role_is_known(names: str, role: str) -> None:
    for name in names.split():
        assert read(role=name, content="x") == {"role": role, "content": "x"}
        assert read(**{"from": name}, value="x") == {"role": role, "content": "x"}


def test_parts_of_text_are_joined_and_nulls_left_out() -> None:
    parts = [{"type": "text", "text": "a "}, "b", {"type": "output_text", "text": " c"}]
    assert read(role="user", content=parts, name=None) == {"role": "user", "content": "a b c"}
    assert read(role="user", content="q", tools=[], thought=None)["content"] == "q"


def test_parts_of_thinking_before_an_answer_are_its_reasoning() -> None:
    thinking = {"type": "thinking", "thinking": "One. "}
    nested = {"type": "thinking", "thinking": [{"type": "text", "text": "Two."}]}
    text = {"type": "text", "text": "a"}
    assert read(role="assistant", content=[thinking, nested, text]) == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "One. Two.",
    }
    assert read(role="assistant", content=[thinking])["content"] == ""


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user"}, "is of type 'thinking'"),
        ({"role": "assistant", "thinking": "b"}, "content and thinking both hold reasoning"),
    ],
)
def test_a_part_of_thinking_is_refused_elsewhere(message: dict[str, Any], says: str) -> None:
    parts = [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]
    with pytest.raises(DataError, match=says):
        read(**message, content=parts)
    with pytest.raises(DataError, match="is of type 'thinking'"):
        read(role="assistant", content=parts[::-1])
    with pytest.raises(DataError, match="must be text, not 3"):
        read(role="assistant", content=[{"type": "thinking", "thinking": 3}])


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"content": None, "tool_calls": [{"type": "function", "function": CALL["function"]}]},
        {"content": "", "tool_calls": '[{"name": "f", "arguments": {"a": 1}}]'},
        {"content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"content": "", "tool_calls": [{"name": "f", "parameters": {"a": 1}}]},
        {"tool_calls": [{"name": "f", "args": {"a": 1}, "type": "tool_call"}]},
        {"tool_calls": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]},
        {"tool_calls": [{"name": "f", "kwargs": '{"a": 1}'}]},
        {"tool_calls": [{"name": "f", "arguments": {}, "parameters": {"a": 1}}]},
        {"tool_calls": [{"function": {"name": "f", "args": {"a": 1}}}]},
        {"tool_calls": [{"function": {"name": "f"}, "arguments": {"a": 1}}]},
        {"tool_calls": [{"name": "f", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"tool_call": {"name": "f", "arguments": {"a": 1}}},
        {"function_calls": [{"name": "f", "arguments": {"a": 1}}], "tool_calls": []},
    ],
)
def test_a_tool_call_is_read_in_every_shape(message: dict[str, Any]) -> None:
    assert read(role="assistant", **message) == CALLING


@pytest.mark.parametrize("arguments", ["", " ", None, {}, "{}"])
def test_a_call_may_have_no_arguments(arguments: object) -> None:
    read_call = read(role="assistant", tool_calls=[{"name": "f", "arguments": arguments}])
    assert read_call["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {}}}
    ]


def test_a_sharegpt_call_is_a_call_and_its_result_a_tool_turn() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "a"},
    ]
    tool = {"role": "tool", "content": "3"}
    assert list(read_messages(turns, "conversations", "f:1")) == [USER, CALLING, tool, ANSWER]
    named = {"role": "function", "name": "f", "content": "3"}
    assert read(**named) == {"role": "tool", "content": "3", "name": "f"}


def test_a_call_keeps_its_id_and_a_text_beside_it() -> None:
    call = {"id": "c1", **CALL}
    message = read(role="assistant", content="Let me see.", tool_calls=[call], refusal=None)
    assert message == {"role": "assistant", "content": "Let me see.", "tool_calls": [call]}
    assert read_message(message, "f:1") == message


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_stays_under_its_key_and_counts_as_text(key: str) -> None:
    message = read(role="assistant", content=None, **{key: "since"})
    assert message == {"role": "assistant", "content": "", key: "since"}
    record = parse({"messages": [USER, {**ANSWER, key: "since"}]}, "f:1")
    assert answer_of(record) == "since\na" and "since" in list(texts_of(record))


def test_calls_count_as_text() -> None:
    record = parse({"messages": [USER, CALLING]}, "f:1")
    assert answer_of(record) == 'f({"a": 1})' and 'f({"a": 1})' in list(texts_of(record))


@pytest.mark.parametrize(
    "flag",
    [
        *({"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"masked": True}),
        *({"loss_weight": 0.0}, {"loss_mask": 0}),
    ],
)
def test_a_turn_that_is_not_learned_is_marked_so(flag: dict[str, Any]) -> None:
    (key, off) = next(iter(flag.items()))
    assert read(role="assistant", content="a", **flag) == {**ANSWER, "train": False}
    assert read(**{"from": "gpt"}, value="a", **flag) == {**ANSWER, "train": False}
    assert read(role="assistant", content="a", **{key: not off}) == ANSWER
    assert read(role="user", content="q", **flag) == USER
    with pytest.raises(DataError, match=f"{key} asks to learn a turn of the user"):
        read(role="user", content="q", **{key: not off})
    with pytest.raises(DataError, match=f"{key} must be 0 or 1, false or true, not 0.5"):
        read(role="assistant", content="a", **{key: 0.5})
    row = {"messages": [USER, {**ANSWER, **flag}, USER, ANSWER]}
    record = parse(row, "f:1")
    assert isinstance(record, Chat) and [m.get("train") for m in record.messages].count(False) == 1
    assert parse(to_row(record), "f:1") == record


def test_what_says_nothing_against_a_turn_may_stand_in_it() -> None:
    said = {"is_correct": True, "ignore": False, "prefix": False, "end_turn": True, "refusal": None}
    assert read(role="assistant", content="a", **said).get("train") is None
    worse = {
        "prompt": "q",
        "chosen": "a",
        "rejected": {**ANSWER, "content": "b", "is_correct": False},
    }
    assert isinstance(parse(worse, "f:1"), Pair)
    for key in ("is_correct", "label"):
        with pytest.raises(
            DataError, match=rf"messages\[1\].{key} is false, and is not used; write"
        ):
            parse({"messages": [USER, {**ANSWER, key: False}]}, "f:1")
    given = read(role="assistant", content="a", train=False, prefix=True, ignore=True)
    assert given["train"] is False
    assert read(**{"from": "gpt"}, role="CHATBOT", content="a", text="a")["role"] == "assistant"


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "only text is used"),
        ({"role": "user", "content": [3]}, "content[0] must be a text or an object"),
        ({"role": "user", "content": "q", "images": ["x"]}, "images is not used"),
        ({"role": "user", "content": None}, "content must be text, not None"),
        ({"role": "user", "content": None, "tool_calls": [CALL]}, "only the assistant calls tools"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content must be text"),
        ({"role": "assistant", "tool_calls": ["f"]}, "tool_calls[0] must be an object"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "function.name must be the name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]},
            "messages[0].tool_calls[0].function.arguments: not a JSON object",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "arguments must be an object, not [1]",
        ),
        ({"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "f"}}, "both tool"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "argument": {"a": 1}}]},
            "messages[0].tool_calls[0].argument is not used in a tool call",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "data": 1}}]},
            "tool_calls[0].function.data is not used in a tool call",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"name": "f", "args": {"a": 1}, "input": {"b": 2}}],
            },
            "tool_calls[0].input and other arguments of the call; keep one",
        ),
        (
            {"role": "assistant", "toolCalls": [CALL]},
            "toolCalls is not read; rename it to tool_calls",
        ),
        ({"role": "user", "content": "q", "pixel_values": [1]}, "pixel_values is not used"),
        ({"role": "assistant", "content": "a", "reasoningContent": "t"}, "to reasoning_content"),
        ({"role": "assistant", "content": "a", "Train": False}, "Train is not read; rename it to"),
        ({"from": "function_call", "value": "f()"}, "must be a list of tool calls in JSON"),
        (
            {"role": "assistant", "content": "a", "reasoning": {"effort": 1}},
            "reasoning must be text",
        ),
        (
            {"role": "assistant", "content": "a", "weight": 1, "train": False},
            "contradict each other",
        ),
        ({"input": "q", "output": "a"}, "has no role; has input, output"),
        ({"role": "user", "parts": ["q"]}, "has no content; has role, parts"),
        ({"role": "system", "content": "s", "tools": [{}]}, "tools is not used in a message; put"),
        ({"role": "assistant", "content": "a", "channel": "analysis"}, "channel 'analysis' is not"),
        ({"role": "assistant", "content": "a", "thoughts": "t"}, "rename it to reasoning_content"),
        ({"role": "assistant", "content": "a", "mask": 1}, "mask is not used; say whether"),
        *(
            (
                {"role": "assistant", "content": "a", key: value},
                f"{key} is {str(value).lower()}, {says}",
            )
            for key, value, says in (
                ("no_train", True, "and is not used; write train: false on a turn"),
                ("ignore", 1, "and is not used"),
                ("should_train", False, "and is not used"),
                ("prefix", True, "but a turn is learned to its end; write the whole turn"),
                ("end_turn", False, "but a turn is learned to its end"),
            )
        ),
        ({"role": "assistant", "content": "a", "text": "b"}, "holds both content and text; keep"),
        ({"from": "gpt", "value": "a", "content": "b"}, "holds both content and value; keep one"),
        ({"role": "user", "from": "gpt", "content": "a"}, "holds both role and from; keep one"),
        ({"role": "assistant", "content": None, "refusal": "No."}, "refusal is not used; write it"),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]},
            "content[0] is of type 'tool_use', and only text is used; write it as tool_calls",
        ),
        ({"role": "assistant", "content": "a", "train_detail": []}, "train_detail is not used"),
    ],
)
def test_a_bad_message_is_named_with_its_field(message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError) as error:
        read(**message)
    assert str(error.value).startswith("f:1: messages[0]") and complaint in str(error.value)
