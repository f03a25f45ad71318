"""Held-out rows are enough, and none of them has a near copy in training."""

from __future__ import annotations

import pytest

from forty2.data.formats import parse
from forty2.data.holding_out import hold_out, rows_to_hold_out
from forty2.data.records import Record
from forty2.errors import DataError


def chat(question: str, answer: str = "Yes.", **meta: object) -> Record:
    return parse({"prompt": question, "completion": answer, **meta}, "x:1")


def pair(question: str) -> Record:
    return parse({"prompt": question, "chosen": "Yes.", "rejected": "No."}, "x:1")


@pytest.mark.parametrize(
    ("rows", "held_out"), [(3, 1), (30, 10), (60, 20), (90, 20), (300, 60), (9000, 200)]
)
def test_a_fifth_is_held_out_within_bounds(rows: int, held_out: int) -> None:
    assert rows_to_hold_out(rows) == held_out
    chosen = hold_out({"chats": [chat(f"Number {n * 7919}?") for n in range(rows)]})
    assert sum(chosen["chats"]) == held_out


def test_near_copies_stay_on_one_side() -> None:
    long = (
        "please tell me in a few plain words how one mends the flat back tyre of an old city bike"
    )
    near = [
        chat(f"{n}: {long}, thank you very much for your help in this matter, dear Mara")
        for n in range(9)
    ]
    others = [chat(f"What is {n * 104729}?") for n in range(40)]
    for seed in range(10):
        chosen = hold_out({"chats": [*near, *others]}, seed)["chats"]
        assert len(set(chosen[: len(near)])) == 1


def test_a_prompt_that_differs_in_case_or_system_text_is_the_same() -> None:
    alike = [
        chat("How are you?", "a"),
        chat("how are you", "b"),
        chat("How are you?", "c", system="s"),
    ]
    for seed in range(10):
        chosen = hold_out({"chats": [*alike, *(chat(f"What is {n}?") for n in range(30))]}, seed)
        assert len(set(chosen["chats"][:3])) == 1


def test_a_question_held_out_of_one_kind_is_not_trained_on_in_another() -> None:
    questions = [f"What is {n * 104729}?" for n in range(60)]
    for seed in range(5):
        chosen = hold_out(
            {"chats": [chat(q) for q in questions], "pairs": [pair(q) for q in questions[::-1]]},
            seed,
        )
        assert chosen["chats"] == chosen["pairs"][::-1] and sum(chosen["chats"]) == 20


def test_rows_about_one_entity_stay_together() -> None:
    rows = [chat(f"What is {n * 104729}?", entity="bike" if n < 5 else f"e{n}") for n in range(60)]
    for seed in range(10):
        assert len(set(hold_out({"chats": rows}, seed)["chats"][:5])) == 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [(["a", "b"], "too few"), (["What is a bike?"] * 40, "nearly all ask the same")],
)
def test_what_cannot_be_divided_is_refused(rows: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        hold_out({"chats": [chat(question, str(n)) for n, question in enumerate(rows)]})
