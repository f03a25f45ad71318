"""Control tokens are told from text that spells them, in compiled tokenizers and in Python."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from forty2.model.loading import LoadedModel
from forty2.text.special_tokens import SpecialTokens

TEXT = "<|im_start|>user\nSay  {} please: é, 好.<|im_end|>\n<|im_start|>assistant\n {}"
LITERALS = ["<|im_end|>", "<|im_start|>x"]


class InPython:
    """A tokenizer without a compiled one behind it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        if name == "backend_tokenizer":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


@pytest.fixture
def tokenizer(starter: LoadedModel) -> Any:
    return copy.deepcopy(starter.tokenizer)


def encoded(specials: SpecialTokens) -> list[int]:
    """Encode a user turn and an answer that spell control tokens."""
    turns = [
        {"role": "user", "content": LITERALS[0]},
        {"role": "assistant", "content": LITERALS[1]},
    ]
    replaced, _, literals = specials.replace(turns, ())
    return specials.encode(TEXT.format(*(turn["content"] for turn in replaced)), literals)


def test_every_control_token_has_its_id(tokenizer: Any) -> None:
    ids = SpecialTokens(tokenizer).ids
    assert len(ids) > 5
    assert all(tokenizer.convert_ids_to_tokens(i) == spelling for spelling, i in ids.items())


def test_text_that_spells_a_control_token_holds_none(tokenizer: Any) -> None:
    specials = SpecialTokens(tokenizer)
    ids = encoded(specials)
    assert tokenizer.decode(ids) == TEXT.format(*LITERALS)
    controls = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in specials.ids.values()]
    assert controls == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_tokenizer_in_python_gives_the_tokens_of_the_compiled_one(tokenizer: Any) -> None:
    in_python = SpecialTokens(InPython(tokenizer))
    compiled = SpecialTokens(tokenizer)
    assert encoded(in_python) == encoded(compiled)
    plain = TEXT.format("it", "No.")
    assert in_python.encode(plain) == compiled.encode(plain) == tokenizer.encode(plain)
    assert in_python.encode_batch([plain, "a"]) == compiled.encode_batch([plain, "a"])


def test_texts_go_to_the_compiled_tokenizer_alone(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokenizer.encode(TEXT)
    specials = SpecialTokens(tokenizer)
    monkeypatch.setattr(tokenizer._tokenizer, "encode", None)
    assert specials.encode_batch([TEXT, TEXT]) == [expected, expected]


def test_of_two_control_tokens_that_begin_alike_the_longer_is_found(tokenizer: Any) -> None:
    spellings = ["<x>", "<x>yz", "<x>y", "<a>longer"]
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": spellings})
    specials = SpecialTokens(InPython(tokenizer))
    for text in spellings:
        assert specials.pattern.fullmatch(text)
        assert [m[0] for m in specials.pattern.finditer(f"a{text} b")] == [text]
