"""Rows in letters that a vocabulary lacks are named before training."""

from __future__ import annotations

from typing import Any

import pytest
from support.models import tiny_loaded
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from forty2.model.loading import LoadedModel
from forty2.text.rows import PairRow, Row
from forty2.text.spelling import spelling, spelling_warning


def rows(tokenizer: Any, *texts: str) -> list[Row]:
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [Row(ids, [True] * len(ids), "rows.jsonl:1") for ids in encoded]


@pytest.mark.parametrize(
    "text",
    [
        "The bicycle is ready.",
        "Größere Räder müssen wärmer lagern.",
        "Café 👍🏽🚲 → done ✅ “yes” …",
    ],
)
def test_languages_that_the_vocabulary_has_and_emoji_pass(text: str, starter: LoadedModel) -> None:
    assert spelling_warning(rows(starter.tokenizer, text), starter.tokenizer) is None


def test_a_script_that_the_vocabulary_lacks_is_named_with_a_letter(starter: LoadedModel) -> None:
    message = spelling_warning(rows(starter.tokenizer, "გამარჯობა"), starter.tokenizer)
    assert message is not None
    assert "% of the tokens are bytes of letters such as გამ" in message


def test_the_share_is_over_all_tokens_of_rows_of_any_kind() -> None:
    tokenizer = tiny_loaded().tokenizer  # of bytes: é is two tokens
    few, one = (tokenizer.encode(text, add_special_tokens=False) for text in ("a" * 198, "é"))
    assert spelling([Row([*few, *one], [True] * 200, "")], tokenizer).pieces == 0.01
    assert spelling([PairRow(few[:100], few[100:], one, "")], tokenizer).pieces == 0.01
    assert spelling_warning([PairRow(few[:100], few[100:], one, "")], tokenizer) is None
    assert spelling_warning([PairRow(few[:99], few[100:], one, "")], tokenizer) is not None


def test_tokens_for_what_a_vocabulary_cannot_spell_are_counted() -> None:
    whole = models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    compiled = Tokenizer(whole)
    compiled.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    compiled.decoder = decoders.WordPiece()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=compiled, unk_token="[UNK]")
    message = spelling_warning(rows(tokenizer, "a a a x"), tokenizer)
    assert message is not None and message.startswith("25% of the tokens are unknown")
    assert spelling_warning(rows(tokenizer, "a a a"), tokenizer) is None
