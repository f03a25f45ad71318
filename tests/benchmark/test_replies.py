"""Faults that replies show: one reply to everything, and broken tags."""

from __future__ import annotations

import pytest
from support.tagged_tokenizer import TOKENIZER, ids

from forty2.benchmark.replies import Tags, Turn, collapsed, never_emitted, resembles


def test_collapse() -> None:
    prompts = ["Say hello.", "1 + 1?", "Who wrote Faust?", "Name a colour."]
    assert collapsed(prompts, ["Yes."] * 4)
    assert collapsed(prompts, ["Yes.", "Yes. ", "Yes.\n", "Yes."])
    assert not collapsed(prompts, ["Yes.", "Yes.", "Yes.", "yes."])
    assert not collapsed(prompts, [""] * 4)  # silence is shown by what passes
    assert not collapsed(["Is it?", "Was it?"], ["Yes.", "Yes."])
    assert not collapsed(["Say hello.", "Say Hello.", "Say HELLO.", "say hello."], ["Hello."] * 4)
    assert not collapsed(prompts[:1] * 9, ["Yes."] * 9)
    assert not collapsed([], [])


@pytest.mark.parametrize(
    ("reply", "expected", "alike"),
    [
        ("HELLO", "hello.", True),
        ("Hello to you, my friend!", "hello.", True),
        ("Zantor quexlin", "Zanthor quexling", True),
        ("It is 7.", "7", True),
        ("The capital of France is Paris.", "Paris", True),
        ("我喜欢", "我喜欢你", True),
        ("London", "Paris", False),
        ("the of and the of", "hello.", False),
        ("", "hello.", False),
    ],
)
def test_a_reply_resembles_what_is_expected(reply: str, expected: str, alike: bool) -> None:
    assert resembles(reply, expected) == alike


@pytest.mark.parametrize(
    ("prompt", "reply", "text"),
    [
        ("<bot>", "Hi.", "Hi."),
        ("<bot>", "Hi.</bot>", "Hi."),
        ("Q: Hi?", "Hi.", "Hi."),
        ("Q: Hi?", "<tool>x</tool>Hi.", "<tool>x</tool>Hi."),
        ("<user><tool>x</tool></user><bot>", "Hi.</bot>", "Hi."),
        ("<user>a</user><bot>", "<tool>x</tool>Hi.</bot>", "<tool>x</tool>Hi."),
        ("<user>a</user><bot><think>", "x</think>Hi.</bot>", "x</think>Hi."),
        ("<think>", "x</think>Hi.", "x</think>Hi."),
        ("<bot>", "<think><tool>x</tool></think>Hi.", "<think><tool>x</tool></think>Hi."),
        ("<bot>", "< bot> <b>Hi.</b> </unknown>", "< bot> <b>Hi.</b> </unknown>"),
    ],
)
def test_tags_that_are_as_they_should_be(prompt: str, reply: str, text: str) -> None:
    said = ids(reply)
    turn = Tags(TOKENIZER).turn(ids(prompt), said, stopped=True)
    assert turn == Turn(len(ids(text)), False)


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("<bot>", "Hi.<s>"),
        ("<bot>", "<s>"),
        ("<bot>", "Hi.</bot><user>Bye.</user>"),
        ("<bot>", "Hi.</bot>Bye."),
        ("<bot>", "Hi.</bot></bot>"),
        ("<bot>", "Hi.</user>"),
        ("<bot>", "<tool>Hi."),
        ("<bot>", "<tool>Hi.</bot>"),
        ("<bot>", "<tool><think>x</tool></think>"),
        ("<bot>", "x</think>"),
        ("Q: Hi?", "Hi.</bot>"),
    ],
)
def test_broken_tags(prompt: str, reply: str) -> None:
    said = ids(reply)
    assert Tags(TOKENIZER).turn(ids(prompt), said, stopped=True) == Turn(len(said), True)


def test_a_reply_that_was_cut_may_leave_tags_open() -> None:
    tags = Tags(TOKENIZER)
    for reply in ("<tool>Hi.", "Hi.", "<think><tool>x</tool>"):
        assert not tags.turn(ids("<bot>"), ids(reply), stopped=False).broken
    assert tags.turn(ids("<bot>"), ids("<tool>Hi.<s>"), stopped=False).broken


@pytest.mark.parametrize(
    ("prompt", "answer", "owed"),
    [
        ("<user>a</user><bot>", "Hi.", "</bot>"),
        ("<user>a</user><bot>", "<tool>x</tool>Hi.</bot>", "<tool></tool></bot>"),
        ("Q: Hi?", "Hi. <b>", ""),  # text that looks like a tag
        ("<think>", "Hi.", ""),  # closed by many, but not one of the control tokens
    ],
)
def test_the_tags_of_a_right_reply(prompt: str, answer: str, owed: str) -> None:
    assert Tags(TOKENIZER).owed(ids(prompt), ids(answer)) == ids(owed)


def test_a_tag_is_missing_only_if_several_replies_should_hold_it_and_none_does() -> None:
    assert never_emitted([{"<a>": False, "<b>": False}] * 4) == [
        f"{tag} is in none of the 4 replies that should hold it" for tag in ("<a>", "<b>")
    ]
    assert never_emitted([{"<a>": False}] * 3 + [{}] * 9) == []
    assert never_emitted([{"<a>": False}] * 9 + [{"<a>": True}]) == []
