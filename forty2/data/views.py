"""What a record says: its prompt, its answer, what it rejects, and their words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from forty2.data.formats import parse
from forty2.data.records import Chat, Message, Pair, Rated, Record, Text

_WORD = re.compile(r"\w+")


def prompt_of(record: Record) -> str:
    match record:
        case Chat():
            return _joined(record.messages[: last_answer(record.messages)])
        case Text():
            return ""
        case Pair() | Rated():
            return _joined(record.prompt)


def spoken_of(record: Record) -> list[str]:
    """What the prompt says, without the system message that many rows share."""
    messages = (
        record.messages[: last_answer(record.messages)]
        if isinstance(record, Chat)
        else getattr(record, "prompt", ())
    )
    return [str(m.get("content") or "") for m in messages if m["role"] != "system"]


def answer_of(record: Record) -> str:
    match record:
        case Chat():
            return str(record.messages[last_answer(record.messages)].get("content") or "")
        case Text():
            return record.text
        case Pair():
            return record.chosen
        case Rated():
            return record.response if record.desirable else ""


def other_of(record: Record) -> str:
    """What the record says is wrong."""
    match record:
        case Pair():
            return record.rejected
        case Rated():
            return "" if record.desirable else record.response
        case _:
            return ""


def whole_of(record: Record) -> tuple[str, str, str]:
    return prompt_of(record), answer_of(record), other_of(record)


def texts_of(record: Record) -> Iterator[str]:
    match record:
        case Chat():
            messages: Sequence[Message] = record.messages
        case Text():
            messages = ({"role": "", "content": record.text},)
        case Pair():
            yield from (record.chosen, record.rejected)
            messages = record.prompt
        case Rated():
            yield record.response
            messages = record.prompt
    yield from (m["content"] for m in messages if isinstance(m.get("content"), str))


def last_answer(messages: Sequence[Message]) -> int:
    return max(i for i, m in enumerate(messages) if m["role"] == "assistant")


def _joined(messages: Sequence[Message]) -> str:
    """A lone question is its text, so that a chat and a pair about it are seen to meet."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n".join(f"{m['role']}: {m.get('content') or ''}" for m in messages)


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def prompt_key(row: Mapping[str, Any], origin: str) -> str:
    """A prompt without case and punctuation: rows that share it are about the same question."""
    record = parse(row, origin)
    return " ".join(words_of(prompt_of(record) or answer_of(record)))
