"""Near duplicates: texts whose MinHash sketches agree in a band and nearly agree as a whole.

Broder 1997, "On the resemblance and containment of documents".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from forty2.data.record_texts import words_of

NEAR = 0.8
"""Smallest Jaccard similarity of word trigrams at which two rows count as near duplicates."""

Hashes = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

_PERMUTATIONS, _BANDS = 64, 8
LOOSE_BANDS = 16
"""Bands with which pairs of similarity 0.6 are found, too, nine times in ten; 8 find 13% of them."""
_CHUNK = 100_000
"""Trigrams collected before they are hashed."""


class NearDuplicates:
    """Finds groups of nearly equal texts; takes 128 bytes a text, or 192 with 16 bands.

    Args:
        near: smallest similarity of two texts of a group.
        bands: parts of a sketch, one of which must agree: 8 or 16. More find less similar texts.
    """

    def __init__(self, near: float = NEAR, bands: int = _BANDS) -> None:
        self._near, self._band_count = near, bands
        self._trigrams: list[list[str]] = []
        """Trigrams of each text not hashed yet."""
        self._waiting = 0
        self._bands, self._sketch = array("q"), array("B")

    def add(self, text: str) -> None:
        """Take in the next text."""
        words = words_of(text)
        self._trigrams.append([" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))])
        self._waiting += len(self._trigrams[-1])
        if self._waiting >= _CHUNK:
            self._hash_waiting()

    def groups(self) -> Iterator[Indices]:
        """Yield indices of nearly equal texts, ascending; a text can be in several groups."""
        if self._trigrams:
            self._hash_waiting()
        bands = np.frombuffer(self._bands, np.int64).reshape(-1, self._band_count)
        sketch = np.frombuffer(self._sketch, np.uint8).reshape(-1, _PERMUTATIONS)
        for band in bands.T:
            for group in equal(band):
                near = (sketch[group] == sketch[group[0]]).mean(1) >= self._near
                if near.sum() > 1:
                    yield group[near]

    def _hash_waiting(self) -> None:
        from rensa import RMinHash

        digests = RMinHash.digests_from_token_sets(self._trigrams, _PERMUTATIONS, 42)
        minima = np.array(digests, np.uint64).reshape(len(digests), self._band_count, -1)
        odd = np.array([2 * i + 0x9E3779B97F4A7C15 for i in range(minima.shape[2])], np.uint64)
        mixed = (minima * np.multiply.accumulate(odd)).sum(2, dtype=np.uint64)
        self._bands.frombytes(mixed.tobytes())
        # One byte of each minimum is enough to estimate similarity (b-bit MinHash, Li & König 2010).
        self._sketch.frombytes(minima.astype(np.uint8).tobytes())
        self._trigrams, self._waiting = [], 0


def equal(hashes: Hashes) -> Iterator[Indices]:
    """Yield, for each hash that occurs more than once, its indices, ascending."""
    order = np.argsort(hashes, kind="stable")
    bounds = np.flatnonzero(np.diff(hashes[order])) + 1
    starts = np.concatenate([[0], bounds])
    ends = np.concatenate([bounds, [len(order)]])
    for i in np.flatnonzero(ends - starts > 1):
        yield order[starts[i] : ends[i]]
