"""Reading of a row's prompt and answer, from whatever keys hold them."""

from __future__ import annotations

from collections.abc import Mapping

from forty2.data.messages import (
    REASONING,
    Messages,
    plain_turn,
    read_messages,
    read_text,
    short,
    text_of,
    written_messages,
)
from forty2.data.other_keys import is_reasoning
from forty2.data.records import Message
from forty2.data.row_keys import (
    ALL,
    ANSWERS,
    CONVERSATION,
    EXCHANGES,
    HISTORY,
    MATERIAL,
    QUESTIONS,
    SYSTEM,
    VERDICT,
    is_blank,
    named_keys,
    plain,
)
from forty2.errors import DataError
from forty2.files import JsonObject

Row = JsonObject
_OTHER_WORDS = {
    **dict.fromkeys(("dialog", "dialogue", "turns", "chat", "message"), "messages"),
    **dict.fromkeys(("human", "user", "source", "inputtext"), "prompt"),
    **dict.fromkeys(("assistant", "bot", "gpt", "target", "targets", "outputtext"), "completion"),
    "content": "text",
}
"""Our names for keys of other programs, which are written as `plain` returns them; for advice in messages."""
_ANSWERING = ("assistant", "gpt", "tool")
"""Roles of the turns of an answer that is written as a text of JSON."""


def exchange_keys(row: Row) -> tuple[str, str] | None:
    """Return the keys of a row's prompt and answer; None: it has no such two."""
    asked = [question for question in QUESTIONS if question in row]
    if len(asked) > 1 and asked[-1] == "input":  # what the instruction is about
        asked.pop()
    answered = [answer for answer in ANSWERS if answer in row]
    pairs = [(question, answer) for question in asked for answer in answered]
    return next((pair for pair in EXCHANGES if pair in pairs), pairs[0] if pairs else None)


def read_conversation(row: Row, origin: str) -> tuple[Messages, tuple[str, ...]]:
    """Read prompt and answer together; also return the keys that hold them, the answer's last."""
    for key in CONVERSATION:
        if key in row:
            return read_turns(row, key, origin), (key, *SYSTEM, key)
    exchange = exchange_keys(row)
    if exchange is None:
        needed = ["messages", "prompt and completion", "instruction and output"]
        if not any(key in row for key in VERDICT):
            needed.append("text")
        raise DataError(
            f"{origin}: needs {', '.join(needed[:-1])}, or {needed[-1]}; has {named_keys(row)}"
            f"{_renaming(row)}"
        )
    question, answer = exchange
    _refuse_second_answer(row, question, answer, origin)
    prompt, taken = read_prompt(row, question, origin)
    thoughts = _thoughts(row, answer, origin)
    turns = _answer(row[answer], answer, thoughts, origin)
    if not isinstance(
        written_messages(row[question]), str
    ):  # the answers in a prompt are given, not to be learned
        given = (m["role"] == "assistant" for m in prompt)
        prompt = tuple(
            {**m, "train": False} if g else m for m, g in zip(prompt, given, strict=True)
        )
    return (*prompt, *turns), (*taken, *thoughts, answer)


def rows_in_one(row: Row) -> str:
    """Say that what was read as a row holds rows, and how to write them; empty: it does not."""
    values = [*row.values()]
    first = values[0] if values else None
    columns = False
    if isinstance(first, dict):
        columns = "0" in first and all(
            isinstance(v, dict) and v.keys() == first.keys() for v in values
        )
    elif isinstance(first, list) and len(first) > 1 < len(values):
        nested = any(isinstance(v, dict) for v in first)
        columns = not nested and all(isinstance(v, list) and len(v) == len(first) for v in values)
    if columns:
        return (
            "holds columns, not a row; save the table by rows: "
            'table.to_json("rows.jsonl", orient="records", lines=True)'
        )
    if values and all(isinstance(v, dict) and not ALL.isdisjoint(v) for v in values):
        return "holds rows under names; write them as a list, or each as a line of its own"
    if isinstance(row.get("row"), dict):
        return "holds a row under row; write that alone"
    return ""


def _renaming(row: Row) -> str:
    """Say which keys have another name of their own: other capitals, or another word."""
    known = {plain(key): key for key in (*CONVERSATION, *QUESTIONS, *ANSWERS, "text")}
    found = ((key, known.get(plain(key)) or _OTHER_WORDS.get(plain(key))) for key in row)
    if not any(plain(key) in known for key in row) and any(len(key.split()) > 1 for key in row):
        return "; if the first line of a table is a row, write the names of its columns above it"
    renamed = [f"{key} to {name}" for key, name in found if name not in (None, key)]
    return f"; rename {', '.join(renamed)}" if renamed else ""


def find_prompt(row: Row, origin: str) -> tuple[Messages, tuple[str, ...]] | None:
    """Read the prompt and return it with the keys that hold it; None: the row has none."""
    order = ("prompt", *CONVERSATION, *QUESTIONS[1:])
    key = next((key for key in order if key in row), None)
    return None if key is None else read_prompt(row, key, origin)


def read_prompt(row: Row, key: str, origin: str) -> tuple[Messages, tuple[str, ...]]:
    """Read the prompt under a key; also return all keys that belong to it."""
    value = written_messages(row[key])
    _refuse_second_question(row, key, origin)
    if key == "input" and isinstance(value, dict):  # OpenAI's preference shape
        inner = read_messages(value.get("messages"), f"{key}.messages", origin)
        messages = with_system(inner, row, origin)
    elif key in CONVERSATION or not isinstance(value, str):
        messages = read_turns(row, key, origin)
    elif key == "prompt":
        content = read_text(value, key, origin)
        messages = with_system((plain_turn("user", content),), row, origin)
    else:
        return _alpaca(row, key, origin), (key, *MATERIAL, *SYSTEM, HISTORY)
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{origin}: {key} ends with an assistant turn; it must end before the response"
        )
    return messages, (key, *SYSTEM)


def read_turns(row: Row, key: str, origin: str) -> Messages:
    """Read the messages under a key, after the row's system text."""
    return with_system(read_messages(row[key], key, origin), row, origin)


def _alpaca(row: Row, key: str, origin: str) -> Messages:
    """Read an instruction, what it is about, and the turns before it."""
    content = read_text(row[key], key, origin)
    for name in MATERIAL:
        if name != key and not is_blank(row.get(name)):
            content = f"{content}\n{read_text(row[name], name, origin)}"
    before: list[Message] = []
    history = row.get(HISTORY) or []
    if not isinstance(history, list):
        raise DataError(f"{origin}: history must be a list, not {short(history)}")
    for i, exchange in enumerate(history):
        if not (isinstance(exchange, list) and len(exchange) == 2):
            raise DataError(f"{origin}: history[{i}] must be a question and its answer")
        before.append(plain_turn("user", read_text(exchange[0], f"history[{i}][0]", origin)))
        before.append(plain_turn("assistant", read_text(exchange[1], f"history[{i}][1]", origin)))
    return with_system((*before, plain_turn("user", content)), row, origin)


def with_system(messages: Messages, row: Row, origin: str) -> Messages:
    """Put the row's system text before its messages, unless they begin with it.

    Raises:
        DataError: there are two different ones.
    """
    for key in SYSTEM:
        if is_blank(row.get(key)):
            continue
        text = read_text(text_of(row[key], f"{origin}: {key}"), key, origin)
        if messages[0]["role"] != "system":
            messages = (plain_turn("system", text), *messages)
        elif str(messages[0]["content"]).strip() != text.strip():
            raise DataError(
                f"{origin}: {key} is another text than the system message that the row has already; "
                "keep one"
            )
    return messages


def _answer(value: object, key: str, thoughts: Mapping[str, str], origin: str) -> Messages:
    """Read the assistant's part: a text, a message or messages."""
    if isinstance(value, str):
        decoded = written_messages(value)
        if isinstance(decoded, list) and all(
            m.get("role", m.get("from")) in _ANSWERING for m in decoded
        ):
            value = decoded  # a chat with a user's turns is the text that an answer consists of
    if isinstance(value, list | dict):
        messages = read_messages(value if isinstance(value, list) else [value], key, origin)
        if not any(m["role"] == "assistant" for m in messages):
            raise DataError(f"{origin}: {key}: no assistant turn, so nothing to learn")
        return messages
    return ({**plain_turn("assistant", read_text(value, key, origin)), **thoughts},)


def _thoughts(row: Row, answer: str, origin: str) -> dict[str, str]:
    """Return the reasoning that stands beside an answer in text, by key."""
    if not isinstance(row[answer], str):
        return {}
    found = (key for key in REASONING if is_reasoning(row.get(key)))
    return {key: read_text(row[key], key, origin) for key in found}


def _refuse_second_question(row: Row, question: str, origin: str) -> None:
    """Refuse a row whose prompt is not certain, because two keys may hold it."""
    for other in set(QUESTIONS) - {question, *MATERIAL} if question in QUESTIONS else ():
        texts = isinstance(row[question], str) and isinstance(row.get(other), str)
        if texts and not is_blank(row[other]) and row[other] != row[question]:
            raise DataError(
                f"{origin}: {question} and {other} may both be the prompt; join them, or remove one"
            )


def _refuse_second_answer(row: Row, question: str, answer: str, origin: str) -> None:
    """Refuse a row whose answer is not certain, because two keys may hold it."""
    if (question, answer) in EXCHANGES:
        return
    for other in ANSWERS:
        if other != answer and not is_blank(row.get(other)) and row[other] != row[answer]:
            raise DataError(
                f"{origin}: {answer} and {other} may both be the answer to {question}; remove one"
            )
