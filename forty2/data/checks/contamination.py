"""Search for benchmark texts in training data, for a run and for the lint.

A training row holds an item of a benchmark if one of its texts
  - is the item's question, ends a sentence with it, or, if it is long enough, has it anywhere,
  - shares 13 words in a row with any of the item's texts, or
  - is nearly one of the item's texts, by the trigrams of words that both have (in a run alone).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.data.record_texts import texts_of, words_of
from forty2.data.records import Record
from forty2.data.sources import read_rows
from forty2.errors import DataError

GRAM = 13
"""Words in a row shared with a benchmark that count as overlap (Brown et al. 2020, appendix C)."""
_LONG = 8
"""Words; a shorter text resembles a benchmark's, or has its question within it, by accident."""
_SENTENCE = 5
"""Words; a shorter question must be a whole text, not only the end of a sentence."""
_NEAR_COPY = 0.6
"""Smallest Jaccard similarity of word trigrams at which a text counts as a near copy."""
_COMMON = 10
"""Items; what more of them share is the benchmark's boilerplate, and identifies none of them."""
_BREAK = re.compile(r"[.?!:\n\"“”„«»()]+")

_Hashes = npt.NDArray[np.int64]
_Numbers = npt.NDArray[np.intp]


class Benchmark(NamedTuple):
    """Texts of a benchmark, which must not be in training rows."""

    name: str
    items: Sequence[Sequence[str]]
    """Texts of each item, its question first; "" stands for the question of an item without one."""


def benchmark_of(source: str | Path) -> Benchmark:
    """Read a benchmark's texts from any source that `read_rows` reads.

    Raises:
        DataError: it cannot be read, or holds no text long enough to compare with.
    """
    items: list[list[str]] = []
    for _, row in read_rows(source):
        found = list(texts_by_key(row))
        questions = [text for key, text in found if _is_question(key, text)]
        first, *others = questions or [""]
        items.append([first, *(text for _, text in found)])
        items += [[question] for question in others]
    if not any(item[0] or max(map(len, map(words_of, item))) >= _LONG for item in items):
        raise DataError(f"{source}: holds no benchmark text")
    return Benchmark(Path(str(source)).name, items)


class Hit(NamedTuple):
    """A training row that holds a benchmark item's text."""

    row: str
    """Origin of the row."""
    benchmark: str
    """Name of the benchmark."""
    item: int
    """Index of the benchmark's item."""
    how: str
    """The text that both share: the question, 13 words in a row, or nearly the whole row."""


class ContaminationFinder:
    """Finds the items of benchmarks in training records.

    Args:
        near_copies: find near copies, too: reason enough to score a model without a question as
            well, as a run does, but not to refuse the row.
        groups: for each item of all benchmarks, the group of items that nearly repeat each other.
            Words in a row that two groups share are then a wording, and identify no item; without
            groups it takes more than ten items.
    """

    def __init__(
        self,
        benchmarks: Sequence[Benchmark],
        *,
        near_copies: bool = True,
        groups: Sequence[int] | None = None,
    ) -> None:
        self._places = [(b.name, n) for b in benchmarks for n in range(len(b.items))]
        """Benchmark and index of each item; all that follows counts items of all benchmarks."""
        items = [[words_of(text) for text in texts] for b in benchmarks for texts in b.items]
        self._questions = [" ".join(texts[0]) for texts in items]
        self._by_question: dict[str, list[int]] = {}
        for number, question in enumerate(self._questions):
            self._by_question.setdefault(question, []).append(number)
        self._by_question = {
            question: numbers
            for question, numbers in self._by_question.items()
            if question and len(numbers) <= _COMMON
        }
        beginnings = [
            (number, _grams(texts[0][:_LONG], _LONG)) for number, texts in enumerate(items)
        ]
        self._beginnings = _Index(beginnings)
        """Items by the first words of a long question."""
        every = [(number, words) for number, texts in enumerate(items) for words in texts]
        grams = [(n, _grams(w, GRAM)) for n, w in every]
        if groups is None:
            self._grams = _Index(grams, most=_COMMON)
        else:
            self._grams = _Index(grams, most=1, groups=np.array(groups, np.intp))
        long = [(n, w) for n, w in every if near_copies and len(w) >= _LONG]
        self._near_copies = _NearCopies(long)

    def find(self, record: Record) -> list[Hit]:
        """Return a hit for each item that a record holds, in the order of the items."""
        near, grams, questions = set[int](), set[int](), set[int]()
        for text in texts_of(record):
            words = words_of(text)
            near |= self._near_copies.find(words)
            grams |= self._grams.find(_grams(words, GRAM))
            questions |= self._asked(text, words)
        found = {
            **dict.fromkeys(near, "a text almost alike"),
            **dict.fromkeys(grams, f"{GRAM} words in a row"),
            **dict.fromkeys(questions, "the question"),
        }
        return [Hit(record.origin, *self._places[n], how) for n, how in sorted(found.items())]

    def _asked(self, text: str, words: Sequence[str]) -> set[int]:
        """Return the items whose question a text is, ends a sentence with, or has anywhere."""
        whole = " ".join(words)
        found = set(self._by_question.get(whole, ()))
        for sentence in map(words_of, _BREAK.split(text)):
            for length in range(_SENTENCE, min(_LONG, len(sentence) + 1)):
                found.update(self._by_question.get(" ".join(sentence[-length:]), ()))
        for number in self._beginnings.find(_grams(words, _LONG)):
            question = self._questions[number]
            if question in self._by_question and f" {question} " in f" {whole} ":
                found.add(number)
        return found


class _Index:
    """Numbers by hashes, in sorted arrays: a tenth of the memory that a dictionary takes.

    Args:
        entries: numbers, each with its hashes.
        most: a hash that more numbers have is left out; None: none is.
        groups: group of each number; then groups are counted.
    """

    def __init__(
        self,
        entries: Sequence[tuple[int, _Hashes]],
        most: int | None = None,
        groups: _Numbers | None = None,
    ) -> None:
        keys = np.concatenate([np.empty(0, np.int64), *(hashes for _, hashes in entries)])
        sizes = [len(hashes) for _, hashes in entries]
        numbers: _Numbers = np.repeat(np.array([n for n, _ in entries], np.intp), sizes)
        order = np.lexsort((numbers, keys))
        keys, numbers = keys[order], numbers[order]
        first = np.ones(len(keys), bool)
        first[1:] = (keys[1:] != keys[:-1]) | (numbers[1:] != numbers[:-1])
        keys, numbers = keys[first], numbers[first]
        if most is not None:
            _, places = np.unique(keys, return_inverse=True)
            owners = numbers if groups is None else groups[numbers]
            pairs = np.unique(np.stack([places, owners]), axis=1)
            rare = np.bincount(pairs[0])[places] <= most if len(keys) else np.empty(0, bool)
            keys, numbers = keys[rare], numbers[rare]
        self._keys, self._numbers = keys, numbers

    def find(self, hashes: _Hashes) -> set[int]:
        """Return the numbers that have any of these hashes."""
        starts, ends = (np.searchsorted(self._keys, hashes, side) for side in ("left", "right"))
        there = ends > starts
        return {
            int(number)
            for start, end in zip(starts[there], ends[there], strict=True)
            for number in self._numbers[start:end]
        }


class _NearCopies:
    """Finds the items that a text is nearly a copy of.

    A near copy shares most trigrams with a text, so one of the rarest of each is the same: only these
    are indexed and looked up (Bayardo et al. 2007, "Scaling up all pairs similarity search"), or words
    such as "which of the following" would lead to thousands of texts.

    Args:
        texts: words of each text, with the number of its item.
    """

    def __init__(self, texts: Sequence[tuple[int, Sequence[str]]]) -> None:
        self._owners = [number for number, _ in texts]
        self._trigrams = [np.unique(_grams(words, 3)) for _, words in texts]
        everything = np.concatenate([np.empty(0, np.int64), *self._trigrams])
        self._known, self._counts = np.unique(everything, return_counts=True)
        entries = [(place, self._rarest(own)) for place, own in enumerate(self._trigrams)]
        self._index = _Index(entries)

    def _rarest(self, trigrams: _Hashes) -> _Hashes:
        """Return as many of the rarest trigrams as a near copy cannot lack; equally rare by hash."""
        if not len(self._known):
            return trigrams
        places = np.searchsorted(self._known, trigrams).clip(max=len(self._known) - 1)
        counts = np.where(self._known[places] == trigrams, self._counts[places], 0)
        needed = len(trigrams) - math.ceil(_NEAR_COPY * len(trigrams)) + 1
        return trigrams[np.argsort(counts, kind="stable")[:needed]]

    def find(self, words: Sequence[str]) -> set[int]:
        """Return the numbers of the items with a text that is nearly this one."""
        trigrams = np.unique(_grams(words, 3))
        found = set[int]()
        for place in self._index.find(self._rarest(trigrams)):
            other = self._trigrams[place]
            fewer, more = sorted((len(trigrams), len(other)))
            if fewer < _NEAR_COPY * more:
                continue
            shared = len(np.intersect1d(trigrams, other, assume_unique=True))
            if shared >= _NEAR_COPY * (len(trigrams) + len(other) - shared):
                found.add(self._owners[place])
        return found


def _grams(words: Sequence[str], n: int) -> _Hashes:
    """Hash every sequence of n words."""
    return np.array([hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)], np.int64)


def _is_question(key: str, text: str) -> bool:
    return key.lower() in ("question", "prompt", "instruction") and bool(words_of(text))


def texts_by_key(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a row with its key; keys that are sentences count as texts."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if " " in name:
                yield "", name
            yield from texts_by_key(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from texts_by_key(part, key)
