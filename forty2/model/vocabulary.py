"""Whether a tokenizer and the embedding of a model belong together."""

from __future__ import annotations

import warnings
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from forty2.errors import ModelError
from forty2.files import JsonObject
from forty2.model.configuration import text_config

LEAST_USED = 0.8
"""Smallest share of the embedding's rows that a whole tokenizer names. Tables are padded, DeepSeek's by
2.3%; a tokenizer whose vocabulary was cut names far fewer."""


def check_vocabulary(tokenizer: TokenizerWrapper, config: JsonObject, path: Path) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for; warn of one that was cut.

    A control token beyond the table is harmless if nothing writes it (Gemma 3's image token in models
    without images), since the text of rows and prompts is never read as control tokens.

    Raises:
        ModelError: such a token is text, stands in the chat template, or ends replies.
    """
    rows = text_config(config).get("vocab_size")
    if not isinstance(rows, int):
        return
    names = {i: token for token, i in tokenizer.get_vocab().items()}
    added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template)
    beyond = [i for i in sorted(names) if i >= rows]
    used = [
        i
        for i in beyond
        if not (i in added and added[i].special)
        or names[i] in template
        or i in tokenizer.eos_token_ids
    ]
    if used:
        raise ModelError(
            f"{path}: the tokenizer has tokens that the model has no embedding for, such as "
            f"{names[used[0]]!r}: its id is {used[0]:,}, and the embedding has {rows:,} rows; use the "
            "model's own tokenizer"
        )
    if len(names) < LEAST_USED * rows:
        warnings.warn(
            f"{path}: the tokenizer names {len(names):,} of the embedding's {rows:,} rows, so its "
            "vocabulary seems to be cut, and what it lacks is spelled in pieces that the model hardly "
            "knows; use the model's own tokenizer",
            stacklevel=3,
        )
