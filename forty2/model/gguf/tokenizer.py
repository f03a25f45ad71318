"""Rebuilding of the Hugging Face tokenizer from the metadata of a GGUF file.

Only byte-level BPE can be rebuilt: vocabulary, merges and the name of the splitting rule define it.
A GGUF file leaves out parts of a SentencePiece model, such as its normalizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

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

_CONTROL, _USER_DEFINED = 3, 4
"""llama.cpp's types of tokens that are matched in the text as a whole."""


class TokenIds(NamedTuple):
    """Token ids that the model's config.json repeats."""

    bos: int | None
    eos: list[int]
    """Ids of the end of text and, if the file names another token for it, of the end of a turn."""
    pad: int | None


class GgufTokenizer(NamedTuple):
    """The contents of `tokenizer.json` and `tokenizer_config.json`."""

    backend: Tokenizer
    config: JsonObject
    ids: TokenIds
    size: int
    """Number of tokens."""
    pre: str
    """llama.cpp's name of the rule that cuts text into words."""

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
    backend = _backend(file, pre, tokens)
    kinds = file.get("tokenizer.ggml.token_type", list) or []
    added = {
        n: AddedToken(tokens[n], special=kind == _CONTROL, normalized=False)
        for n, kind in enumerate(kinds[: len(tokens)])
        if kind in (_CONTROL, _USER_DEFINED)
    }
    backend.add_tokens(list(added.values()))

    named = {
        role: _token_id(file, f"tokenizer.ggml.{key}_token_id", len(tokens))
        for role, key in {
            "bos": "bos",
            "eos": "eos",
            "unk": "unknown",
            "pad": "padding",
            "eot": "eot",
        }.items()
    }
    ends = dict.fromkeys(n for n in (named["eos"], named["eot"]) if n is not None)
    first = _framing_token(file, "bos", named["bos"], default=pre == "llama-bpe")
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
    return GgufTokenizer(backend, config, ids, len(tokens), pre)


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


def _backend(file: GgufFile, pre: str, tokens: list[str]) -> Tokenizer:
    vocabulary = {token: n for n, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError(
            f"{file.path}: tokenizer.ggml.tokens names a token twice; the file is damaged"
        )
    pairs = [str(merge).partition(" ") for merge in file.need("tokenizer.ggml.merges", list)]
    splitter = _splitter(pre)
    if splitter is None:
        raise ModelError(
            f"{file.path}: pre-tokenizer {pre!r} cannot be imported, only {', '.join(_KNOWN)}; "
            "use the model's safetensors"
        )
    try:
        # Llama 3 looks up a whole word before it merges.
        model = models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for left, _, right in pairs],
            ignore_merges=pre == "llama-bpe",
        )
    except Exception as error:  # tokenizers raises the bare class
        raise ModelError(
            f"{file.path}: tokenizer.ggml.merges do not fit the tokens: {error}"
        ) from error
    backend = Tokenizer(model)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    return backend


_KNOWN = ("smollm", "qwen2", "llama-bpe", "gpt-2", "default")


def _splitter(pre: str) -> pre_tokenizers.PreTokenizer | None:
    """Build the rule that cuts text into words before merging, by llama.cpp's name; None: unknown."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in ("gpt-2", "default"):  # no converter of today writes "default" for such a tokenizer
        return gpt2
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    digits = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}"}.get(pre)
    if digits is None:
        return None
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
