"""Search for benchmark texts in training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.data.record_texts import texts_of, words_of
from forty2.data.records import Record
from forty2.data.sources import read_rows
from forty2.errors import DataError

GRAM = 13
"""Words in a row shared with a benchmark that count as overlap (Brown et al. 2020, appendix C)."""
_NEAR_COPY_WORDS = 8
"""Words; shorter texts resemble a benchmark's by accident."""
_NEAR_COPY = 0.6
"""Smallest Jaccard similarity of word trigrams at which a text counts as a near copy."""


class Benchmark(NamedTuple):
    """Texts of a benchmark's file, in a form that training rows can be compared with."""

    name: str
    questions: frozenset[str]
    """Words of each question of five words or more, case folded and joined by spaces."""
    grams: frozenset[int]
    """Hashes of every sequence of 13 words."""


def benchmark_of(source: str | Path) -> Benchmark:
    """Read a benchmark's questions and 13-grams from any source that `read_rows` reads.

    Raises:
        DataError: it cannot be read, or holds no text long enough to compare with.
    """
    questions: set[str] = set()
    grams: set[int] = set()
    for _, row in read_rows(source):
        for key, text in _strings(row):
            words = words_of(text)
            grams.update(_grams(words))
            if key.lower() in ("question", "prompt", "instruction") and len(words) >= 5:
                questions.add(" ".join(words))
    if not questions and not grams:
        raise DataError(f"{source}: holds no benchmark text")
    return Benchmark(Path(str(source)).name, frozenset(questions), frozenset(grams))


def contaminated(record: Record, benchmarks: Sequence[Benchmark]) -> str | None:
    """Return the name of the first benchmark that a record overlaps with; None: there is none."""
    words = [words_of(text) for text in texts_of(record)]
    for benchmark in benchmarks:
        if any(" ".join(w) in benchmark.questions for w in words):
            return benchmark.name
        if any(not benchmark.grams.isdisjoint(_grams(w)) for w in words):
            return benchmark.name
    return None


class Hit(NamedTuple):
    """A training row that holds a benchmark item's text."""

    row: str
    """Origin of the row."""
    item: int
    """Index of the benchmark's item."""
    how: str
    """The text that both share: the question, 13 words in a row, or nearly the whole row."""


class ContaminationFinder:
    """Finds the items of a benchmark in training records.

    Args:
        items: texts of each item, its question first. Texts of under `_NEAR_COPY_WORDS` words are not
            searched for near copies.
    """

    def __init__(self, items: Sequence[Sequence[str]]) -> None:
        self._questions: dict[str, list[int]] = {}
        self._grams: dict[int, list[int]] = {}
        self._trigrams: dict[int, list[int]] = {}
        """Indices of the long texts that hold a word trigram, by the trigram's hash."""
        self._sizes: list[int] = []
        """Number of different trigrams in each long text."""
        self._owners: list[int] = []
        """Item that each long text belongs to."""
        for number, texts in enumerate(items):
            self._questions.setdefault(" ".join(words_of(texts[0])), []).append(number)
            for text in texts:
                words = words_of(text)
                for gram in _grams(words):
                    self._grams.setdefault(gram, []).append(number)
                if len(words) >= _NEAR_COPY_WORDS:
                    self._add_long(set(_grams(words, 3)), number)

    def _add_long(self, trigrams: set[int], item: int) -> None:
        for trigram in trigrams:
            self._trigrams.setdefault(trigram, []).append(len(self._owners))
        self._sizes.append(len(trigrams))
        self._owners.append(item)

    def find(self, record: Record) -> list[Hit]:
        """Return a hit for each item that a record holds, in the order of the items."""
        found: dict[int, str] = {}
        for words in map(words_of, texts_of(record)):
            trigrams = set(_grams(words, 3))
            shared = Counter(place for t in trigrams for place in self._trigrams.get(t, ()))
            for place, count in shared.items():
                if count >= _NEAR_COPY * (len(trigrams) + self._sizes[place] - count):
                    found[self._owners[place]] = "a text almost alike"
            for gram in _grams(words):
                for number in self._grams.get(gram, ()):
                    found[number] = f"{GRAM} words in a row"
            for number in self._questions.get(" ".join(words), ()):
                found[number] = "the question"
        return [Hit(record.origin, number, how) for number, how in sorted(found.items())]


def _grams(words: Sequence[str], n: int = GRAM) -> Iterator[int]:
    """Yield a hash of every sequence of n words."""
    return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))


def _strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a row with its key; keys that are sentences count as texts."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if " " in name:
                yield "", name
            yield from _strings(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part, key)
