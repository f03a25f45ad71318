"""The texts of a record: its prompt, its answer, its rejected response, and their words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from forty2.data.records import Chat, Message, Pair, Rated, Record, Text

_WORD = re.compile(r"\w+")


def prompt_of(record: Record) -> str:
    """Return the prompt as one text; of a chat, everything before its last assistant turn."""
    match record:
        case Chat():
            return _joined(record.messages[: last_answer(record.messages)])
        case Text():
            return ""
        case Pair() | Rated():
            return _joined(record.prompt)


def prompt_turns(record: Record) -> list[str]:
    """Return the prompt's texts without the system message, which many rows may share."""
    match record:
        case Chat():
            messages = record.messages[: last_answer(record.messages)]
        case Text():
            messages = ()
        case Pair() | Rated():
            messages = record.prompt
    return [str(m.get("content") or "") for m in messages if m["role"] != "system"]


def answer_of(record: Record) -> str:
    """Return the text to be learned; "" for an undesirable response."""
    match record:
        case Chat():
            return str(record.messages[last_answer(record.messages)].get("content") or "")
        case Text():
            return record.text
        case Pair():
            return response_text(record.chosen)
        case Rated():
            return response_text(record.response) if record.desirable else ""


def rejected_of(record: Record) -> str:
    """Return the text to be avoided; "" if there is none."""
    match record:
        case Pair():
            return response_text(record.rejected)
        case Rated():
            return "" if record.desirable else response_text(record.response)
        case _:
            return ""


def texts_of(record: Record) -> Iterator[str]:
    """Yield every text in a record, responses first."""
    match record:
        case Chat():
            messages: Sequence[Message] = record.messages
        case Text():
            messages = ({"role": "", "content": record.text},)
        case Pair():
            yield from map(response_text, (record.chosen, record.rejected))
            messages = record.prompt
        case Rated():
            yield response_text(record.response)
            messages = record.prompt
    yield from (m["content"] for m in messages if isinstance(m.get("content"), str))


def response_text(turns: Sequence[Message]) -> str:
    """Return a response as one text."""
    return "\n".join(str(m.get("content") or "") for m in turns)


def last_answer(messages: Sequence[Message]) -> int:
    """Return the index of the last assistant turn."""
    return max(i for i, m in enumerate(messages) if m["role"] == "assistant")


def prompt_key(record: Record) -> str:
    """Return the prompt without case and punctuation; rows that share it ask the same question."""
    return " ".join(words_of(prompt_of(record) or answer_of(record)))


def words_of(text: str) -> list[str]:
    """Return the words of a text, case folded."""
    return _WORD.findall(text.casefold())


def _joined(messages: Sequence[Message]) -> str:
    """Join messages; a lone question is its text, so that a chat and a pair about it are equal."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n".join(f"{m['role']}: {m.get('content') or ''}" for m in messages)
