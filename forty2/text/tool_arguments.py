"""Arguments of tool calls in the form that a chat template reads: objects, or JSON texts (DeepSeek's)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from forty2.data.records import Message
from forty2.errors import DataError

_KEY, _VALUE = "key_of_it", "value_of_it"


def reads_text(render: Callable[[Sequence[Message]], str]) -> bool:
    """Return whether a template writes arguments right only if they are a JSON text: tried."""
    call = {
        "id": "call12345",
        "type": "function",
        "function": {"name": "name_of_it", "arguments": {_KEY: _VALUE}},
    }
    question = {"role": "user", "content": "A question"}
    trial: list[Message] = [question, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return not _written(render, trial) and _written(render, with_text_arguments(trial))


def _written(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> bool:
    try:
        text = render(messages)
    except DataError:
        return False
    # An object that a template writes without `tojson` is Python's, in other quotation marks.
    return _KEY in text and _VALUE in text and f"'{_KEY}'" not in text


def with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    """Return messages with the arguments of their calls as JSON texts."""
    return [
        {**m, "tool_calls": [_with_text(call) for call in m["tool_calls"]]}
        if m.get("tool_calls")
        else m
        for m in messages
    ]


def _with_text(call: Message) -> Message:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
