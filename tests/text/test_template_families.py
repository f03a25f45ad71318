"""What is supervised under the chat templates of real model families, against hand-written texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from support.family_tokenizers import KINDS, tokenizer_of
from support.template_families import FAMILIES, Family, Message, Talk

from forty2.data.records import Chat, Pair, Rated
from forty2.errors import DataError
from forty2.text.encoder import Encoder
from forty2.text.rows import Row

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "look_up", "arguments": {"word": "user", "most": 3}},
}


def user(text: str = "Is the question a final one?") -> Message:
    return {"role": "user", "content": text}


def bot(text: str, **more: object) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def thinking(text: str, thought: str) -> Message:
    return bot(text, reasoning_content=thought)


def calling(text: str, **more: object) -> Message:
    return bot(text, tool_calls=[CALL], **more)


RESULT = {"role": "tool", "content": "A person.", "name": "look_up", "tool_call_id": "call12345"}


def cases() -> dict[str, tuple[list[Message], bool]]:
    """Return conversations by name, and whether tools go with them."""
    plain: dict[str, list[Message]] = {
        "one turn": [user(), bot("The answer is yes.")],
        "three turns": [user(), bot("Yes."), user("Why?"), bot("So."), user(), bot("The end")],
        "a question last": [user(), bot("Yes."), user("Why?")],
        "system": [system("Be brief."), user(), bot("Yes.")],
        "empty system": [system(""), user(), bot("Yes.")],
        "system and turns": [system("Be brief."), user(), bot("Yes."), user("Why?"), bot("So.")],
        "thinking": [user(), thinking("Yes.", "Let me think.")],
        "two thinking": [user(), thinking("Yes.", "One."), user("Why?"), thinking("So.", "Two.")],
        "thinking before": [user(), thinking("Yes.", "One."), user("Why?"), bot("So.")],
        "answer in its thinking": [user(), thinking("a", "a final answer, a")],
        "thinking alone": [user(), thinking("", "Let me think.")],
        "call without tools": [user(), calling("")],
        "two answers": [user(), bot("Yes."), bot("No.")],
        "leading space": [user(), bot(" Yes.")],
        "leading new line": [user(), bot("\nYes.")],
        "leading new lines": [user(), bot("\n\nYes."), user(), bot("\n No.")],
        "space at the end": [user(), bot("Yes. "), user("Why? "), bot("So.\n")],
        "not learned": [user(), bot("Yes.", train=False), user("Why?"), bot("So.")],
        "not learned last": [user(), bot("Yes."), user("Why?"), bot("So.", train=False)],
        "equal turns": [user(), bot("Yes."), user(), bot("Yes."), user("Yes."), bot("Yes.")],
        "tag in a content": [user("<think>"), bot("<b>bold</b>")],
        "thinking in a content": [user(), bot("<think>\nOne.\n</think>\n\nYes.")],
        "two with thinking in the content": [
            *(user(), bot("<think>\nOne.\n</think>\n\nYes.")),
            *(user("Why?"), bot("<think>\nTwo.\n</think>\n\nSo.")),
        ],
    }
    for answer in (
        "a",
        "final",
        "user",
        "assistant",
        "system",
        "analysis",
        "model",
        "<|",
        "[",
        "\\n",
    ):
        plain[f"answer {answer!r}"] = [user(), bot(answer), user("a"), bot(answer)]
    tools: dict[str, list[Message]] = {
        "tools alone": [user(), bot("Yes.")],
        "call": [user(), calling("")],
        "null and call": [user(), {**calling(""), "content": None}],
        "text and call": [user(), calling("I look.")],
        "thinking and call": [user(), calling("", reasoning_content="I look.")],
        "two calls": [user(), bot("", tool_calls=[CALL, CALL])],
        "result": [user(), calling(""), RESULT, bot("It is.")],
        "system, result and turn": [
            *(system("Be brief."), user(), calling(""), RESULT, bot("It is.")),
            *(user("Why?"), bot("So.")),
        ],
    }
    return {name: (talk, name in tools) for name, talk in (plain | tools).items()}


CASES = cases()


class Expected(NamedTuple):
    """A row to learn: text and the learned spans in it."""

    text: str
    spans: list[tuple[int, int]]


def talk_of(family: Family, name: str) -> tuple[Talk, list[int]]:
    """Return a case with its reasoning under the family's key, and the turns to learn."""
    messages, tools = CASES[name]
    renamed = [
        {
            family.reasoning_key if key == "reasoning_content" else key: value
            for key, value in m.items()
        }
        for m in messages
    ]
    learned = [
        i for i, m in enumerate(renamed) if m["role"] == "assistant" and m.get("train", True)
    ]
    return Talk(renamed, [TOOL] if tools else []), learned


def expected_rows(family: Family, talk: Talk, learned: Sequence[int]) -> list[Expected]:
    """Return the rows by the family's description, one where each turn follows the one before."""
    rows: list[Expected] = []
    for turn in learned:
        prompt = family.prompt(talk.upto(turn))
        text = prompt + family.answer(talk.upto(turn + 1), turn)
        span = (len(prompt), len(text))
        if rows and family.ends and prompt.startswith(rows[-1].text):
            rows[-1] = Expected(text, [*rows[-1].spans, span])
        else:
            rows.append(Expected(text, [span]))
    return rows


def expected_ids(tokenizer: Any, row: Expected, ends: bool) -> tuple[list[int], list[bool]] | None:
    """Tokenize a row as the tokenizer does; None: a token crosses the border of a learned turn."""
    ids = list(tokenizer.encode(row.text, add_special_tokens=False))
    mask = [False] * len(ids)
    for span in row.spans:
        sides = [list(tokenizer.encode(row.text[:end], add_special_tokens=False)) for end in span]
        if any(ids[: len(side)] != side for side in sides):
            return None
        mask[len(sides[0]) : len(sides[1])] = [True] * (len(sides[1]) - len(sides[0]))
    return (ids, mask) if ends else ([*ids, tokenizer.eos_token_id], [*mask, True])
