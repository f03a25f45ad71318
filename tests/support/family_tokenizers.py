"""Small tokenizers of every kind that model families use, with a family's control tokens."""

from __future__ import annotations

import functools
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.template_families import Family

KINDS = ("bytes", "first", "always", "prepend")
"""Byte-level BPE; Metaspace that writes a space before a text's first word, before every piece between
control tokens, and as the older normalizer of Llama 2."""
WORDS = (
    *(
        "assistant",
        "user",
        "system",
        "final",
        "answer",
        "analysis",
        "think",
        "model",
        "tool",
        "name",
    ),
    *(
        "The",
        "the",
        "is",
        "question",
        "arguments",
        "parameter",
        "function",
        "Response",
        "INST",
        "20",
    ),
    *(
        "<|",
        "|>",
        "</",
        ">\n",
        "><",
        "\n\n",
        "\n\n\n",
        '{"',
        '": ',
        '":',
        '", "',
        "}\n",
        ":\n",
        "]\n",
    ),
)
"""Words of the vocabularies, each with a leading space, too."""


def _merged(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return symbols and merges that build each word from left to right."""
    merges: dict[tuple[str, str], None] = {}
    symbols: dict[str, None] = {}
    for word in words:
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
            symbols[word[: end + 1]] = None
    return dict.fromkeys(symbols, 0), list(merges)


def _bytes() -> Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    shown = dict(
        zip((w for w in WORDS), (byte_level.pre_tokenize_str(w)[0][0] for w in WORDS), strict=True)
    )
    words = [*shown.values(), *("Ġ" + word for word in shown.values()), "ĠĠ", "ĠĠĠ"]
    symbols, merges = _merged(words)
    vocabulary = {
        s: i for i, s in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *symbols])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    pattern = Regex(
        r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(kind: str) -> Tokenizer:
    words = [*WORDS, *("▁" + word for word in WORDS), "▁▁", "▁▁▁", "\n▁"]
    symbols, merges = _merged(words)
    letters = sorted(
        {letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz")
    )
    listed = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *symbols]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(listed))}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@functools.cache
def tokenizer_of(family: Family, kind: str) -> Any:
    """Return a tokenizer of a kind with a family's control tokens and template."""
    backend = _bytes() if kind == "bytes" else _sentence_piece(kind)
    backend.add_special_tokens(
        [
            AddedToken(word, special=True, normalized=False, rstrip=family.swallows)
            for word in family.control.split()
        ]
    )
    backend.add_tokens(
        [AddedToken(word, special=False, normalized=False) for word in family.tags.split()]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.control.split()[0],
        eos_token=family.stops.split()[0],
        chat_template=family.template,
    )
    return TokenizerWrapper(
        fast, eos_token_ids=[fast.convert_tokens_to_ids(word) for word in family.stops.split()]
    )
