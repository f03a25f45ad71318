"""Whether training data holds what a benchmark asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forty2.data.records import Record
from forty2.data.sources import read_rows
from forty2.data.views import texts_of, words_of
from forty2.errors import DataError

GRAM = 13
"""Words in a row shared with a benchmark that count as overlap (Brown et al. 2020, appendix C)."""


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


def _grams(words: Sequence[str]) -> Iterator[int]:
    return (hash(tuple(words[i : i + GRAM])) for i in range(len(words) - GRAM + 1))


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
