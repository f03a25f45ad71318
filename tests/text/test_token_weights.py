"""Weights of tokens are found by the tokens' spelling, and shown behind them."""

from __future__ import annotations

from typing import Any

import pytest
from support.tagged_tokenizer import TOKENIZER, ids

from forty2.data.formats import parse
from forty2.errors import RecipeError
from forty2.text.encoder import Encoder
from forty2.text.preview import spans
from forty2.text.token_weights import weights_by_id


def test_a_token_is_named_by_its_spelling() -> None:
    found = weights_by_id(TOKENIZER, {"</bot>": 2.0, "<end>": 1.5, " ": 3.0}, "x")
    assert found == {ids("</bot>")[0]: 2.0, ids("<end>")[0]: 1.5, ids(" ")[0]: 3.0}


@pytest.mark.parametrize("text", ["two words", ""])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=rf"phases\.p: '{text}' is \d tokens? of this model"):
        weights_by_id(TOKENIZER, {text: 2.0}, "phases.p")


def test_a_token_has_one_weight() -> None:
    (token,) = TOKENIZER.convert_ids_to_tokens(ids(" "))
    assert token != " "
    with pytest.raises(RecipeError, match=r"is a token that another spelling names already"):
        weights_by_id(TOKENIZER, {" ": 2.0, token: 3.0}, "phases.p")


def test_a_weight_is_shown_behind_each_supervised_token_that_has_it() -> None:
    row: Any = {"prompt": "a</bot>", "completion": "bab"}
    weights = weights_by_id(TOKENIZER, {"a": 3.0, "</bot>": 1.5, "<end>": 2.0}, "x")
    ((_, parts),) = spans(parse(row, "f:1"), Encoder(TOKENIZER), TOKENIZER, 99, weights)
    assert parts == [
        ("<s><user>a</bot></user><bot>", "prompt"),
        ("ba", "supervised"),
        ("×3", "weight"),
        ("b</bot>", "supervised"),
        ("×1.5", "weight"),
        ("<end>", "supervised"),
        ("×2", "weight"),
    ]
