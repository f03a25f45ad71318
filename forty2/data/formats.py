"""Parsing of training rows in the shapes that people write them, each into one record.

    messages, conversations: a list of messages, in OpenAI's or ShareGPT's words       -> Chat
    prompt and completion, instruction and output, question and answer, ...            -> Chat
    text                                                                               -> Text
    any of their prompts with chosen and rejected: texts, messages, transcripts        -> Pair
    chosen and rejected alone, as conversations that share their beginning             -> Pair
    input, preferred_output and non_preferred_output (OpenAI's preference shape)       -> Pair
    instruction, and output with two texts, the better one first (LLaMA-Factory's)     -> Pair
    any conversation with `label` or `kto_tag`: true or false, 1 or 0                  -> Rated

`docs/data.md` shows a row of each. A prompt is a text (one user turn) or a list of messages.
`system`, `system_prompt` and `tools` belong to every shape. Other keys become the record's `meta`;
those that would change what is learned, and are not used, are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from forty2.data.exchanges import (
    exchange_keys,
    find_prompt,
    read_conversation,
    read_prompt,
    read_turns,
    rows_in_one,
    with_system,
)
from forty2.data.messages import (
    Messages,
    is_learned,
    read_text,
    refuse_bad_turns,
    short,
    without_train,
)
from forty2.data.other_keys import rest_of
from forty2.data.records import Chat, Pair, Rated, Record, Text
from forty2.data.responses import (
    checked_response,
    count_shared,
    divide,
    read_side,
    read_whole,
    without_transcript,
)
from forty2.data.row_keys import (
    ANSWERS,
    CONVERSATION,
    OF_A_MESSAGE,
    QUESTIONS,
    REJECTED_BESIDE,
    SIDES,
    SYSTEM,
    VERDICT,
    is_blank,
    named_keys,
    truth_of,
)
from forty2.data.sources import no_rows, read_rows
from forty2.errors import DataError
from forty2.files import JsonObject

Row = JsonObject
R = TypeVar("R")


def parse(row: Row, origin: str) -> Record:
    """Read a row of any shape.

    Raises:
        DataError: the row has none of the shapes, or holds something that would be ignored although
            it matters; one line that names file, line and field.
    """
    try:
        return _parse(row, origin)
    except DataError as error:
        if whole := rows_in_one(row):
            raise DataError(f"{origin}: {whole}") from error
        raise


def _parse(row: Row, origin: str) -> Record:
    row = _in_usual_shape(row, origin)
    if _is_pair(row):
        return parse_pair(row, origin)
    if any(key in row for key in VERDICT):
        return parse_rated(row, origin)
    _refuse_message(row, origin)
    if (
        "text" in row
        and not exchange_keys(row)
        and not {*CONVERSATION, *QUESTIONS[:2]} & row.keys()
    ):
        return _parse_text(row, origin)
    return parse_chat(row, origin)


def parse_chat(row: Row, origin: str) -> Chat:
    """Read a conversation."""
    row = _in_usual_shape(row, origin)
    messages, taken = read_conversation(row, origin)
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{origin}: {taken[0]}: no assistant turn, so nothing to learn")
    if not any(map(is_learned, messages)):
        raise DataError(f"{origin}: {taken[0]}: no assistant turn is to be learned; drop the row")
    refuse_bad_turns(messages, f"{origin}: {taken[0]}")
    tools, meta = rest_of(row, "chat", taken, origin)
    return Chat(messages=messages, tools=tools, origin=origin, meta=meta)


def parse_pair(row: Row, origin: str) -> Pair:
    """Read a preference pair; turns that both sides share at their beginning join the prompt.

    Equal sides are refused: nothing can be learned from them.
    """
    row = _in_usual_shape(row, origin)
    better, worse = _side_keys(row, origin)
    taken: tuple[str, ...] = SYSTEM
    if better in CONVERSATION:  # its last turn is the preferred response
        prompt, chosen = divide(read_turns(row, better, origin), better, origin)
        rejected = read_side(row[worse], worse, prompt, origin)
    elif found := find_prompt(row, origin):
        prompt, taken = found
        chosen, rejected = (read_side(row[k], k, prompt, origin) for k in (better, worse))
    else:
        prompt = ()
        chosen, rejected = (
            with_system(read_whole(row[k], k, origin), row, origin) for k in (better, worse)
        )
    shared = count_shared(chosen, rejected)
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
    tools, meta = rest_of(row, "pair", (better, worse, *taken), origin)
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
    row = _in_usual_shape(row, origin)
    key = next(key for key in VERDICT if key in row)
    verdict = truth_of(row[key])
    if verdict is None:
        raise DataError(
            f"{origin}: {key} must be true or false, not {short(row[key])}; if it is no verdict but what "
            f"the model should answer, rename {key} to completion, and the text to prompt"
        )
    messages, taken = read_conversation(row, origin)
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise DataError(f"{origin}: {taken[0]} must end with the assistant's turn that is rated")
    if taken[0] in CONVERSATION:
        prompt, response = divide(messages, taken[0], origin)
    else:
        prompt, _ = read_prompt(row, taken[0], origin)
        response = messages[len(prompt) :]
    tools, meta = rest_of(row, "rated", (key, *taken), origin)
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
    """Write a record in our own shape, as one row of JSON Lines.

    A plain turn is written as its text, unless the text would be read as something else: it is empty,
    or a list of messages in JSON.
    """
    row = _written(record, _shortest)
    if isinstance(record, Pair | Rated) and not _reads_as(row, record):
        return _written(record, _whole)
    return row


# --- rows for one kind of phase -------------------------------------------------------------------


def parse_prompt(row: Row, origin: str) -> Messages:
    """Read the turns that a row asks to be answered; answers at its end are left out.

    Raises:
        DataError: it has no such turns.
    """
    row = without_transcript(row, origin)
    key = next((key for key in CONVERSATION if key in row and "prompt" not in row), None)
    if key is not None:  # a whole conversation may end with its answer
        turns = list(read_turns(row, key, origin))
    else:
        found = find_prompt(row, origin)
        turns = [] if found is None else list(found[0])
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not any(turn["role"] != "system" for turn in turns):
        raise DataError(f"{origin}: has no prompt ({named_keys(row)})")
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
        f"{origin}: needs a label (true or false) or chosen and rejected; has {named_keys(row)}"
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
        raise no_rows(source)
    return records


def _without_null(row: Row) -> Row:
    """Leave out null values beside a whole shape: tables of several shapes have all keys in each row."""
    if None not in row.values():
        return row
    given = {key: value for key, value in row.items() if value is not None}
    talks = any(key in given for key in (*CONVERSATION, "text"))
    paired = any(better in given and worse in given for better, worse in SIDES)
    return given if talks or paired or exchange_keys(given) else row


def _in_usual_shape(row: Row, origin: str) -> Row:
    """Leave out nulls beside a whole shape, and write two older shapes as those that are read.

    LLaMA-Factory's older pairs have both texts in a list under `output`, the better one first; the
    first sets of pairs have transcripts as prompts.
    """
    row = _without_null(row)
    texts = row.get("output")
    if (
        isinstance(texts, list)
        and [*map(type, texts)] == [str, str]
        and "instruction" in row
        and not _is_pair(row)
    ):
        row = {key: value for key, value in row.items() if key != "output"}
        row["chosen"], row["rejected"] = texts
    return without_transcript(row, origin)


def _is_pair(row: Row) -> bool:
    """Return whether a row holds a response that is preferred or rejected."""
    talks = any(key in row for key in CONVERSATION)
    if talks and any(not is_blank(row.get(key)) for key in REJECTED_BESIDE):
        return True
    sides = {key for pair in SIDES for key in pair if not (talks and key in REJECTED_BESIDE)}
    return not sides.isdisjoint(row)


def _side_keys(row: Row, origin: str) -> tuple[str, str]:
    """Return the keys of the preferred and the dispreferred response."""
    for better, worse in SIDES:
        if better in row and worse in row:
            return better, worse
    for worse in REJECTED_BESIDE:
        for key in CONVERSATION:
            if worse in row and key in row and "chosen" not in row:
                return key, worse
    for better, worse in SIDES:
        if better in row or worse in row:
            missing = worse if better in row else better
            raise DataError(f"{origin}: {missing} is missing; has {named_keys(row)}")
    raise DataError(f"{origin}: chosen is missing; has {named_keys(row)}")


def _parse_text(row: Row, origin: str) -> Text:
    """Read a plain text."""
    text = read_text(row["text"], "text", origin)
    for key in ANSWERS:
        if not is_blank(row.get(key)):
            raise DataError(
                f"{origin}: text stands beside {key}; rename text to prompt to learn {key} as its "
                f"answer, or remove {key} to learn the text"
            )
    _, meta = rest_of(row, "text", ("text",), origin)
    return Text(text=text, origin=origin, meta=meta)


def _refuse_message(row: Row, origin: str) -> None:
    """Refuse a row that is one message of a conversation, which nothing here joins to the others."""
    if {*CONVERSATION} & row.keys() or exchange_keys(row) is not None:
        return
    found = [key for key in OF_A_MESSAGE if key in row]
    if found and {"text", "content", "value"} & row.keys():
        raise DataError(
            f"{origin}: is one message of a conversation (it has {', '.join(found)}), but a row "
            'holds a whole one: join the messages of each, the first one first, into {"messages": '
            "[...]}; to train on plain text, remove these fields"
        )


def _written(record: Record, turns: Callable[[Messages, str], object]) -> JsonObject:
    """Write a record, each side of it as `turns` writes messages whose usual role is given."""
    match record:
        case Chat():
            own: JsonObject = {"messages": _whole(record.messages)}
        case Text():
            own = {"text": record.text}
        case Pair():
            own = {
                "prompt": turns(record.prompt, "user"),
                "chosen": turns(record.chosen, "assistant"),
                "rejected": turns(record.rejected, "assistant"),
            }
        case Rated():
            own = {
                "prompt": turns(record.prompt, "user"),
                "completion": turns(record.response, "assistant"),
                "label": record.desirable,
            }
    if not isinstance(record, Text) and record.tools:
        own["tools"] = [dict(tool) for tool in record.tools]
    return {**own, **{k: v for k, v in record.meta.items() if k not in own}}


def _reads_as(row: Row, record: Record) -> bool:
    """Return whether a row is read as a record; its other keys may differ."""
    try:
        return replace(parse(row, record.origin), meta={}) == replace(record, meta={})
    except DataError:
        return False


def _whole(messages: Messages, role: str = "") -> object:
    """Write messages in full."""
    return [dict(m) for m in messages]


def _shortest(messages: Messages, role: str) -> object:
    """Write messages in their shortest form: a text where they are one plain turn of the role."""
    if (
        len(messages) == 1
        and set(messages[0]) == {"role", "content"}
        and messages[0]["role"] == role
    ):
        return messages[0]["content"]
    return _whole(messages)
