"""Strings of many scripts, for comparing tokenizers."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

_SCRIPTS = (
    (0x20, 0x7E),  # ASCII
    (0xA1, 0x17F),  # Latin
    (0x370, 0x3FF),  # Greek
    (0x400, 0x4FF),  # Cyrillic
    (0x531, 0x58F),  # Armenian
    (0x5D0, 0x5EA),  # Hebrew
    (0x621, 0x6D3),  # Arabic
    (0x905, 0x97F),  # Devanagari
    (0x985, 0x9FB),  # Bengali
    (0xB85, 0xBFA),  # Tamil
    (0xE01, 0xE5B),  # Thai
    (0x10A0, 0x10FF),  # Georgian
    (0x1200, 0x137C),  # Ethiopic
    (0x1E00, 0x1EFF),  # Latin with two marks
    (0x2000, 0x206F),  # punctuation and spaces
    (0x20A0, 0x20BF),  # currencies
    (0x2150, 0x22FF),  # numbers, arrows and mathematics
    (0x3041, 0x30FF),  # Kana
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul
    (0x1D400, 0x1D7FF),  # mathematical letters
    (0x1F300, 0x1FAFF),  # emoji
)
_TEXT = (
    "the The THE don't DON'T we've I'm they'll it's naïve Straße über señor année Привет мир "
    "Ελλάδα שלום مرحبا नमस्ते สวัสดี 안녕하세요 こんにちは 東京 北京 中文 HTTPServer camelCase snake_case "
    "x=3.14e-10; if(a!=b){return;} https://example.org/a?b=c user@example.org 2024 1,234,567 ١٢٣ ½ "
    "<b>bold</b> [x](y) $5.00 #include // /* */ ... ?! --- \\n \\t 👩‍👩‍👧 🇫🇷"
)
_WORDS = _TEXT.split()
_GAPS = (
    " ",
    " ",
    " ",
    "",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "   ",
    " \n",
    "\r\n",
    "\u00a0",
    "\u3000",
    ", ",
    ". ",
)


def strings(count: int, tokens: tuple[str, ...] = (), seed: int = 0) -> Iterator[str]:
    """Yield strings of words, random letters and white space, in Unicode's composed form.

    Args:
        tokens: tokens that are mixed in.
    """
    source = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(source.randint(1, 12)):
            kind = source.random()
            if kind < 0.5:
                parts.append(source.choice(_WORDS))
            elif kind < 0.95 or not tokens:
                first, last = source.choice(_SCRIPTS)
                size = source.randint(1, 6)
                parts.append("".join(chr(source.randint(first, last)) for _ in range(size)))
            else:
                parts.append(source.choice(tokens))
            parts.append(source.choice(_GAPS))
        yield unicodedata.normalize("NFC", "".join(parts))
