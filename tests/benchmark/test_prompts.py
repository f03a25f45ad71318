"""Contexts and token ids as the harness has them, and which questions are asked."""

from __future__ import annotations

import pytest
from support.models import tiny_loaded as loaded

from forty2.benchmark.prompts import Prompts, Shot, pick
from forty2.errors import BenchmarkError

SHOTS = (Shot("Q: 1?", "one"), Shot("Q: 2?", "two"))
ROLES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def test_a_plain_context_is_description_examples_and_question() -> None:
    prompts = Prompts(loaded())
    assert prompts.context("Q: 3?") == "Q: 3?"
    assert (
        prompts.context("Q: 3?", SHOTS, description="Sums.\n\n")
        == "Sums.\n\nQ: 1? one\n\nQ: 2? two\n\nQ: 3?"
    )
    assert prompts.context("Q: 3?", begun="It is") == "Q: 3? It is"
    assert prompts.context("Q: 3?\n", begun="It is") == "Q: 3?\nIt is"
    assert prompts.context("Q: 3?", begun="\nIt is") == "Q: 3?\nIt is"


def test_a_chat_has_examples_as_turns_or_in_the_users_one() -> None:
    turns = Prompts(loaded(template=ROLES), chat=True)
    assert turns.context("Q: 3?", SHOTS, description="Sums.\n\n") == (
        "<system>Sums.\n\n</><user>Q: 1?</><assistant>one</><user>Q: 2?</><assistant>two</>"
        "<user>Q: 3?</><assistant>\n"
    )
    one = Prompts(loaded(template=ROLES), chat=True, multiturn=False)
    assert one.context("Q: 3?", SHOTS, description="Sums.\n\n") == (
        "<system>Sums.\n\n</><user>Q: 1? one\n\nQ: 2? two\n\nQ: 3?</><assistant>\n"
    )
    assert turns.context("Q: 3?", begun="It is\n") == "<user>Q: 3?</><assistant>It is\n"


def test_a_template_without_system_turns_loses_the_description() -> None:
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ROLES
    )
    prompts = Prompts(loaded(template=refuses), chat=True)
    assert prompts.context("Q?", description="Sums.") == "<user>Q?</><assistant>\n"
    never = Prompts(loaded(template="{{ raise_exception('no chat') }}"), chat=True)
    with pytest.raises(BenchmarkError, match="refuses the prompt: no chat"):
        never.context("Q?")


def test_no_chat_template_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="tiny: the tokenizer has no chat template"):
        Prompts(loaded(), chat=True)


def test_a_bos_is_in_front_once_and_no_eos_behind() -> None:
    bare, framed = Prompts(loaded()), Prompts(loaded(front=True))
    plain = bare.ids("hi")
    assert len(plain) == 2
    assert framed.ids("hi") == [0, *plain]
    assert framed.ids("<s>hi") == [0, *plain]


def test_a_long_prompt_loses_its_left_end() -> None:
    prompts = Prompts(loaded(length=10))
    assert prompts.prompt("abcdefgh", 4) == prompts.ids("cdefgh")
    with pytest.raises(BenchmarkError, match="10 tokens of answer do not fit into a context of 10"):
        prompts.prompt("abc", 10)


def test_a_continuation_is_what_the_whole_has_beyond_the_context() -> None:
    prompts = Prompts(loaded(front=True))
    (row,) = prompts.rows("Q?\nA:", ["B"])
    assert (row.given, row.scored) == (prompts.ids("Q?\nA:"), prompts.ids(" B")[1:])
    chat = Prompts(loaded(template=ROLES), chat=True)
    (row,) = chat.rows("<assistant>\n", ["B"])  # the white space moves over, and none is added
    assert (row.given, row.scored) == (chat.ids("<assistant>"), chat.ids("\nB"))


def test_questions_are_picked_seeded_and_in_order() -> None:
    assert pick(4, n=None, limit=None, seed=1) == [0, 1, 2, 3]
    assert pick(9, n=None, limit=3, seed=1) == [0, 1, 2]
    assert pick(2, n=None, limit=30, seed=1) == [0, 1]
    drawn = pick(100, n=10, limit=None, seed=1)
    assert drawn == sorted(set(drawn)) == pick(100, n=10, limit=None, seed=1)
    assert drawn != pick(100, n=10, limit=None, seed=2)
    assert max(pick(100, n=10, limit=12, seed=1)) < 12
    for n, limit in ((1, None), (101, None), (None, 1), (5, 4)):
        with pytest.raises(BenchmarkError, match="cannot ask"):
            pick(100, n=n, limit=limit, seed=1)
