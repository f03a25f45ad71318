"""Byte-level BPE tokenizers, llama.cpp's `gpt2`: which of its rules cuts text into words as this one?

llama.cpp names the rule `tokenizer.ggml.pre`. Its own converter looks a hash of token ids up in a list of
models. Here the rule itself is looked for: of the rules that the importer knows, the one that cuts a
text of many scripts as the tokenizer does. So a tokenizer with new tokens or merges finds it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from gguf import TokenType
from tokenizers import Tokenizer

from forty2.errors import ModelError
from forty2.files import JsonObject
from forty2.model.gguf.file import Value
from forty2.model.gguf.tokenizer import RULES, added_tokens, build_backend, splitter

PROBE = (
    "I'm SURE they'll say it's 1, 23, 456 or 7890 — we'VE heard 'em say so; don't WON'T y'all'd've.\n"
    "\n\n   Indented,\tby a tab\t\tor two.  Two  spaces   three    four.\r\n\r\nCamelCase HTMLParser "
    "snake_case kebab-case a1b2c3 x=3.14e-10; if(a!=b){return;}//…\n/* ** */ #!/usr/bin/env\n "
    'https://example.org/a?b=c&d=%20 user@example.org <tag attr="1"> </tag> [x](y) $5.00 €7,50 £9 \n'
    " Größe, naïve, Ærøskøbing; São Paulo. Кирилл ПИШЕТ по-русски: 1917 год! Ελληνικά ΚΑΙ άλλα. "
    "עברית שלום 2024. العربية مرحبا ١٢٣٤. فارسی ۵۶۷. हिन्दी नमस्ते १२३। বাংলা। தமிழ் மொழி. ไทยภาษา ๑๒๓ "
    "한국어 띄어쓰기 123개. 日本語のテキスト、カタカナ。中文分詞１２３４５。 Tiếng Việt. ქართული Հայերեն አማርኛ "
    "½ ² ③ Ⅷ ㊿ 😀🎉👩‍👩‍👧‍👦 🇫🇷 ™ © ∑∫√ ← → ‘quotes’ “and” «more» … – — ¿qué? ¡sí!\u00a0nbsp\u2003em "
    "\u200bzero\n\t \n  \n x \n"
)
"""Text in Unicode's composed form; each of `RULES` cuts it in another way."""
_PLAIN = ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback")
"""Options of BPE that llama.cpp does not have."""
_WHOLE = (TokenType.CONTROL, TokenType.USER_DEFINED)
"""Types of tokens that are matched in the text as a whole."""


class Part(NamedTuple):
    """Metadata of one kind of tokenizer."""

    values: dict[str, Value]
    kind: str
    """Name of the kind, for people."""
    notes: tuple[str, ...]
    """Differences of llama.cpp that a user should know."""
    kinds: Mapping[int, TokenType] = MappingProxyType({})
    """Types of tokens that only this kind of tokenizer has, by id."""


def describe(
    backend: Tokenizer,
    parts: JsonObject,
    tokens: Sequence[str | None],
    kinds: Sequence[TokenType],
    chats: Sequence[str],
    where: str,
) -> Part:
    """Find the rule and the merges of a byte-level BPE tokenizer.

    Args:
        backend: the tokenizer.
        parts: its description, as in tokenizer.json.
        tokens: every token by its id; None: the id has none.
        kinds: every token's type.
        chats: conversations as the chat template writes them.
        where: name of the model, for messages.

    Raises:
        ModelError: llama.cpp has no rule for it, or would encode a text in another way.
    """
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
    name = _name(rule, model, backend, tokens, kinds, where)
    whole = [f"a {t} b{t}" for t, k in zip(tokens, kinds, strict=True) if k in _WHOLE]
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


def _name(
    rule: str,
    model: JsonObject,
    backend: Tokenizer,
    tokens: Sequence[str | None],
    kinds: Sequence[TokenType],
    where: str,
) -> str:
    """Return llama.cpp's name of the rule, which also says whether whole words are looked up first."""
    whole_words = bool(model.get("ignore_merges"))
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
