"""Thoughts in the form that a chat template reads: under a key, or as a part of the content (Mistral's)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from forty2.data.messages import REASONING
from forty2.data.records import Message
from forty2.errors import DataError

_THOUGHT = "thought_of_it"


def reads_parts(render: Callable[[Sequence[Message]], str]) -> bool:
    """Return whether a template writes a thought only if it is a part of the content: tried."""
    question = {"role": "user", "content": "A question"}
    answer = {"role": "assistant", "content": "An answer", **dict.fromkeys(REASONING, _THOUGHT)}
    trial: list[Message] = [question, answer]
    return not _written(render, trial) and _written(render, with_thinking_parts(trial))


def _written(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> bool:
    try:
        text = render(messages)
    except DataError:
        return False
    # A list that a template writes as it is, as Python or as JSON, has its texts in quotes.
    return _THOUGHT in text and not re.search(rf"['\"]{_THOUGHT}", text)


def with_thinking_parts(messages: Sequence[Message]) -> list[Message]:
    """Return messages with their thoughts as parts of type `thinking`, before their text."""
    return [_with_parts(message) for message in messages]


def _with_parts(message: Message) -> Message:
    thought = next((message[key] for key in REASONING if message.get(key)), None)
    if thought is None:
        return message
    parts = [{"type": "thinking", "thinking": thought}]
    if message.get("content"):
        parts.append({"type": "text", "text": message["content"]})
    kept = {key: value for key, value in message.items() if key not in REASONING}
    return {**kept, "content": parts}
