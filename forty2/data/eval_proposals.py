"""Eval prompts proposed from held-out rows, in the shape that `benchmark.tasks.eval_prompts` reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from forty2.data.record_texts import answer_of
from forty2.data.records import Chat, Message, Record, Text
from forty2.files import JsonObject

MOST = 12
"""Prompts proposed; each is answered at every evaluation, which takes time."""
_SHORT = 60
"""Characters of an answer that a reply is expected to hold as a whole."""
_BEGINNING = 160
"""Characters at the beginning of an answer in which a number must be, so that a reply gets there."""
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


class _Proposal(NamedTuple):
    bucket: str
    prompt: str
    system: str
    expected: str
    match: str


def propose_eval_prompts(
    held_out: Sequence[Record], training: Sequence[Record]
) -> JsonObject | None:
    """Propose prompts with expected replies.

    A reply passes if it holds an answer that several training rows have as well (such as a refusal),
    else the first number of the held-out answer, else a short answer as a whole. Rows with several
    turns, and with answers of another kind, are left out.

    Returns:
        The file's content; None: no row is suited.
    """
    common = Counter(answer_of(record).strip() for record in training)
    found: dict[str, list[_Proposal]] = {}
    asked: set[str] = set()
    for record in held_out:
        proposal = _proposal(record, common)
        if proposal is not None and proposal.prompt not in asked:
            asked.add(proposal.prompt)
            found.setdefault(proposal.bucket, []).append(proposal)
    chosen: list[_Proposal] = []
    while any(found.values()) and len(chosen) < MOST:  # a few of each bucket, not many of one
        for proposals in found.values():
            if proposals and len(chosen) < MOST:
                chosen.append(proposals.pop(0))
    if not chosen:
        return None
    counts: Counter[str] = Counter()
    ids = []
    for proposal in chosen:
        counts[proposal.bucket] += 1
        ids.append(f"{proposal.bucket}_{counts[proposal.bucket]}")
    named = list(zip(ids, chosen, strict=True))
    systems = {proposal.system for proposal in chosen}
    return {
        "description": "Proposed from held-out rows by forty2 init: change what you expect as you like.",
        "system_prompt": (
            systems.pop() if len(systems) == 1 else {id_: one.system for id_, one in named}
        ),
        "prompts": {id_: one.prompt for id_, one in named},
        "expected_outputs": {id_: one.expected for id_, one in named},
        "match": {id_: one.match for id_, one in named},
        "form": "user",
    }


def system_of(record: Record) -> str:
    """Return the system prompt of a record; "" if it has none."""
    messages = _prompt(record)
    return str(messages[0]["content"]) if messages and messages[0]["role"] == "system" else ""


def _proposal(record: Record, common: Counter[str]) -> _Proposal | None:
    turns = [message for message in _prompt(record) if message["role"] != "system"]
    answer = answer_of(record).strip()
    plain = len(turns) == 1 and turns[0]["role"] == "user" and not getattr(record, "tools", ())
    if not answer or not plain:
        return None
    prompt, system = str(turns[0]["content"]), system_of(record)
    number = _NUMBER.search(answer[:_BEGINNING])
    if common[answer] > 1 and len(answer) <= _BEGINNING:
        return _Proposal("common", prompt, system, answer.rstrip("."), "contains")
    if number is not None:
        pattern = rf"(^|\D){re.escape(number[0])}($|\D)"
        return _Proposal("number", prompt, system, pattern, "regex")
    if len(answer) <= _SHORT:
        return _Proposal("short", prompt, system, answer.rstrip("."), "contains")
    return None


def _prompt(record: Record) -> Sequence[Message]:
    match record:
        case Text():
            return ()
        case Chat():
            return record.messages[:-1]
        case _:
            return record.prompt
