"""Types that the exports of byte-level and of SentencePiece-like BPE tokenizers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from gguf import TokenType
from tokenizers import Tokenizer

from forty2.files import JsonObject
from forty2.model.gguf.file import Value

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
"""Text in Unicode's composed form; each rule of `forty2.model.gguf.tokenizer` cuts it in another way."""
WHOLE = (TokenType.CONTROL, TokenType.USER_DEFINED)
"""Types of tokens that are matched in the text as a whole."""


class Bpe(NamedTuple):
    """A tokenizer that is to be described."""

    backend: Tokenizer
    parts: JsonObject
    """Its description, as in tokenizer.json."""
    tokens: Sequence[str | None]
    """Every token by its id; None: the id has none."""
    kinds: Sequence[TokenType]
    """Type of every token; those of bytes and of the unknown token are found later."""
    chats: Sequence[str]
    """Conversations as the chat template writes them."""
    where: str
    """Name of the model, for messages."""


class Part(NamedTuple):
    """Metadata of one kind of tokenizer."""

    values: dict[str, Value]
    kind: str
    """Name of the kind, for people."""
    notes: tuple[str, ...]
    """Differences of llama.cpp that a user should know."""
    kinds: Mapping[int, TokenType] = MappingProxyType({})
    """Types of tokens that only this kind of tokenizer has, by id."""
