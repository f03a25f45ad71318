"""Byte-level BPE tokenizers, llama.cpp's `gpt2`: which of its rules cuts text into words as this one?

llama.cpp names the rule `tokenizer.ggml.pre`. Its own converter looks a hash of token ids up in a list of
models. Here the rule itself is looked for: of the rules that the importer knows, the one that cuts a
text of many scripts as the tokenizer does. So a tokenizer with new tokens or merges finds it, too.
"""

from __future__ import annotations

from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from forty2.errors import ModelError
from forty2.export.gguf.bpe import PROBE, WHOLE, Bpe, Part
from forty2.model.gguf.file import Value
from forty2.model.gguf.tokenizer import RULES, added_tokens, build_backend, splitter

_PLAIN = ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback")
"""Options of BPE that llama.cpp does not have."""


def describe(tokenizer: Bpe) -> Part:
    """Find the rule and the merges of a byte-level BPE tokenizer.

    Raises:
        ModelError: llama.cpp has no rule for it, or would encode a text in another way.
    """
    backend, parts, tokens, kinds, chats, where = tokenizer
    model = parts["model"]
    odd = [key for key in _PLAIN if model.get(key)]
    normalizer = (parts.get("normalizer") or {}).get("type")
    if odd or normalizer not in (None, "NFC"):
        raise ModelError(
            f"{where}: the tokenizer has {odd[0] if odd else f'the normalizer {normalizer}'}, which "
            "llama.cpp's byte-level BPE does not"
        )
    rule = _rule(backend, where)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if not merges:
        raise ModelError(
            f"{where}: the tokenizer has no merges, without which llama.cpp reads no BPE"
        )
    if any(merge.count(" ") != 1 for merge in merges):
        raise ModelError(
            f"{where}: a merge of the tokenizer holds a space, which GGUF cannot express"
        )
    name = _name(rule, tokenizer)
    whole = [f"a {t} b{t}" for t, k in zip(tokens, kinds, strict=True) if k in WHOLE]
    rebuilt = build_backend(
        [token if token is not None else f"\0{n}" for n, token in enumerate(tokens)],
        merges,
        rule,
        added_tokens([str(token) for token in tokens], kinds),
        whole_words_first=name == "llama-bpe",
    )

    def differs(text: str) -> bool:
        expected: list[int] = backend.encode(text, add_special_tokens=False).ids
        return bool(rebuilt.encode(text).ids != expected)

    for text in (PROBE, *chats, "".join(whole)):
        if differs(text):
            shown = next(filter(differs, whole), text)[:40]
            raise ModelError(
                f"{where}: llama.cpp would not cut {shown!r} into the tokens that the model's tokenizer "
                "does, so the model cannot be exported"
            )
    notes = []
    if normalizer == "NFC":
        notes.append(
            "text that is not in Unicode's composed form (NFC) is composed by the model's tokenizer, "
            "and not by llama.cpp"
        )
    values: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": merges,
    }
    return Part(values, f"byte-level BPE, pre-tokenizer {name}", tuple(notes))


def _words(pre_tokenizer: Any) -> list[str]:
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(PROBE)]


def _rule(backend: Tokenizer, where: str) -> str:
    """Return the rule that cuts the probe into words as the tokenizer does."""
    words = _words(backend.pre_tokenizer) if backend.pre_tokenizer is not None else []
    for rule in RULES:
        if _words(splitter(rule)) == words:
            return rule
    raise ModelError(
        f"{where}: the tokenizer cuts text into words by a rule that is none of {', '.join(RULES)}, so "
        "llama.cpp cannot be told to do the same; convert the model with llama.cpp's own script"
    )


def _name(rule: str, tokenizer: Bpe) -> str:
    """Return llama.cpp's name of the rule, which also says whether whole words are looked up first."""
    backend, parts, tokens, kinds, _, where = tokenizer
    whole_words = bool(parts["model"].get("ignore_merges"))
    if rule == "llama-bpe":
        return "llama-bpe" if whole_words else "dbrx"
    if whole_words:
        normal = [t for t, k in zip(tokens, kinds, strict=True) if t and k == TokenType.NORMAL]
        merged = Tokenizer.from_str(backend.to_str())
        merged.model.ignore_merges = False
        for token in normal:
            if len(merged.model.tokenize(token)) != 1:
                raise ModelError(
                    f"{where}: the tokenizer looks up whole words such as {token!r} before it merges, "
                    f"which llama.cpp does not with the rule {rule}"
                )
    return rule
