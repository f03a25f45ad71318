"""Read rows of JSON Lines into records. Every error names file, line and field.

A row is recognised by its keys:
    {"messages": [...]}                                      -> Chat
    {"prompt": ..., "completion": "..."}                     -> Chat
    {"prompt": ..., "chosen": "...", "rejected": "..."}      -> Pair
    {"prompt": ..., "completion": "...", "label": true}      -> Rated
A prompt is a string (one user turn) or a list of messages. Other keys are kept as `meta`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from forty2.data.records import Chat, Message, Pair, Rated, Record
from forty2.errors import DataError

R = TypeVar("R", Chat, Pair, Rated)
ROLES = ("system", "user", "assistant", "tool")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(origin, row) of each non-empty line; origin is "file:line"."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            origin = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{origin}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
                ) from error
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                cut = "" if line.endswith(b"\n") else "; the last line is cut off"
                raise DataError(f"{origin}: not a JSON object: {reason}{cut}") from error
            if not isinstance(row, dict):
                raise DataError(f"{origin}: not a JSON object but {type(row).__name__}")
            yield origin, row


def parse(row: Mapping[str, Any], origin: str) -> Record:
    """The record that a row is."""
    if "messages" in row:
        return parse_chat(row, origin)
    if "chosen" in row or "rejected" in row:
        return parse_pair(row, origin)
    if "label" in row:
        return parse_rated(row, origin)
    return parse_chat(row, origin)


def parse_chat(row: Mapping[str, Any], origin: str) -> Chat:
    """A conversation, from `messages` or from `prompt` and `completion`."""
    if "messages" in row:
        messages = _messages(row["messages"], "messages", origin)
    elif "prompt" in row and "completion" in row:
        answer = {"role": "assistant", "content": _response(row, "completion", origin)}
        messages = (*_prompt(row, origin), answer)
    else:
        raise DataError(f"{origin}: needs messages, or prompt and completion; has {_keys(row)}")
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{origin}: messages: no assistant turn, so nothing to learn")
    return Chat(
        messages=messages, origin=origin, meta=_meta(row, "messages", "prompt", "completion")
    )


def parse_pair(row: Mapping[str, Any], origin: str) -> Pair:
    """A preference pair. Equal sides are refused: they teach nothing."""
    for key in ("prompt", "chosen", "rejected"):
        if key not in row:
            raise DataError(f"{origin}: {key} is missing; has {_keys(row)}")
    chosen, rejected = _response(row, "chosen", origin), _response(row, "rejected", origin)
    if chosen == rejected:
        raise DataError(f"{origin}: chosen and rejected are equal; drop the row")
    return Pair(
        prompt=_prompt(row, origin),
        chosen=chosen,
        rejected=rejected,
        origin=origin,
        meta=_meta(row, "prompt", "chosen", "rejected"),
    )


def parse_rated(row: Mapping[str, Any], origin: str) -> Rated:
    """A response with a verdict."""
    if not isinstance(row.get("label"), bool):
        raise DataError(f"{origin}: label must be true or false")
    if "prompt" not in row or "completion" not in row:
        raise DataError(f"{origin}: needs prompt, completion and label; has {_keys(row)}")
    return Rated(
        prompt=_prompt(row, origin),
        response=_response(row, "completion", origin),
        desirable=row["label"],
        origin=origin,
        meta=_meta(row, "prompt", "completion", "label"),
    )


def read_chats(path: Path) -> list[Chat]:
    """All conversations of a file."""
    return _read(path, parse_chat)


def read_pairs(path: Path) -> list[Pair]:
    """All preference pairs of a file."""
    return _read(path, parse_pair)


def dumps(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines, the same bytes on every platform."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def train_and_valid(path: Path) -> tuple[Path, Path | None]:
    """The training file and, if there is one, the validation file of a file or folder."""
    if path.is_dir():
        valid = path / "valid.jsonl"
        return path / "train.jsonl", valid if valid.exists() else None
    return path, None


def _read(path: Path, parse_row: Callable[[Mapping[str, Any], str], R]) -> list[R]:
    records = [parse_row(row, origin) for origin, row in read_rows(path)]
    if not records:
        raise DataError(f"{path}: holds no rows")
    return records


def _prompt(row: Mapping[str, Any], origin: str) -> tuple[Message, ...]:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{origin}: prompt is empty")
        return ({"role": "user", "content": prompt},)
    messages = _messages(prompt, "prompt", origin)
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{origin}: prompt ends with an assistant turn; it must end before the response"
        )
    return messages


def _messages(value: Any, key: str, origin: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: {key} must be a list of messages, not {_short(value)}")
    for i, message in enumerate(value):
        where = f"{origin}: {key}[{i}]"
        if not isinstance(message, dict):
            raise DataError(f"{where} must be an object with role and content")
        if message.get("role") not in ROLES:
            raise DataError(
                f"{where}.role must be one of {', '.join(ROLES)}, not {_short(message.get('role'))}"
            )
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if not isinstance(content, str):
            raise DataError(f"{where}.content must be text, not {_short(content)}")
        if message["role"] == "assistant" and not content.strip() and not message.get("tool_calls"):
            raise DataError(f"{where}.content: the assistant's turn is empty")
        _check_text(content, f"{where}.content")
    return tuple(value)


def _response(row: Mapping[str, Any], key: str, origin: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{origin}: {key} must be text, not {_short(value)}")
    if not value.strip():
        raise DataError(f"{origin}: {key} is empty")
    _check_text(value, f"{origin}: {key}")
    return value


def _check_text(text: str, where: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: holds half of a surrogate pair, which is not valid Unicode")


def _meta(row: Mapping[str, Any], *taken: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in taken}


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "no keys"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
