"""Cache of the ids of words, for tokenizers that never look past a space.

Byte-level tokenizers cut a text into words before they merge anything, and always cut at a single
space between words. So a word's ids are the same in every text, and a data set's words repeat:
looking them up is several times faster than tokenizing them again. A trial shows whether a tokenizer
is of that kind; any other gets its texts whole.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Sequence

from tokenizers import Tokenizer, normalizers

_BORDER = re.compile(r"(?<=\S)(?= \S)")
_BLANK = re.compile(r" \s|\s ")
_MOST_WORDS, _LONGEST_WORD = 200_000, 40
"""Limits on memory: words stored between two batches, and characters of a stored word."""
# Ends of words on both sides of a space, for the trial.
_LEFT = ("a", "Z9", "'s", "é", "好", "ß.", "-", "_", "(", '"', "7", "٣", "\u0301", "😀", "#", "'")
_RIGHT = ("a", "Zq", "é", "好", "ß", ".", "-", "_", "(", "'s", "7", "12", "٣", "\u0301", "😀", "#a")


class WordCache:
    """Encodes texts as the tokenizer's backend does, without adding special tokens."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder().items()
        self._added = {str(token.content): [i] for i, token in added}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._added_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._ids: dict[str, list[int]] = {}
        self._cuts_at_spaces = _cuts_at_spaces(backend)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text; an added token spelled in it becomes its id."""
        if not self._cuts_at_spaces:
            return self._backend_ids(texts)
        if len(self._ids) > _MOST_WORDS:
            self._ids.clear()
        self._ids.update(self._added)
        pieces = [self._pieces(text) for text in texts]
        new = list({piece for text in pieces for piece in text}.difference(self._ids))
        self._ids.update(zip(new, self._backend_ids(new), strict=True))
        ids_of = self._ids.__getitem__
        result = [list(itertools.chain.from_iterable(map(ids_of, text))) for text in pieces]
        for piece in new:
            if len(piece) > _LONGEST_WORD:
                del self._ids[piece]
        return result

    def _pieces(self, text: str) -> list[str]:
        """Cut a text into words and added tokens."""
        if not unicodedata.is_normalized("NFC", text):
            return [text]  # the tokenizer's normaliser could join characters across a cut
        parts = self._added_pattern.split(text)
        pieces: list[str] = []
        for plain, token in itertools.zip_longest(parts[::2], parts[1::2]):
            pieces += _cut(plain)
            if token is not None:
                pieces.append(token)
        return pieces

    def _backend_ids(self, texts: Sequence[str]) -> list[list[int]]:
        # transformers leaves the options of its last call set in the backend.
        self._backend.encode_special_tokens = False
        self._backend.no_truncation()
        self._backend.no_padding()
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _cut(text: str) -> list[str]:
    """Cut a text before every single space that stands between words."""
    if "\0" in text or _BLANK.search(text):
        return _BORDER.split(text)
    return text.replace(" ", "\0 ").split("\0")  # the same, three times as fast


def _cuts_at_spaces(backend: Tokenizer) -> bool:
    """Return whether texts can be cut at any single space between two words: tried, not guessed."""
    if backend.pre_tokenizer is None:
        return False
    state = json.loads(backend.pre_tokenizer.__getstate__())
    steps = state.get("pretokenizers", [state])
    if not any(step["type"] == "ByteLevel" for step in steps) or any(
        step.get("add_prefix_space") for step in steps
    ):
        return False
    if backend.normalizer is not None and not isinstance(backend.normalizer, normalizers.NFC):
        return False
    if any(
        t.lstrip or t.rstrip or t.single_word for t in backend.get_added_tokens_decoder().values()
    ):
        return False
    return all(
        _words(backend, f"{left} {right}") == _words(backend, left) + _words(backend, f" {right}")
        for left in _LEFT
        for right in ("", *_RIGHT)
    )


def _words(backend: Tokenizer, text: str) -> list[str]:
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
