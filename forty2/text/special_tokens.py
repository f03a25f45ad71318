"""Control tokens of a tokenizer, and protection of contents that spell one but must stay text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forty2.data.records import Message
from forty2.text.tokenizer import Tokenizer

_PLACEHOLDER = "\ue0f0{}\ue0f1"
_PLACEHOLDER_PATTERN = re.compile("\ue0f0(\\d+)\ue0f1")
"""Placeholder, while the chat template is rendered, for text that spells a control token."""


class SpecialTokens:
    """Control tokens by spelling, and encoding of texts that contain them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.ids = {str(token.content): i for i, token in added.items() if token.special}
        """Id by spelling."""
        for i in tokenizer.eos_token_ids:
            self.ids.setdefault(str(tokenizer.convert_ids_to_tokens(i)), i)
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        """Matches the spelling of any of them."""
        # A text that looks like a placeholder is replaced by one itself.
        self._to_replace = re.compile(f"{self.pattern.pattern}|{_PLACEHOLDER_PATTERN.pattern}")

    def replace(self, messages: Sequence[Message]) -> tuple[Sequence[Message], list[str]]:
        """Replace text in contents that spells a control token, so that it stays text.

        Encoded unchanged, it would become the token itself and end the turn.

        Returns:
            The messages with placeholders, and the texts that these stand for.
        """
        literals: list[str] = []

        def placeholder(match: re.Match[str]) -> str:
            literals.append(match[0])
            return _PLACEHOLDER.format(len(literals) - 1)

        replaced = [
            {**m, "content": self._to_replace.sub(placeholder, m["content"])}
            if isinstance(m.get("content"), str)
            else m
            for m in messages
        ]
        return replaced, literals

    def encode(self, text: str, literals: Sequence[str] = ()) -> list[int]:
        """Encode a rendered text in which placeholders stand for `literals`."""
        if not literals:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        ids: list[int] = []
        position = 0
        for match in [*self.pattern.finditer(text), None]:
            between = text[position : match.start() if match else len(text)]
            plain = _PLACEHOLDER_PATTERN.sub(lambda m: literals[int(m[1])], between)
            ids += self._tokenizer.encode(
                plain, add_special_tokens=False, split_special_tokens=True
            )
            if match:
                ids.append(self.ids[match[0]])
                position = match.end()
        return ids
