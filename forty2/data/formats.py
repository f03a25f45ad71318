"""Parsing of training rows in the shapes that people write them, each into one record.

    messages, conversations: a list of messages, in OpenAI's or ShareGPT's words       -> Chat
    prompt and completion, instruction and output, question and answer, ...            -> Chat
    text                                                                               -> Text
    any of their prompts with chosen and rejected: texts, messages, transcripts        -> Pair
    chosen and rejected alone, as conversations that share their beginning             -> Pair
    input, preferred_output and non_preferred_output (OpenAI's preference shape)       -> Pair
    any conversation with `label` or `kto_tag`: true or false, 1 or 0                  -> Rated

`docs/data.md` shows a row of each. A prompt is a text (one user turn) or a list of messages.
`system`, `system_prompt` and `tools` belong to every shape. Other keys become the record's `meta`;
those that would change what is learned, and are not used, are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from forty2.data.messages import (
    LEARNED,
    MEDIA,
    REASONING,
    Messages,
    is_learned,
    plain_turn,
    read_messages,
    read_text,
    read_tools,
    refuse_media,
    short,
    without_train,
)
from forty2.data.records import Chat, Message, Pair, Rated, Record, Text
from forty2.data.responses import (
    checked_response,
    count_shared,
    divide,
    read_side,
    read_whole,
)
from forty2.data.sources import read_rows
from forty2.errors import DataError
from forty2.files import JsonObject

Row = JsonObject
Shape = Literal["chat", "text", "pair", "rated"]
R = TypeVar("R")
_CONVERSATION = ("messages", "conversations", "conversation")
_SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
)
"""Keys of the preferred and the dispreferred response."""
_REJECTED_BESIDE = ("rejected_response", "rejected_message")
"""Keys of a response that is worse than the last turn of the row's messages (ms-swift, OpenPipe)."""
_VERDICT = ("label", "kto_tag")
_VERDICTS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_EXCHANGES = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
"""Keys of a prompt and the answer that belongs to it."""
_QUESTIONS = tuple(question for question, _ in _EXCHANGES)
_ANSWERS = tuple(dict.fromkeys(answer for _, answer in _EXCHANGES))
_MATERIAL = ("input", "context")
"""Keys of a text that an instruction or a question is about."""
_SYSTEM = ("system", "system_prompt")
_TOOLS = {"tools", "functions"}
_OF_A_MESSAGE = (
    *("parent_id", "message_id", "message_tree_id", "conversation_id", "dialogue_id", "turn_id"),
    *("reply_to", "role", "speaker"),
)
"""Keys of a row that is one message of a conversation."""


def parse(row: Row, origin: str) -> Record:
    """Read a row of any shape.

    Raises:
        DataError: the row has none of the shapes, or holds something that would be ignored although
            it matters; one line that names file, line and field.
    """
    if _is_pair(row):
        return parse_pair(row, origin)
    if any(key in row for key in _VERDICT):
        return parse_rated(row, origin)
    _refuse_message(row, origin)
    if "text" in row and not _exchange(row) and not {*_CONVERSATION, *_QUESTIONS[:2]} & row.keys():
        return _parse_text(row, origin)
    return parse_chat(row, origin)


def parse_chat(row: Row, origin: str) -> Chat:
    """Read a conversation."""
    messages, taken = _conversation(row, origin)
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{origin}: {taken[0]}: no assistant turn, so nothing to learn")
    if not any(map(is_learned, messages)):
        raise DataError(f"{origin}: {taken[0]}: no assistant turn is to be learned; drop the row")
    tools, meta = _rest(row, "chat", taken, origin)
    return Chat(messages=messages, tools=tools, origin=origin, meta=meta)


def parse_pair(row: Row, origin: str) -> Pair:
    """Read a preference pair; turns that both sides share at their beginning join the prompt.

    Equal sides are refused: nothing can be learned from them.
    """
    better, worse = _side_keys(row, origin)
    taken: tuple[str, ...] = _SYSTEM
    if better in _CONVERSATION:  # its last turn is the preferred response
        prompt, chosen = divide(_turns_of(row, better, origin), better, origin)
        rejected = read_side(row[worse], worse, prompt, origin)
    elif found := _prompt(row, origin):
        prompt, taken = found
        chosen, rejected = (read_side(row[k], k, prompt, origin) for k in (better, worse))
    else:
        prompt = ()
        chosen, rejected = (
            _with_system(read_whole(row[k], k, origin), row, origin) for k in (better, worse)
        )
    shared = count_shared(prompt, chosen, rejected)
    prompt = (*prompt, *chosen[:shared])
    if not prompt:
        raise DataError(
            f"{origin}: needs a prompt, or {better} and {worse} that begin with the same turns and "
            "differ from a turn of the assistant on"
        )
    chosen = checked_response(chosen[shared:], better, origin)
    rejected = checked_response(rejected[shared:], worse, origin)
    if chosen == rejected:
        raise DataError(f"{origin}: {better} and {worse} are equal; drop the row")
    tools, meta = _rest(row, "pair", (better, worse, *taken), origin)
    return Pair(
        prompt=without_train(prompt),
        chosen=chosen,
        rejected=rejected,
        tools=tools,
        origin=origin,
        meta=meta,
    )


def parse_rated(row: Row, origin: str) -> Rated:
    """Read a response with a verdict."""
    key = next(key for key in _VERDICT if key in row)
    verdict = _VERDICTS.get(str(row[key]).lower())
    if verdict is None:
        raise DataError(f"{origin}: {key} must be true or false, not {short(row[key])}")
    messages, taken = _conversation(row, origin)
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise DataError(f"{origin}: {taken[0]} must end with the assistant's turn that is rated")
    if taken[0] in _CONVERSATION:
        prompt, response = divide(messages, taken[0], origin)
    else:
        prompt, _ = _read_prompt(row, taken[0], origin)
        response = messages[len(prompt) :]
    tools, meta = _rest(row, "rated", (key, *taken), origin)
    return Rated(
        prompt=without_train(prompt),
        response=checked_response(response, taken[-1], origin),
        desirable=verdict,
        tools=tools,
        origin=origin,
        meta=meta,
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
                "prompt": _shortest(record.prompt, "user"),
                "chosen": _shortest(record.chosen, "assistant"),
                "rejected": _shortest(record.rejected, "assistant"),
            }
        case Rated():
            own = {
                "prompt": _shortest(record.prompt, "user"),
                "completion": _shortest(record.response, "assistant"),
                "label": record.desirable,
            }
    if not isinstance(record, Text) and record.tools:
        own["tools"] = [dict(tool) for tool in record.tools]
    return {**own, **{k: v for k, v in record.meta.items() if k not in own}}


# --- rows for one kind of phase -------------------------------------------------------------------


def parse_prompt(row: Row, origin: str) -> Messages:
    """Read the turns that a row asks to be answered; answers at its end are left out.

    Raises:
        DataError: it has no such turns.
    """
    key = next((key for key in _CONVERSATION if key in row and "prompt" not in row), None)
    if key is not None:  # a whole conversation may end with its answer
        turns = list(_turns_of(row, key, origin))
    else:
        found = _prompt(row, origin)
        turns = [] if found is None else list(found[0])
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not any(turn["role"] != "system" for turn in turns):
        raise DataError(f"{origin}: has no prompt ({_keys(row)})")
    return without_train(tuple(turns))


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
            tools=record.tools,
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


def _is_pair(row: Row) -> bool:
    """Return whether a row holds a response that is preferred or rejected."""
    talks = any(key in row for key in _CONVERSATION)
    if talks and any(not _is_blank(row.get(key)) for key in _REJECTED_BESIDE):
        return True
    sides = {key for pair in _SIDES for key in pair if not (talks and key in _REJECTED_BESIDE)}
    return not sides.isdisjoint(row)


def _side_keys(row: Row, origin: str) -> tuple[str, str]:
    """Return the keys of the preferred and the dispreferred response."""
    for better, worse in _SIDES:
        if better in row and worse in row:
            return better, worse
    for worse in _REJECTED_BESIDE:
        for key in _CONVERSATION:
            if worse in row and key in row and "chosen" not in row:
                return key, worse
    for better, worse in _SIDES:
        if better in row or worse in row:
            missing = worse if better in row else better
            raise DataError(f"{origin}: {missing} is missing; has {_keys(row)}")
    raise DataError(f"{origin}: chosen is missing; has {_keys(row)}")


def _exchange(row: Row) -> tuple[str, str] | None:
    """Return the keys of a row's prompt and answer; None: it has no such two."""
    asked = [question for question in _QUESTIONS if question in row]
    if len(asked) > 1 and asked[-1] == "input":  # what the instruction is about
        asked.pop()
    answered = [answer for answer in _ANSWERS if answer in row]
    pairs = [(question, answer) for question in asked for answer in answered]
    return next((pair for pair in _EXCHANGES if pair in pairs), pairs[0] if pairs else None)


def _conversation(row: Row, origin: str) -> tuple[Messages, tuple[str, ...]]:
    """Read prompt and answer together; also return the keys that hold them, the answer's last."""
    for key in _CONVERSATION:
        if key in row:
            return _turns_of(row, key, origin), (key, *_SYSTEM, key)
    exchange = _exchange(row)
    if exchange is None:
        needed = ["messages", "prompt and completion", "instruction and output"]
        if not any(key in row for key in _VERDICT):
            needed.append("text")
        raise DataError(
            f"{origin}: needs {', '.join(needed[:-1])}, or {needed[-1]}; has {_keys(row)}"
        )
    question, answer = exchange
    _refuse_second_answer(row, question, answer, origin)
    prompt, taken = _read_prompt(row, question, origin)
    thoughts = _thoughts(row, answer)
    turns = _answer(row[answer], answer, thoughts, origin)
    if not isinstance(row[question], str):  # the answers in a prompt are given, not to be learned
        given = (m["role"] == "assistant" for m in prompt)
        prompt = tuple(
            {**m, "train": False} if g else m for m, g in zip(prompt, given, strict=True)
        )
    return (*prompt, *turns), (*taken, *thoughts, answer)


def _prompt(row: Row, origin: str) -> tuple[Messages, tuple[str, ...]] | None:
    """Read the prompt and return it with the keys that hold it; None: the row has none."""
    order = ("prompt", *_CONVERSATION, *_QUESTIONS[1:])
    key = next((key for key in order if key in row), None)
    return None if key is None else _read_prompt(row, key, origin)


def _read_prompt(row: Row, key: str, origin: str) -> tuple[Messages, tuple[str, ...]]:
    """Read the prompt under a key; also return all keys that belong to it."""
    value = row[key]
    if key == "input" and isinstance(value, dict):  # OpenAI's preference shape
        inner = read_messages(value.get("messages"), f"{key}.messages", origin)
        messages = _with_system(inner, row, origin)
    elif key in _CONVERSATION or not isinstance(value, str):
        messages = _turns_of(row, key, origin)
    elif key == "prompt":
        content = read_text(value, key, origin)
        messages = _with_system((plain_turn("user", content),), row, origin)
    else:
        return _alpaca(row, key, origin), (key, *_MATERIAL, *_SYSTEM, "history")
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{origin}: {key} ends with an assistant turn; it must end before the response"
        )
    return messages, (key, *_SYSTEM)


def _turns_of(row: Row, key: str, origin: str) -> Messages:
    """Read the messages under a key, after the row's system text."""
    return _with_system(read_messages(row[key], key, origin), row, origin)


def _alpaca(row: Row, key: str, origin: str) -> Messages:
    """Read an instruction, what it is about, and the turns before it."""
    content = read_text(row[key], key, origin)
    for name in _MATERIAL:
        if name != key and not _is_blank(row.get(name)):
            content = f"{content}\n{read_text(row[name], name, origin)}"
    before: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise DataError(f"{origin}: history must be a list, not {short(history)}")
    for i, exchange in enumerate(history):
        if not (isinstance(exchange, list) and len(exchange) == 2):
            raise DataError(f"{origin}: history[{i}] must be a question and its answer")
        before.append(plain_turn("user", read_text(exchange[0], f"history[{i}][0]", origin)))
        before.append(plain_turn("assistant", read_text(exchange[1], f"history[{i}][1]", origin)))
    return _with_system((*before, plain_turn("user", content)), row, origin)


def _with_system(messages: Messages, row: Row, origin: str) -> Messages:
    """Put the row's system text before its messages, unless they begin with it.

    Raises:
        DataError: there are two different ones.
    """
    for key in _SYSTEM:
        if _is_blank(row.get(key)):
            continue
        text = read_text(row[key], key, origin)
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
    if isinstance(value, list | dict):
        messages = read_messages(value if isinstance(value, list) else [value], key, origin)
        if not any(m["role"] == "assistant" for m in messages):
            raise DataError(f"{origin}: {key}: no assistant turn, so nothing to learn")
        return messages
    return ({**plain_turn("assistant", read_text(value, key, origin)), **thoughts},)


def _thoughts(row: Row, answer: str) -> dict[str, str]:
    """Return the reasoning that stands beside an answer in text, by key.

    A single word is no reasoning but a switch ("on") or a category.
    """
    if not isinstance(row[answer], str):
        return {}
    return {key: row[key] for key in REASONING if _is_prose(row.get(key))}


def _parse_text(row: Row, origin: str) -> Text:
    """Read a plain text."""
    text = read_text(row["text"], "text", origin)
    for key in _ANSWERS:
        if not _is_blank(row.get(key)):
            raise DataError(
                f"{origin}: text stands beside {key}; rename text to prompt to learn {key} as its "
                f"answer, or remove {key} to learn the text"
            )
    _, meta = _rest(row, "text", ("text",), origin)
    return Text(text=text, origin=origin, meta=meta)


def _refuse_message(row: Row, origin: str) -> None:
    """Refuse a row that is one message of a conversation, which nothing here joins to the others."""
    if {*_CONVERSATION} & row.keys() or _exchange(row) is not None:
        return
    found = [key for key in _OF_A_MESSAGE if key in row]
    if found and {"text", "content", "value"} & row.keys():
        raise DataError(
            f"{origin}: is one message of a conversation (it has {', '.join(found)}), but a row "
            'holds a whole one: join the messages of each, the first one first, into {"messages": '
            "[...]}; to train on plain text, remove these fields"
        )


def _refuse_second_answer(row: Row, question: str, answer: str, origin: str) -> None:
    """Refuse a row whose answer is not certain, because two keys may hold it."""
    if (question, answer) in _EXCHANGES:
        return
    for other in _ANSWERS:
        if other != answer and not _is_blank(row.get(other)) and row[other] != row[answer]:
            raise DataError(
                f"{origin}: {answer} and {other} may both be the answer to {question}; remove one"
            )


def _rest(
    row: Row, shape: Shape, taken: Sequence[str], origin: str
) -> tuple[tuple[JsonObject, ...], JsonObject]:
    """Return a row's tools and its other keys.

    Args:
        taken: keys that are used.

    Raises:
        DataError: one of the other keys would change what is learned.
    """
    nested: Row = row["input"] if "input" in taken and isinstance(row.get("input"), dict) else {}
    tools: tuple[JsonObject, ...] = ()
    for holder, prefix in ((row, ""), (nested, "input.")):
        for key in _TOOLS & holder.keys():
            found = read_tools(holder[key], f"{origin}: {prefix}{key}")
            if tools and found:
                raise DataError(f"{origin}: {prefix}{key} and other tools; keep one list, as tools")
            tools = tools or found
        for key in MEDIA & holder.keys():
            refuse_media(holder[key], f"{origin}: {prefix}{key}")
    if shape == "text" and tools:
        raise DataError(f"{origin}: tools stand beside text, which has no place for them")
    _refuse_unused(row, shape, taken, origin)
    others = {k: v for k, v in nested.items() if k != "messages" and k not in _TOOLS}
    return tools, {**others, **_meta(row, *taken, *_TOOLS)}


def _refuse_unused(row: Row, shape: Shape, taken: Sequence[str], origin: str) -> None:
    """Refuse keys that would change what is learned, and that this shape has no place for."""
    unused: set[str] = {*_SYSTEM, "documents", "chat_template_kwargs", *REASONING[:2]}
    if shape == "rated" or (shape == "chat" and "prompt" in taken):
        unused.add("reasoning")
    if shape in ("pair", "rated") or "prompt" in taken:
        unused |= {*_MATERIAL, "history"}
    for key in (key for key in row if key in unused - {*taken}):
        of_reasoning = key in REASONING and not _is_prose(row[key])
        if not _is_blank(row[key]) and not of_reasoning:
            beside = next((name for name in taken if name in row), shape)
            raise DataError(
                f"{origin}: {key} stands beside {beside}, where it is not used; write it into the "
                "messages, or remove it"
            )
    for key, yes in LEARNED.items():
        if key in row and row[key] is not yes and isinstance(row[key], bool):
            raise DataError(
                f"{origin}: {key} is {str(row[key]).lower()}: a row that is not to be learned must "
                "be left out"
            )


def _is_blank(value: object) -> bool:
    """Return whether a value says nothing: null, an empty list or object, or a text of blanks."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _is_prose(value: object) -> bool:
    """Return whether a value is a text of several words."""
    return isinstance(value, str) and len(value.split()) > 1


def _shortest(messages: Messages, role: str) -> object:
    """Write messages in their shortest form: a text where they are one plain turn of the role."""
    if (
        len(messages) == 1
        and set(messages[0]) == {"role", "content"}
        and messages[0]["role"] == role
    ):
        return messages[0]["content"]
    return [dict(m) for m in messages]


def _meta(row: Row, *taken: str) -> JsonObject:
    return {key: value for key, value in row.items() if key not in taken}


def _keys(row: Row) -> str:
    """Name the first keys of a row, shortened to fit into a message."""
    names = (str(key) if str(key).isprintable() else ascii(key) for key in islice(row, 20))
    return ", ".join(name[:40] for name in names) + ", ..." * (len(row) > 20) or "no keys"
