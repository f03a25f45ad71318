"""A tiny model with a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forty2.model.loading import LoadedModel
from support.models import tiny_model


def loaded(
    model: nn.Module | None = None,
    *,
    front: bool = False,
    template: str | None = None,
    length: int = 512,
    ends: Sequence[int] = (),
) -> LoadedModel:
    """A tiny model with a tokenizer of bytes: ids 0 and 1 are <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{byte: i for i, byte in enumerate(alphabet, 2)}}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.add_special_tokens(["<s>", "</s>"])
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    if front:
        bytewise.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return LoadedModel(
        model if model is not None else tiny_model(),
        TokenizerWrapper(tokenizer, eos_token_ids=list(ends)),
        {"max_position_embeddings": length},
        Path("nowhere"),
        "tiny",
    )
