"""Rebuilding of the Hugging Face tokenizer from the metadata of a GGUF file.

Only byte-level BPE can be rebuilt: vocabulary, merges and the name of the splitting rule define it.
A GGUF file leaves out parts of a SentencePiece model, such as its normalizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gguf import TokenType
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from forty2.errors import ModelError
from forty2.files import JsonObject
from forty2.model.gguf.file import GgufFile

RULES = {
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano smaug-bpe dbrx",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b",
    "gpt-2": "phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert "
    "exaone4 mpt olmo jais trillion granite-docling",
}
"""Names that llama.cpp cuts text into words for as it does for the first one (`llama-vocab.cpp`)."""
_RULE_OF = {name: rule for rule, names in RULES.items() for name in [rule, *names.split()]} | {
    "default": "gpt-2"  # no converter of today writes it for such a tokenizer
}
_MERGED_ALWAYS = {"smaug-bpe", "dbrx"}
"""Names with the rule of Llama 3 that do not look up a whole word before they merge, nor add a BOS."""
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "eot": "eot",
    "eom": "eom",
}
"""Roles of tokens, and llama.cpp's names for them; generation ends at the end of a text, of a turn and
of a message."""


class TokenIds(NamedTuple):
    """Token ids that the model's config.json repeats."""

    bos: int | None
    eos: list[int]
    """Ids of the end of a text and, if the file names other tokens for them, of a turn and a message."""
    pad: int | None


class GgufTokenizer(NamedTuple):
    """The contents of `tokenizer.json` and `tokenizer_config.json`."""

    backend: Tokenizer
    config: JsonObject
    ids: TokenIds
    size: int
    """Number of tokens."""
    pre: str
    """llama.cpp's name of the tokenizer."""
    rule: str
    """First of the names with the same rule for cutting text into words."""

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        self.backend.save(str(folder / "tokenizer.json"))
        text = json.dumps(self.config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")


def read_tokenizer(file: GgufFile, context: int) -> GgufTokenizer:
    """Rebuild the tokenizer of a GGUF file.

    Args:
        file: the open file.
        context: most tokens that the model can read.

    Raises:
        ModelError: the tokenizer is not a byte-level BPE, has an unknown splitting rule, or is
            damaged.
    """
    _check_kind(file)
    pre = file.need("tokenizer.ggml.pre", str)
    tokens = [str(token) for token in file.need("tokenizer.ggml.tokens", list)]
    rule = _rule_of(file, pre)
    as_llama3 = rule == "llama-bpe" and pre not in _MERGED_ALWAYS
    if len(set(tokens)) != len(tokens):
        raise ModelError(
            f"{file.path}: tokenizer.ggml.tokens names a token twice; the file is damaged"
        )
    kinds = file.get("tokenizer.ggml.token_type", list) or []
    added = added_tokens(tokens, kinds)
    merges = [str(merge) for merge in file.need("tokenizer.ggml.merges", list)]
    try:
        backend = build_backend(tokens, merges, rule, added, whole_words_first=as_llama3)
    except Exception as error:  # tokenizers raises the bare class
        raise ModelError(
            f"{file.path}: tokenizer.ggml.merges do not fit the tokens: {error}"
        ) from error
    named = {
        role: _token_id(file, f"tokenizer.ggml.{key}_token_id", len(tokens))
        for role, key in ROLES.items()
    }
    ends = dict.fromkeys(n for n in (named["eos"], named["eot"], named["eom"]) if n is not None)
    first = _framing_token(file, "bos", named["bos"], default=as_llama3)
    last = _framing_token(file, "eos", named["eos"], default=False)
    if first or last:
        one = [*(tokens[n] for n in first), "$A", *(tokens[n] for n in last)]
        two = [("$B" if piece == "$A" else piece) + ":1" for piece in one]
        backend.post_processor = processors.TemplateProcessing(
            single=one, pair=one + two, special_tokens=[(tokens[n], n) for n in first + last]
        )
    config: JsonObject = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(first),
        "add_eos_token": bool(last),
        # transformers rebuilds some models' tokenizers by itself, and takes these from here
        "added_tokens_decoder": {str(n): _added_token(token) for n, token in added.items()},
    }
    for role in ("bos", "eos", "unk", "pad"):
        token_id = named[role]
        config[f"{role}_token"] = None if token_id is None else tokens[token_id]
    template = file.get("tokenizer.chat_template", str)
    if template is not None:
        config["chat_template"] = template
    ids = TokenIds(named["bos"], list(ends), named["pad"])
    return GgufTokenizer(backend, config, ids, len(tokens), pre, rule)


def _added_token(token: AddedToken) -> JsonObject:
    """Describe a token that is matched as a whole, as `tokenizer_config.json` does."""
    return {
        "content": token.content,
        "special": token.special,
        "normalized": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }


def _check_kind(file: GgufFile) -> None:
    kind = file.need("tokenizer.ggml.model", str)
    if kind == "llama":
        raise ModelError(
            f"{file.path}: has a SentencePiece tokenizer, which a GGUF file holds only in part; "
            "use the model's safetensors"
        )
    if kind != "gpt2":
        raise ModelError(
            f"{file.path}: tokenizer {kind!r} cannot be imported, only byte-level BPE (gpt2); "
            "use the model's safetensors"
        )


def added_tokens(tokens: Sequence[str], kinds: Sequence[object]) -> dict[int, AddedToken]:
    """Return the tokens that are matched in the text as a whole, by their ids.

    Args:
        tokens: every token's text, by id.
        kinds: every token's type, by id, as llama.cpp numbers them; empty: none is matched so.
    """
    return {
        n: AddedToken(text, special=kind == TokenType.CONTROL, normalized=False)
        for n, (text, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    }


def build_backend(
    tokens: Sequence[str],
    merges: Sequence[str],
    rule: str,
    added: Mapping[int, AddedToken],
    *,
    whole_words_first: bool,
) -> Tokenizer:
    """Build a byte-level BPE tokenizer, without the tokens that go before or after a text.

    Args:
        tokens: every token's text, by id, bytes as the letters that stand for them.
        merges: pairs of tokens, separated by a space, in the order in which they are merged.
        rule: one of `RULES`.
        added: what `added_tokens` returns.
        whole_words_first: look up a whole word before merging, as Llama 3 does.

    Raises:
        Exception: the merges do not fit the tokens.
    """
    pairs = [merge.partition(" ") for merge in merges]
    backend = Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=[(left, right) for left, _, right in pairs],
            ignore_merges=whole_words_first,
        )
    )
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = splitter(rule)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(list(added.values()))
    return backend


def _rule_of(file: GgufFile, pre: str) -> str:
    """Return the first of the names with the same rule for cutting text into words."""
    rule = _RULE_OF.get(pre)
    if rule is None:
        raise ModelError(
            f"{file.path}: pre-tokenizer {pre!r} cannot be imported, only "
            f"{', '.join(sorted(_RULE_OF))}; use the model's safetensors"
        )
    return rule


def splitter(rule: str) -> pre_tokenizers.PreTokenizer:
    """Build the rule that cuts text into words before merging, by the first of its names."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule == "gpt-2":
        return gpt2
    if rule == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    digits = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}"}[rule]
    words = Regex(
        "|".join(
            [
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English contractions
                r"[^\r\n\p{L}\p{N}]?\p{L}+",  # letters, with a space or a sign before them
                digits,
                r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation, with the line's end
                r"\s*[\r\n]+",
                r"\s+(?!\S)",  # white space, but for the last before a word
                r"\s+",
            ]
        )
    )
    return pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), bytes_only])


def _framing_token(file: GgufFile, role: str, token_id: int | None, *, default: bool) -> list[int]:
    """Return the token that goes before (bos) or after (eos) every text, or an empty list."""
    stated = file.get(f"tokenizer.ggml.add_{role}_token", bool)
    wanted = default if stated is None else stated
    return [token_id] if wanted and token_id is not None else []


def _token_id(file: GgufFile, key: str, size: int) -> int | None:
    token_id = file.get(key, int)
    if token_id is not None and not 0 <= token_id < size:
        raise ModelError(f"{file.path}: {key} is {token_id}, but there are {size} tokens")
    return token_id
