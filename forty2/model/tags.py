"""New special tokens, tags, in a model's tokenizer and tables.

A model has a table of embeddings, and a head that is the same table (tied) or one of its own. Both get
rows for the tags, and padding. A row begins as the mean of the rows of its description's tokens, which
places it among them: rows of zeros or at random would make a tag likelier than all other tokens, or
never written. Padding begins, and stays, as the mean of all rows, so no padded id is likelier than an
average token (Hewitt 2021, "Initializing new word embeddings for pretrained language models").

Axes: V vocabulary, D width of the model, n tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken

from forty2.errors import ModelError, first_names
from forty2.files import JsonObject
from forty2.model.quantization import is_quantized
from forty2.model.surgery import modules_outside_blocks
from forty2.recipe.tags import BUILT_IN, AddedTags, Start, TagSettings
from forty2.recipe.templates import packaged_templates

_MOST_NAMES = 5
"""Most tokens that a message lists."""
_CHAT = [{"role": role, "content": "Hello."} for role in ("system", "user", "assistant")]
"""A conversation in which a chat template writes the tags that every row needs."""


def find_tables(model: nn.Module) -> list[nn.Module]:
    """Find the embedding of a model and, if it has one of its own, its head; also under adapter layers.

    Raises:
        ModelError: there is not exactly one table of embeddings, or there are several heads.
    """
    rows = model(mx.array([[0]])).shape[-1]  # lazy: nothing is computed
    own = [module for module in modules_outside_blocks(model) if "weight" in module]
    embeddings = [m for m in own if isinstance(m, nn.Embedding) and m.weight.shape[0] == rows]
    heads = [m for m in own if isinstance(m, nn.Linear) and m.weight.shape[0] == rows]
    if len(embeddings) != 1 or len(heads) > 1:
        raise ModelError(
            f"tags: this model has {len(embeddings)} tables of embeddings and {len(heads)} heads of "
            f"{rows:,} rows, and tags can be added only to one of each; use another model, or remove tags"
        )
    return [*embeddings, *heads]


def add_tags(
    model: nn.Module, config: JsonObject, tokenizer: TokenizerWrapper, settings: TagSettings
) -> tuple[AddedTags, JsonObject]:
    """Add tags to a model's tokenizer and tables, in place.

    Returns:
        The tags with their ids, and the configuration of the larger model.

    Raises:
        ModelError: the model is quantized, has a tag already, or its tables cannot be found.
    """
    if is_quantized(config):
        raise ModelError(
            "tags: this model is quantized, so its table cannot get new rows; name the model that it "
            "was made from, and quantize the fused model (fuse.quantize)"
        )
    sources = _source_ids(tokenizer, settings)
    tables = find_tables(model)
    first = add_to_tokenizer(tokenizer, settings)
    needed = max(tables[0].weight.shape[0], first + len(settings.starts))
    rows = -(-needed // settings.pad_to) * settings.pad_to
    added = AddedTags(tuple(settings.starts), first, rows)
    for number, table in enumerate(tables):
        key = mx.random.split(mx.random.key(settings.seed))[number]
        _extend(table, added, sources, settings.noise, key)
    return added, _resized(config, added.rows)


def add_recorded_tags(
    model: nn.Module, config: JsonObject, tokenizer: TokenizerWrapper, added: AddedTags
) -> JsonObject:
    """Add the tags that an adapter was trained with, in place; their rows are those of all tokens' mean.

    Returns:
        The configuration of the larger model.

    Raises:
        ModelError: they get other ids than they had, so the model is another.
    """
    found, config = add_tags(model, config, tokenizer, added.settings)
    if found != added:
        raise ModelError(
            f"the adapter's tags have the ids from {added.first:,} in a table of {added.rows:,} rows, but "
            f"would get those from {found.first:,} in one of {found.rows:,} here: it was trained on "
            "another model"
        )
    return config


# --- the tokenizer ---


def add_to_tokenizer(tokenizer: TokenizerWrapper, settings: TagSettings) -> int:
    """Make special tokens of tags; their ids are those beyond the last of the tokenizer's own.

    Returns:
        The id of the first; the others follow.

    Raises:
        ModelError: the tokenizer has a tag already.
    """
    tags, own = list(settings.starts), tokenizer._tokenizer
    _check_new(tokenizer, tags)
    own.add_tokens([AddedToken(tag, normalized=False) for tag in tags], special_tokens=True)
    ids: list[int] = own.convert_tokens_to_ids(tags)
    if ids != list(range(ids[0], ids[0] + len(tags))):
        raise ModelError(
            "tags: this model's tokenizer does not give new tokens ids one after the other; use another "
            "model, or remove tags"
        )
    # mlx-lm spells tokens by a list that it made of the tokens before
    before = tokenizer._detokenizer
    options = {"trim_space": before.trim_space} if hasattr(before, "trim_space") else {}
    tokenizer._detokenizer = type(before)(own, **options)
    return ids[0]


def check_template_tags(tokenizer: TokenizerWrapper, source: str | None) -> None:
    """Refuse a packaged chat template whose tags are not tokens: rows would spell them in pieces, as text.

    Args:
        tokenizer: with the tags that were added to it.
        source: chat template in place of the model's own; None: the model's own.

    Raises:
        ModelError: names the tags.
    """
    templates = packaged_templates().items()
    name = next((name for name, text in templates if text == source), None)
    if name is None:
        return
    text = str(tokenizer.apply_chat_template(_CHAT, tokenize=False))
    known = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    missing = [tag for tag in BUILT_IN.get(name, ()) if tag in text and tag not in known]
    if missing:
        raise ModelError(
            f"chat_template: {name} writes {first_names(missing, _MOST_NAMES)}, which are text to this "
            f"model and not tokens; set tags to {name}"
        )


def _check_new(tokenizer: TokenizerWrapper, tags: Sequence[str]) -> None:
    """Refuse tags that the tokenizer has, or that overlap with one of its special tokens."""
    vocabulary = tokenizer.get_vocab()
    there = [tag for tag in tags if tag in vocabulary]
    if there:
        raise ModelError(
            f"tags: this model has a token {first_names(there, _MOST_NAMES)} already; remove it from tags, "
            "or give it another name"
        )
    for special in (str(token.content) for token in tokenizer.added_tokens_decoder.values()):
        for tag in tags:
            if tag in special or special in tag:
                inner, outer = sorted((tag, special), key=len)
                raise ModelError(
                    f"tags: {inner} is a part of {outer}, so a text would not show which of the two "
                    f"tokens is meant; give {tag} another name"
                )


def _source_ids(tokenizer: TokenizerWrapper, settings: TagSettings) -> list[list[int]]:
    """Return, for each tag, the ids whose rows its own begins as the mean of; []: all rows."""
    if settings.rows == "all":
        return [[] for _ in settings.starts]
    return [_ids_of(tokenizer, tag, start) for tag, start in settings.starts.items()]


def _ids_of(tokenizer: TokenizerWrapper, tag: str, start: Start) -> list[int]:
    if isinstance(start, str):
        # a space, as within a text, where most of a tokenizer's words begin with one
        return _encoded(tokenizer, start if start == tag else f" {start}")
    ids: list[int] = []
    vocabulary = tokenizer.get_vocab()
    for token in start:
        found = [vocabulary[token]] if token in vocabulary else _encoded(tokenizer, token)
        if len(found) != 1:
            raise ModelError(
                f"tags: {tag}: {token!r} is {len(found)} tokens of this model, not one; name one token, "
                "or give a description in place of the list"
            )
        ids += found
    return ids


def _encoded(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


# --- the tables ---


def _extend(
    table: nn.Module,
    added: AddedTags,
    sources: Sequence[Sequence[int]],
    noise: float,
    key: mx.array,
) -> None:
    """Give a table rows for the tags and padding; and entries to a bias, if it has one."""
    weight = table.weight
    known = weight[: added.first].astype(mx.float32)
    mean = known.mean(axis=0)
    new = mx.stack([_mean_of(weight, ids) if ids else mean for ids in sources])
    if noise:
        spread = mx.sqrt(mx.var(known))
        new = new + noise * spread * mx.random.normal(new.shape, key=key)
    table.weight = _with_rows(weight, new, mean, added)
    if "bias" in table:
        mean = table.bias[: added.first].astype(mx.float32).mean()
        new = mx.broadcast_to(mean, (len(added.tokens),))
        table.bias = _with_rows(table.bias, new, mean, added)


def _mean_of(weight: mx.array, ids: Sequence[int]) -> mx.array:
    return weight[mx.array(list(ids))].astype(mx.float32).mean(axis=0)


def _with_rows(weight: mx.array, new: mx.array, mean: mx.array, added: AddedTags) -> mx.array:
    """Put the tags' rows into a table (V, ...); rows that it lacks are the mean, its others stay."""
    rows = weight.shape[0]

    def padding(count: int) -> mx.array:
        return mx.broadcast_to(mean.astype(weight.dtype), (max(0, count), *mean.shape))

    return mx.concatenate(
        [
            weight[: added.first],
            padding(added.first - rows),
            new.astype(weight.dtype),
            weight[added.end :],
            padding(added.rows - max(rows, added.end)),
        ]
    )


def _resized(config: JsonObject, rows: int) -> JsonObject:
    """Return a configuration with another size of the vocabulary, where it names one."""
    nested = config.get("text_config")
    if not isinstance(nested, dict):
        return config | {"vocab_size": rows}
    changed = config | {"text_config": nested | {"vocab_size": rows}}
    return changed | ({"vocab_size": rows} if "vocab_size" in config else {})
