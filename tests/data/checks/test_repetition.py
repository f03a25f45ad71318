"""Rows that repeat, contradict or leak into validation are found."""

from __future__ import annotations

import json
import random

import pytest
from support.lint_rows import chat, chats, checks, found, pairs, sentence


def test_duplicates_near_and_exact() -> None:
    rows = chats(100)
    near = json.loads(json.dumps(rows[10]))
    near["messages"][0]["content"] = f"Really? {near['messages'][0]['content']}"
    assert checks(found([*rows, rows[3], near])) == [
        ("duplicate", "error", 1),
        ("near", "warning", 1),
    ]


def test_contradictions() -> None:
    base = pairs(40)
    swapped = {**base[4], "chosen": base[4]["rejected"], "rejected": base[4]["chosen"]}
    assert ("contradiction", "error", 2) in checks(found([*base, swapped]))
    answers = [chat("Is it so?", "Yes."), chat("Is it so?", "No.")]
    assert checks(found([*chats(50), *answers])) == [("contradiction", "error", 2)]
    long = [chat("Tell a tale.", sentence(random.Random(i), 12)) for i in range(2)]
    assert checks(found([*chats(50), *long])) == [("contradiction", "warning", 2)]


@pytest.mark.parametrize("end", ["", "\n"])
def test_one_answer_both_liked_and_disliked(end: str) -> None:
    rows = [
        {"prompt": f"{p['prompt']} {i}", "completion": p["chosen"], "label": i % 2 == 0}
        for i, p in enumerate(pairs(40))
    ]
    assert checks(found(rows)) == []
    both = {**rows[3], "completion": f"{rows[3]['completion']}{end}", "label": True}
    (finding,) = (f for f in found([*rows, both]) if f.check == "contradiction")
    assert finding.level == "error" and finding.count == 2
    assert finding.message == "one answer to a prompt is both desirable and undesirable"


def test_validation_that_was_trained_on() -> None:
    rows = chats(50)
    asked = rows[8]["messages"][0]["content"]
    assert checks(found(rows, [chat(asked.upper(), "Another answer.")])) == [
        ("overlap", "error", 1)
    ]
    (finding, *_) = found([*rows, rows[2]], [rows[2], *chats(9, seed=3)])
    assert finding.check == "duplicate"
    whole = [f for f in found([*rows, rows[2]], [rows[2]]) if f.check == "overlap"]
    assert "weighted before the split" in whole[0].message
    for key, level in (("entity", "error"), ("template", "warning")):
        train = [{**row, key: f"Thing {n}"} for n, row in enumerate(chats(30))]
        valid = [{**row, key: f"thing {n + 25}"} for n, row in enumerate(chats(9, seed=2))]
        assert checks(found(train, valid)) == [("overlap", level, 5)]
