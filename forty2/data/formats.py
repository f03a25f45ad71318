"""What a row means: the shapes in which people keep training data, each read into one record.

    {"messages": [...]}, {"conversations": [{"from": "human", "value": ...}, ...]}     -> Chat
    {"prompt": ..., "completion": ...}, {"instruction": ..., "input": ..., "output"}   -> Chat
    {"text": "..."}                                                                    -> Text
    any of their prompts with `chosen` and `rejected`: texts, messages, transcripts    -> Pair
    `chosen` and `rejected` alone, as transcripts that share their beginning           -> Pair
    any of the first two lines with `label` or `kto_tag`: true or false                -> Rated

A prompt is a text (one user turn) or a list of messages. Other keys are kept as `meta`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from forty2.data.records import Chat, Message, Pair, Rated, Record, Text
from forty2.data.sources import read_rows
from forty2.errors import DataError

R = TypeVar("R")
ROLES = ("system", "user", "assistant", "tool")
_FROM = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""ShareGPT's names for the roles."""
_CONVERSATION = ("messages", "conversations")
_VERDICT = ("label", "kto_tag")
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def parse(row: Mapping[str, Any], origin: str) -> Record:
    """The record that a row is.

    Raises:
        DataError: one line that names file, line and field.
    """
    if "chosen" in row or "rejected" in row:
        return parse_pair(row, origin)
    if any(key in row for key in _VERDICT):
        return parse_rated(row, origin)
    if set(row) & {"text"} and not set(row) & {*_CONVERSATION, "prompt", "instruction"}:
        return Text(text=_text(row["text"], "text", origin), origin=origin, meta=_meta(row, "text"))
    return parse_chat(row, origin)


def parse_chat(row: Mapping[str, Any], origin: str) -> Chat:
    """A conversation."""
    messages, taken = _conversation(row, origin)
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{origin}: {taken[0]}: no assistant turn, so nothing to learn")
    return Chat(messages=messages, origin=origin, meta=_meta(row, *taken))


def parse_pair(row: Mapping[str, Any], origin: str) -> Pair:
    """A preference pair. Equal sides are refused: they teach nothing."""
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


def parse_rated(row: Mapping[str, Any], origin: str) -> Rated:
    """A response with a verdict."""
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
    """All conversations and texts of a source."""
    return _read(source, parse_imitated)


def read_pairs(source: str | Path) -> list[Pair]:
    """All preference pairs of a source."""
    return _read(source, parse_pair)


def read_rated(source: str | Path) -> list[Rated]:
    """All rated responses of a source; a preference pair is two of them."""
    return [rated for several in _read(source, parse_rated_rows) for rated in several]


def read_records(source: str | Path) -> list[Record]:
    """All records of a source, of whatever kind."""
    return _read(source, parse)


def to_row(record: Record) -> dict[str, Any]:
    """A record in our own shape, as one row of JSON Lines."""
    match record:
        case Chat():
            own: dict[str, Any] = {"messages": [dict(m) for m in record.messages]}
        case Text():
            own = {"text": record.text}
        case Pair():
            own = {
                "prompt": _plain(record.prompt),
                "chosen": record.chosen,
                "rejected": record.rejected,
            }
        case Rated():
            own = {
                "prompt": _plain(record.prompt),
                "completion": record.response,
                "label": record.desirable,
            }
    return {**own, **{k: v for k, v in record.meta.items() if k not in own}}


# --- parts ----------------------------------------------------------------------------------------


def parse_imitated(row: Mapping[str, Any], origin: str) -> Chat | Text:
    """A conversation or a text: what supervised fine-tuning reads."""
    record = parse(row, origin)
    if isinstance(record, Chat | Text):
        return record
    what = "a preference pair" if isinstance(record, Pair) else "a rated response"
    raise DataError(f"{origin}: is {what}, but this phase imitates conversations")


def parse_rated_rows(row: Mapping[str, Any], origin: str) -> list[Rated]:
    """The rated responses in a row: one, or the two sides of a preference pair."""
    record = parse(row, origin)
    match record:
        case Rated():
            return [record]
        case Pair():
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
    raise DataError(
        f"{origin}: needs a label (true or false) or chosen and rejected; has {_keys(row)}"
    )


def _read(source: str | Path, parse_row: Callable[[Mapping[str, Any], str], R]) -> list[R]:
    records = [parse_row(row, origin) for origin, row in read_rows(source)]
    if not records:
        raise DataError(f"{source}: holds no rows")
    return records


Messages = tuple[Message, ...]


def _conversation(row: Mapping[str, Any], origin: str) -> tuple[Messages, tuple[str, ...]]:
    """Prompt and answer together, and the keys that they were under."""
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


def _prompt(row: Mapping[str, Any], origin: str) -> tuple[Messages, tuple[str, ...]]:
    """What is answered, and the keys it was under; empty where the row has none."""
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


def _alpaca(row: Mapping[str, Any], key: str, origin: str) -> Messages:
    """An instruction, what it is about, and the turns before it."""
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


def _system(row: Mapping[str, Any]) -> Messages:
    system = row.get("system")
    return (_turn("system", system),) if isinstance(system, str) and system.strip() else ()


def _answer(value: Any, key: str, origin: str) -> Messages:
    """The assistant's part: a text, or messages."""
    if isinstance(value, list):
        return _messages(value, key, origin)
    return (_turn("assistant", _text(value, key, origin)),)


def _side(value: Any, key: str, prompt: Messages, origin: str) -> str:
    """A response: a text, one message, or a transcript that begins with the prompt."""
    if not isinstance(value, list | dict):
        return _text(value, key, origin)
    messages = _messages(value if isinstance(value, list) else [value], key, origin)
    if len(messages) > 1:
        asked = prompt if messages[0]["role"] == "system" else _unsystem(prompt)
        if _spoken(messages[:-1]) != _spoken(asked):
            raise DataError(f"{origin}: {key}: its first turns are not the prompt")
    return _last(messages, key, origin)


def _transcripts(row: Mapping[str, Any], origin: str) -> tuple[Messages, str, str]:
    """Prompt and responses of two whole conversations."""
    chosen, rejected = (
        _spoken_text(row[key], key, origin)
        if isinstance(row[key], str)
        else _messages(row[key], key, origin)
        for key in ("chosen", "rejected")
    )
    if len(chosen) < 2 or _spoken(chosen[:-1]) != _spoken(rejected[:-1]):
        raise DataError(
            f"{origin}: needs a prompt, or chosen and rejected that differ in the last turn alone"
        )
    return chosen[:-1], _last(chosen, "chosen", origin), _last(rejected, "rejected", origin)


def _spoken_text(text: str, key: str, origin: str) -> Messages:
    """Messages of a transcript whose turns begin with "\\n\\nHuman:" or "\\n\\nAssistant:"."""
    _text(text, key, origin)
    _, *parts = _SPEAKER.split(f"\n\n{text.lstrip()}")
    if not parts:
        raise DataError(f"{origin}: prompt is missing, and {key} is no transcript")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(_turn(_FROM[who.lower()], said.strip()) for who, said in turns)


def _last(messages: Messages, key: str, origin: str) -> str:
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{origin}: {key} must end with an assistant turn")
    if messages[-1].get("tool_calls"):
        raise DataError(f"{origin}: {key} ends with a tool call; only answers in text are compared")
    return _text(messages[-1].get("content"), key, origin)


def _check_open(messages: Messages, key: str, origin: str) -> None:
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{origin}: {key} ends with an assistant turn; it must end before the response"
        )


def _messages(value: Any, key: str, origin: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: {key} must be a list of messages, not {_short(value)}")
    return tuple(_message(m, f"{origin}: {key}[{i}]") for i, m in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object with role and content")
    message: Message = value
    if "from" in message and "value" in message:
        rest = {k: v for k, v in message.items() if k not in ("from", "value")}
        role, content = _FROM.get(str(message["from"])), message["value"]
        message = {"role": role, "content": content, **rest}
    if message.get("role") not in ROLES:
        said = message.get("role")
        raise DataError(f"{where}.role must be one of {', '.join(ROLES)}, not {_short(said)}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return message
    if not isinstance(content, str):
        raise DataError(f"{where}.content must be text, not {_short(content)}")
    if message["role"] == "assistant" and not content.strip() and not message.get("tool_calls"):
        raise DataError(f"{where}.content: the assistant's turn is empty")
    _check_text(content, f"{where}.content")
    return message


def _text(value: Any, key: str, origin: str) -> str:
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


def _unsystem(messages: Messages) -> Messages:
    return tuple(m for m in messages if m["role"] != "system")


def _spoken(messages: Sequence[Message]) -> list[tuple[Any, Any]]:
    return [(m["role"], m.get("content")) for m in messages]


def _plain(prompt: Messages) -> Any:
    """A prompt as shortly as it can be written."""
    if len(prompt) == 1 and set(prompt[0]) == {"role", "content"} and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return [dict(m) for m in prompt]


def _meta(row: Mapping[str, Any], *taken: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in taken}


def _keys(row: Mapping[str, Any]) -> str:
    """Of a row, as far as a message has room."""
    names = (str(key) if str(key).isprintable() else ascii(key) for key in islice(row, 20))
    return ", ".join(name[:40] for name in names) + ", ..." * (len(row) > 20) or "no keys"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
