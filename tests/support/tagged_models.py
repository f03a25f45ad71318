"""Tiny models with two tags, and rows that hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from forty2.model.adapter import attach_adapter
from forty2.model.tags import add_tags, find_tables
from forty2.recipe.schema import Adapter
from forty2.recipe.tags import AddedTags, TagSettings
from forty2.text.rows import PairRow, Row
from support.models import tiny_loaded, tiny_model

SETTINGS = TagSettings(starts={"<a>": "one two", "</a>": "</a>"}, noise=0.5)
ADDED = AddedTags(("<a>", "</a>"), first=258, rows=320)
OPEN, CLOSE = 258, 259
KINDS = [
    ("llama", True),
    ("llama", False),
    ("qwen2", False),
    ("phi3", True),
    ("gemma2", True),
    ("nested", False),
]
"""Architectures, and whether the head is the embedding."""
ADAPTER = Adapter(rank=4, scale=4.0, layers=2)

_RNG = np.random.default_rng(5)


def _ids(length: int) -> list[int]:
    return [int(i) for i in _RNG.integers(1, 257, length)]


ROWS = [
    Row([OPEN, *_ids(4 + n), CLOSE], [False] * 3 + [True] * (3 + n), f"sft.jsonl:{n + 1}")
    for n in range(8)
]
PACKED = Row(
    [OPEN, *_ids(4), CLOSE, OPEN, *_ids(4), CLOSE],
    [i % 6 > 1 for i in range(12)],
    "packed",
    [i // 6 for i in range(12)],
)
PAIRS = [
    PairRow([OPEN, *_ids(2 + n % 3)], [*_ids(3 + n % 2), CLOSE], [*_ids(4), CLOSE], f"{n + 1}")
    for n in range(6)
]


def without_tags(architecture: str = "llama", *, tied: bool = True, **changes: Any) -> Any:
    """Build a tiny model whose head is the embedding, or a layer of its own."""
    choice = {} if architecture == "gemma2" else {"tie_word_embeddings": tied}  # always tied
    return tiny_model(architecture, **choice, **changes)


def with_tags(architecture: str = "llama", *, tied: bool = True, **changes: Any) -> Any:
    """Build a tiny model whose tables have two rows more, and padding."""
    model = without_tags(architecture, tied=tied, **changes)
    add_tags(model, {}, tiny_loaded(model).tokenizer, SETTINGS)
    return model


def tagged(
    architecture: str = "llama", *, tied: bool = True, vocab_size: int = 300, **adapter: Any
) -> Any:
    """Build a tiny model with an adapter that does something, and trained rows of tags."""
    model = with_tags(architecture, tied=tied, vocab_size=vocab_size)
    added = replace(ADDED, rows=-(-vocab_size // 64) * 64)
    attach_adapter(model, replace(ADAPTER, **adapter), seed=1, tags=added)
    return _moved(model)


def whole_tables(architecture: str = "llama", *, tied: bool = True) -> Any:
    """Build the same model, in which the whole tables are trained in place of the tags' rows."""
    model = with_tags(architecture, tied=tied)
    attach_adapter(model, ADAPTER, seed=1)
    for table in find_tables(model):
        table.unfreeze(keys=["weight"], recurse=False)
    return _moved(model)


def _moved(model: Any) -> Any:
    """Give the adapter's second factors values."""
    for name, value in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            key = mx.random.key(len(name))
            model.load_weights([(name, 0.1 * mx.random.normal(value.shape, key=key))], strict=False)
    return model
