"""Responses: what follows a prompt, as a text, as messages or as a whole conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forty2.data.messages import (
    Messages,
    is_learned,
    plain_turn,
    read_messages,
    read_text,
    without_train,
    written_messages,
)
from forty2.data.records import Message
from forty2.data.row_keys import ANSWERS, QUESTIONS, RESPONSES
from forty2.errors import DataError
from forty2.files import JsonObject

_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_ASKING = re.compile(r"(\s*Human:.*)\n\nAssistant:\s*", re.DOTALL)
"""A transcript that ends where an answer begins, without its last line as group 1."""
_ANSWERED = re.compile(r"\n\nHuman:.*\n\nAssistant:", re.DOTALL)
"""The beginning of a transcript with an answer."""
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}


def read_side(value: object, key: str, prompt: Messages, origin: str) -> Messages:
    """Read a response: a text, a message, messages, or a conversation that begins with the prompt."""
    value = written_messages(value)
    if isinstance(value, list | dict):
        turns = read_messages(value if isinstance(value, list) else [value], key, origin)
    elif isinstance(value, str) and _ANSWERED.match(value):
        turns = _transcript(value, key, origin)
    else:
        return (plain_turn("assistant", read_text(value, key, origin)),)
    if turns[0]["role"] == "assistant":
        return turns
    same = prompt
    if turns[0]["role"] != "system":
        same = tuple(m for m in prompt if m["role"] != "system")
    if without_train(turns[: len(same)]) != without_train(same):
        raise DataError(f"{origin}: {key}: its first turns are not the prompt")
    return turns[len(same) :]


def without_transcript(row: JsonObject, origin: str) -> JsonObject:
    """Write a prompt that is a transcript, and the texts that continue it, as messages.

    Such a prompt begins with a turn of the human and ends with "\\n\\nAssistant:". An answer of one
    turn stays a text, without the blank after the colon.
    """
    for question in QUESTIONS:
        found = _ASKING.fullmatch(row[question]) if isinstance(row.get(question), str) else None
        if found is None:
            continue
        row = {**row, question: list(_transcript(found[1], question, origin))}
        for key in row.keys() & {*ANSWERS, *RESPONSES}:
            if isinstance(row[key], str) and not _ANSWERED.match(row[key]):
                turns = _transcript(f"\n\nAssistant:{row[key]}", key, origin)
                row[key] = turns[0]["content"] if len(turns) == 1 else list(turns)
    return row


def read_whole(value: object, key: str, origin: str) -> Messages:
    """Read a conversation: messages, or a transcript in one text."""
    value = written_messages(value)
    if not isinstance(value, str):
        return read_messages(value, key, origin)
    return _transcript(value, key, origin)


def divide(messages: Messages, key: str, origin: str) -> tuple[Messages, Messages]:
    """Divide a conversation into a prompt and the assistant's turns that end it.

    Raises:
        DataError: one of the two is missing.
    """
    start = len(messages)
    while start and messages[start - 1]["role"] == "assistant":
        start -= 1
    if start == len(messages):
        raise DataError(f"{origin}: {key} must end with an assistant turn")
    if not start:
        raise DataError(f"{origin}: {key} has no turn before the assistant's")
    return messages[:start], messages[start:]


def count_shared(chosen: Messages, rejected: Messages) -> int:
    """Count the turns at the beginning of both responses that belong to the prompt.

    The rest of both begins with an assistant turn, and the prompt does not end with one.
    """
    most = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < most and without_train([chosen[shared]]) == without_train([rejected[shared]]):
        shared += 1
    while shared > 0:
        next_turns = {chosen[shared]["role"], rejected[shared]["role"]}
        if next_turns == {"assistant"} and chosen[shared - 1]["role"] != "assistant":
            return shared
        shared -= 1
    return 0


def checked_response(turns: Messages, key: str, origin: str) -> Messages:
    """Check that a response begins and ends with an assistant turn, and has one to be learned."""
    if not turns or turns[-1]["role"] != "assistant":
        raise DataError(f"{origin}: {key} must end with an assistant turn")
    if turns[0]["role"] != "assistant":
        raise DataError(f"{origin}: {key} must go on with an assistant turn after the prompt")
    if not any(map(is_learned, turns)):
        raise DataError(f"{origin}: {key}: no assistant turn is to be learned; drop the row")
    return turns


def _transcript(text: str, key: str, origin: str) -> Messages:
    """Read a transcript whose turns begin with "\\n\\nHuman:" or "\\n\\nAssistant:"."""
    read_text(text, key, origin)
    _, *parts = _SPEAKER.split(f"\n\n{text.lstrip()}")
    if not parts:
        raise DataError(f"{origin}: prompt is missing, and {key} is no transcript")
    turns: Sequence[Message] = [
        plain_turn(_ROLE_OF[speaker], content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    for turn in turns:
        if not turn["content"] and turn["role"] == "assistant":
            raise DataError(f"{origin}: {key} has an empty turn of the assistant")
    return tuple(turns)
