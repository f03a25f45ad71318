"""Parsing of training rows in the shapes that people write them, each into one record.

    {"messages": [...]}, {"conversations": [{"from": "human", "value": ...}, ...]}     -> Chat
    {"prompt": ..., "completion": ...}, {"instruction": ..., "input": ..., "output"}   -> Chat
    {"text": "..."}                                                                    -> Text
    any of their prompts with `chosen` and `rejected`: texts, messages, transcripts    -> Pair
    `chosen` and `rejected` alone, as transcripts that share their beginning           -> Pair
    any of the first two lines with `label` or `kto_tag`: true or false                -> Rated

A prompt is a text (one user turn) or a list of messages. Other keys become the record's `meta`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from forty2.data.record_texts import response_text
from forty2.data.records import Chat, Message, Pair, Rated, Record, Text
from forty2.data.sources import read_rows
from forty2.errors import DataError
from forty2.files import JsonObject

Row = JsonObject
R = TypeVar("R")
Messages = tuple[Message, ...]
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""Our role for each of ShareGPT's names."""
_CONVERSATION = ("messages", "conversations")
_VERDICT = ("label", "kto_tag")
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def parse(row: Row, origin: str) -> Record:
    """Read a row of any shape.

    Raises:
        DataError: the row has none of the shapes; one line that names file, line and field.
    """
    if "chosen" in row or "rejected" in row:
        return parse_pair(row, origin)
    if any(key in row for key in _VERDICT):
        return parse_rated(row, origin)
    if set(row) & {"text"} and not set(row) & {*_CONVERSATION, "prompt", "instruction"}:
        return Text(text=_text(row["text"], "text", origin), origin=origin, meta=_meta(row, "text"))
    return parse_chat(row, origin)


def parse_chat(row: Row, origin: str) -> Chat:
    """Read a conversation."""
    messages, taken = _conversation(row, origin)
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{origin}: {taken[0]}: no assistant turn, so nothing to learn")
    return Chat(messages=messages, origin=origin, meta=_meta(row, *taken))


def parse_pair(row: Row, origin: str) -> Pair:
    """Read a preference pair. Equal sides are refused: nothing can be learned from them."""
    for key in ("chosen", "rejected"):
        if key not in row:
            raise DataError(f"{origin}: {key} is missing; has {_keys(row)}")
    prompt, taken = _prompt(row, origin)
    if prompt:
        chosen, rejected = (_side(row[key], key, prompt, origin) for key in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = _transcripts(row, origin)
    if chosen == rejected:
        raise DataError(f"{origin}: chosen and rejected are equal; drop the row")
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        origin=origin,
        meta=_meta(row, "chosen", "rejected", *taken),
    )


def parse_rated(row: Row, origin: str) -> Rated:
    """Read a response with a verdict."""
    key = next(key for key in _VERDICT if key in row)
    if not isinstance(row[key], bool):
        raise DataError(f"{origin}: {key} must be true or false, not {_short(row[key])}")
    messages, taken = _conversation(row, origin)
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise DataError(f"{origin}: {taken[0]} must end with the assistant's turn that is rated")
    return Rated(
        prompt=messages[:-1],
        response=_last(messages, taken[0], origin),
        desirable=row[key],
        origin=origin,
        meta=_meta(row, key, *taken),
    )


def read_chats(source: str | Path) -> list[Chat | Text]:
    """Read all conversations and texts of a source."""
    return _read(source, parse_imitated)


def read_pairs(source: str | Path) -> list[Pair]:
    """Read all preference pairs of a source."""
    return _read(source, parse_pair)


def read_rated(source: str | Path) -> list[Rated]:
    """Read all rated responses of a source; a preference pair counts as two of them."""
    return [side for record in _read(source, parse_rated_or_pair) for side in rated_sides(record)]


def read_records(source: str | Path) -> list[Record]:
    """Read all records of a source, of whatever kind."""
    return _read(source, parse)


def to_row(record: Record) -> JsonObject:
    """Write a record in our own shape, as one row of JSON Lines."""
    match record:
        case Chat():
            own: JsonObject = {"messages": [dict(m) for m in record.messages]}
        case Text():
            own = {"text": record.text}
        case Pair():
            own = {
                "prompt": _plain(record.prompt),
                "chosen": response_text(record.chosen),
                "rejected": response_text(record.rejected),
            }
        case Rated():
            own = {
                "prompt": _plain(record.prompt),
                "completion": response_text(record.response),
                "label": record.desirable,
            }
    return {**own, **{k: v for k, v in record.meta.items() if k not in own}}


# --- rows for one kind of phase -------------------------------------------------------------------


def parse_imitated(row: Row, origin: str) -> Chat | Text:
    """Read a conversation or a text, for supervised fine-tuning."""
    record = parse(row, origin)
    if isinstance(record, Chat | Text):
        return record
    kind = "a preference pair" if isinstance(record, Pair) else "a rated response"
    raise DataError(f"{origin}: is {kind}, but this phase imitates conversations")


def parse_rated_or_pair(row: Row, origin: str) -> Rated | Pair:
    """Read a rated response, or a preference pair, which counts as two of them."""
    record = parse(row, origin)
    if isinstance(record, Rated | Pair):
        return record
    raise DataError(
        f"{origin}: needs a label (true or false) or chosen and rejected; has {_keys(row)}"
    )


def rated_sides(record: Rated | Pair) -> list[Rated]:
    """Return a rated response alone, and a pair as a desirable and an undesirable response."""
    if isinstance(record, Rated):
        return [record]
    return [
        Rated(
            prompt=record.prompt,
            response=response,
            desirable=desirable,
            origin=record.origin,
            meta=record.meta,
        )
        for response, desirable in ((record.chosen, True), (record.rejected, False))
    ]


# --- parts ----------------------------------------------------------------------------------------


def _read(source: str | Path, parse_row: Callable[[Row, str], R]) -> list[R]:
    records = [parse_row(row, origin) for origin, row in read_rows(source)]
    if not records:
        raise DataError(f"{source}: holds no rows")
    return records


def _conversation(row: Row, origin: str) -> tuple[Messages, tuple[str, ...]]:
    """Read prompt and answer together; also return the keys that hold them."""
    for key in _CONVERSATION:
        if key in row:
            return _system(row) + _messages(row[key], key, origin), (key, "system")
    for question, answer in (("prompt", "completion"), ("instruction", "output")):
        if question in row and answer in row:
            prompt, taken = _prompt(row, origin)
            return (*prompt, *_answer(row[answer], answer, origin)), (*taken, answer)
    needed = ["messages", "prompt and completion", "instruction and output"]
    if not any(key in row for key in _VERDICT):
        needed.append("text")
    raise DataError(f"{origin}: needs {', '.join(needed[:-1])}, or {needed[-1]}; has {_keys(row)}")


def _prompt(row: Row, origin: str) -> tuple[Messages, tuple[str, ...]]:
    """Read the prompt; also return the keys that hold it. Without a prompt, both are empty."""
    if "prompt" in row:
        if isinstance(row["prompt"], str):
            content = _text(row["prompt"], "prompt", origin)
            return (*_system(row), _turn("user", content)), ("prompt", "system")
        messages = _messages(row["prompt"], "prompt", origin)
        _check_open(messages, "prompt", origin)
        return messages, ("prompt",)
    for key in _CONVERSATION:
        if key in row:
            messages = _system(row) + _messages(row[key], key, origin)
            _check_open(messages, key, origin)
            return messages, (key, "system")
    if "instruction" in row or "question" in row:
        key = "instruction" if "instruction" in row else "question"
        return _alpaca(row, key, origin), (key, "input", "system", "history")
    return (), ()


def _alpaca(row: Row, key: str, origin: str) -> Messages:
    """Read an instruction, its input, and the turns before it."""
    content = _text(row[key], key, origin)
    if row.get("input"):
        content = f"{content}\n{_text(row['input'], 'input', origin)}"
    before: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise DataError(f"{origin}: history must be a list, not {_short(history)}")
    for i, exchange in enumerate(history):
        if not (isinstance(exchange, list) and len(exchange) == 2):
            raise DataError(f"{origin}: history[{i}] must be a question and its answer")
        before.append(_turn("user", _text(exchange[0], f"history[{i}][0]", origin)))
        before.append(_turn("assistant", _text(exchange[1], f"history[{i}][1]", origin)))
    return (*_system(row), *before, _turn("user", content))


def _system(row: Row) -> Messages:
    system = row.get("system")
    return (_turn("system", system),) if isinstance(system, str) and system.strip() else ()


def _answer(value: object, key: str, origin: str) -> Messages:
    """Read the assistant's part: a text, or messages."""
    if isinstance(value, list):
        return _messages(value, key, origin)
    return (_turn("assistant", _text(value, key, origin)),)


def _side(value: object, key: str, prompt: Messages, origin: str) -> Messages:
    """Read a response: a text, one message, or a transcript that begins with the prompt."""
    if not isinstance(value, list | dict):
        return (_turn("assistant", _text(value, key, origin)),)
    messages = _messages(value if isinstance(value, list) else [value], key, origin)
    if len(messages) > 1:
        same = prompt if messages[0]["role"] == "system" else _without_system(prompt)
        if _contents(messages[:-1]) != _contents(same):
            raise DataError(f"{origin}: {key}: its first turns are not the prompt")
    return _last(messages, key, origin)


def _transcripts(row: Row, origin: str) -> tuple[Messages, Messages, Messages]:
    """Read prompt and responses of two whole conversations."""
    chosen, rejected = (
        _transcript(row[key], key, origin)
        if isinstance(row[key], str)
        else _messages(row[key], key, origin)
        for key in ("chosen", "rejected")
    )
    if len(chosen) < 2 or _contents(chosen[:-1]) != _contents(rejected[:-1]):
        raise DataError(
            f"{origin}: needs a prompt, or chosen and rejected that differ in the last turn alone"
        )
    return chosen[:-1], _last(chosen, "chosen", origin), _last(rejected, "rejected", origin)


def _transcript(text: str, key: str, origin: str) -> Messages:
    """Read a transcript whose turns begin with "\\n\\nHuman:" or "\\n\\nAssistant:"."""
    _text(text, key, origin)
    _, *parts = _SPEAKER.split(f"\n\n{text.lstrip()}")
    if not parts:
        raise DataError(f"{origin}: prompt is missing, and {key} is no transcript")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        _turn(_SHAREGPT_ROLES[speaker.lower()], content.strip()) for speaker, content in turns
    )


def _last(messages: Messages, key: str, origin: str) -> Messages:
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{origin}: {key} must end with an assistant turn")
    if messages[-1].get("tool_calls"):
        raise DataError(f"{origin}: {key} ends with a tool call; only answers in text are compared")
    _text(messages[-1].get("content"), key, origin)
    return (messages[-1],)


def _check_open(messages: Messages, key: str, origin: str) -> None:
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{origin}: {key} ends with an assistant turn; it must end before the response"
        )


def _messages(value: object, key: str, origin: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: {key} must be a list of messages, not {_short(value)}")
    return tuple(_message(m, f"{origin}: {key}[{i}]") for i, m in enumerate(value))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object with role and content")
    message: Message = value
    if "from" in message and "value" in message:
        rest = {k: v for k, v in message.items() if k not in ("from", "value")}
        role, content = _SHAREGPT_ROLES.get(str(message["from"])), message["value"]
        message = {"role": role, "content": content, **rest}
    if message.get("role") not in ROLES:
        role = message.get("role")
        raise DataError(f"{where}.role must be one of {', '.join(ROLES)}, not {_short(role)}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return message
    if not isinstance(content, str):
        raise DataError(f"{where}.content must be text, not {_short(content)}")
    if message["role"] == "assistant" and not content.strip() and not message.get("tool_calls"):
        raise DataError(f"{where}.content: the assistant's turn is empty")
    _check_text(content, f"{where}.content")
    return message


def _text(value: object, key: str, origin: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{origin}: {key} must be text, not {_short(value)}")
    if not value.strip():
        raise DataError(f"{origin}: {key} is empty")
    _check_text(value, f"{origin}: {key}")
    return value


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: holds half of a surrogate pair, which is not valid Unicode"
        ) from error


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _without_system(messages: Messages) -> Messages:
    return tuple(m for m in messages if m["role"] != "system")


def _contents(messages: Sequence[Message]) -> list[tuple[object, object]]:
    return [(m["role"], m.get("content")) for m in messages]


def _plain(prompt: Messages) -> object:
    """Write a prompt in its shortest form: a text where it is one user turn."""
    if len(prompt) == 1 and set(prompt[0]) == {"role", "content"} and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return [dict(m) for m in prompt]


def _meta(row: Row, *taken: str) -> JsonObject:
    return {key: value for key, value in row.items() if key not in taken}


def _keys(row: Row) -> str:
    """Name the first keys of a row, shortened to fit into a message."""
    names = (str(key) if str(key).isprintable() else ascii(key) for key in islice(row, 20))
    return ", ".join(name[:40] for name in names) + ", ..." * (len(row) > 20) or "no keys"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
