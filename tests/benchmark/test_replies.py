"""Faults that replies show: one reply to everything, and broken tags."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forty2.benchmark.replies import Tags, Turn, collapsed

CONTROL = ["<s>", "<end>", "<user>", "</user>", "<bot>", "</bot>", "<tool>", "</tool>"]
THINK = ["<think>", "</think>"]
TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<user>{{ m.content }}</user>"
    "{% else %}<bot>{{ m.content }}</bot><end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def tokenizer() -> Any:
    """Bytes, tags as control tokens, and a pair of tags that are none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*CONTROL, *THINK, *alphabet]
    bytewise = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bytewise.add_special_tokens([AddedToken(word, special=True) for word in CONTROL])
    bytewise.add_tokens([AddedToken(word, special=False) for word in THINK])
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", CONTROL.index("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<s>", eos_token="<end>", chat_template=TEMPLATE
    )
    return TokenizerWrapper(fast, eos_token_ids=[CONTROL.index("<end>")])


TOKENIZER = tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


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
