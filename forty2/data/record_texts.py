"""The texts of a record: its prompt, its answer, its rejected response, and their words.

Whoever reads a record as text does it here, so that reasoning and tool calls count as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from forty2.data.messages import REASONING
from forty2.data.records import Chat, Message, Pair, Rated, Record, Text

_WORD = re.compile(r"\w+")


def text_of(messages: Sequence[Message]) -> str:
    """Return messages as one text; a lone message is its own text, without its role."""
    if len(messages) == 1:
        return turn_text(messages[0])
    return "\n".join(f"{m['role']}: {turn_text(m)}" for m in messages)


def turn_text(message: Message) -> str:
    """Return all that a turn says: its reasoning, its content and its tool calls, as `name({...})`."""
    parts = [str(message[key]) for key in REASONING if message.get(key)]
    parts.append(str(message.get("content") or ""))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        parts.append(f"{function['name']}({arguments})")
    return "\n".join(filter(None, parts)) if len(parts) > 1 else parts[0]


def prompt_of(record: Record) -> str:
    """Return the prompt as one text, with the tools that it offers.

    Of a chat, it is everything before the last assistant turn.
    """
    if isinstance(record, Text):
        return ""
    prompt = text_of(_prompt(record))
    tools = json.dumps(record.tools, ensure_ascii=False) if record.tools else ""
    return f"{prompt}\n{tools}" if tools else prompt


def prompt_turns(record: Record) -> list[str]:
    """Return the prompt's texts without the system message, which many rows may share."""
    return [turn_text(m) for m in _prompt(record) if m["role"] != "system"]


def answer_of(record: Record) -> str:
    """Return the text to be learned; "" for an undesirable response."""
    match record:
        case Chat():
            return turn_text(record.messages[last_answer(record.messages)])
        case Text():
            return record.text
        case Pair():
            return text_of(record.chosen)
        case Rated():
            return text_of(record.response) if record.desirable else ""


def rejected_of(record: Record) -> str:
    """Return the text to be avoided; "" if there is none."""
    match record:
        case Pair():
            return text_of(record.rejected)
        case Rated():
            return "" if record.desirable else text_of(record.response)
        case _:
            return ""


def messages_of(record: Record) -> list[Message]:
    """Return all messages of a record: prompt and responses; none for a plain text."""
    match record:
        case Chat():
            return list(record.messages)
        case Pair():
            return [*record.prompt, *record.chosen, *record.rejected]
        case Rated():
            return [*record.prompt, *record.response]
        case Text():
            return []


def texts_of(record: Record) -> Iterator[str]:
    """Yield every text in a record, responses first."""
    match record:
        case Chat():
            messages: Sequence[Message] = record.messages
        case Text():
            yield record.text
            return
        case Pair():
            messages = (*record.chosen, *record.rejected, *record.prompt)
        case Rated():
            messages = (*record.response, *record.prompt)
    for message in messages:
        yield from (message[key] for key in REASONING if message.get(key))
        if message.get("content"):
            yield message["content"]
        if message.get("tool_calls"):
            yield from (turn_text({"tool_calls": [call]}) for call in message["tool_calls"])


def last_answer(messages: Sequence[Message]) -> int:
    """Return the index of the last assistant turn."""
    return max(i for i, m in enumerate(messages) if m["role"] == "assistant")


def prompt_key(record: Record) -> str:
    """Return the prompt without case and punctuation; rows that share it ask the same question."""
    return " ".join(words_of(prompt_of(record) or answer_of(record)))


def words_of(text: str) -> list[str]:
    """Return the words of a text, case folded."""
    return _WORD.findall(text.casefold())


def _prompt(record: Record) -> Sequence[Message]:
    match record:
        case Chat():
            return record.messages[: last_answer(record.messages)]
        case Text():
            return ()
        case Pair() | Rated():
            return record.prompt
