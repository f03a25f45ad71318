"""Whether training data holds what a benchmark asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forty2.data.records import Record
from forty2.data.sources import read_rows
from forty2.data.views import texts_of, words_of
from forty2.errors import DataError

GRAM = 13
"""Words in a row shared with a benchmark that count as overlap (Brown et al. 2020, appendix C)."""
_TELLING = 8
"""Words from which a text almost alike is no accident."""
_ALIKE = 0.6
"""Jaccard similarity of word trigrams."""


class Benchmark(NamedTuple):
    """A file that must not be trained on."""

    name: str
    questions: frozenset[str]
    """Normalised, of five words or more."""
    grams: frozenset[int]
    """Hashes of every 13 words in a row."""


def benchmark_of(source: str | Path) -> Benchmark:
    """A benchmark's questions and 13-grams, from any file that rows are read from."""
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
    """The name of the benchmark that a record overlaps with."""
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
    """Where it came from."""
    item: int
    how: str
    """The question itself, 13 words in a row, or a text almost alike."""


def hits(records: Iterable[Record], items: Sequence[Sequence[str]]) -> list[Hit]:
    """Which training rows hold which items, each pair once.

    Args:
        items: the texts of each, its question first. Answers under `_TELLING` words are no sign.
    """
    questions: dict[str, list[int]] = {}
    grams: dict[int, list[int]] = {}
    shingles: dict[int, list[int]] = {}
    """Of the texts that are long enough, which hold a word trigram."""
    sizes: list[int] = []
    owners: list[int] = []
    for number, texts in enumerate(items):
        questions.setdefault(" ".join(words_of(texts[0])), []).append(number)
        for text in texts:
            words = words_of(text)
            for gram in _grams(words):
                grams.setdefault(gram, []).append(number)
            if len(words) >= _TELLING:
                for trigram in (own := set(_grams(words, 3))):
                    shingles.setdefault(trigram, []).append(len(owners))
                sizes.append(len(own))
                owners.append(number)
    found: dict[tuple[str, int], str] = {}
    for record in records:
        for words in map(words_of, texts_of(record)):
            trigrams = set(_grams(words, 3))
            shared = Counter(place for t in trigrams for place in shingles.get(t, ()))
            for place, count in shared.items():
                if count >= _ALIKE * (len(trigrams) + sizes[place] - count):
                    found[record.origin, owners[place]] = "a text almost alike"
            for gram in _grams(words):
                for number in grams.get(gram, ()):
                    found[record.origin, number] = f"{GRAM} words in a row"
            for number in questions.get(" ".join(words), ()):
                found[record.origin, number] = "the question"
    return [Hit(row, number, how) for (row, number), how in sorted(found.items())]


def _grams(words: Sequence[str], n: int = GRAM) -> Iterator[int]:
    return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a row with the key it is under; keys that are sentences count as texts."""
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
