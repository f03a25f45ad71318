"""Where the questions of a test set come from.

    builtin                 made by programs, without end, each with a verifier
    mmlu[:PATH]             multiple choice, from `test`
    gsm8k[:PATH]            word problems, from `train.jsonl`, so that its test file stays unused
    humaneval[:PATH]        functions with unit tests
    FILE, FOLDER, hub:NAME  rows of your own, in any shape that training takes

PATH is the folder or file of the benchmark; by default the folder of its name in `FORTY2_BENCH_DATA`.
A row of your own may have `stratum`, `verifier` and `reference`; without a reference it is the row's
answer, and without a stratum the row is in `other`.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.benchmark.question_files import DATA
from forty2.data.formats import parse, parse_prompt
from forty2.data.record_texts import answer_of
from forty2.data.records import Message
from forty2.data.sources import read_rows
from forty2.errors import BenchmarkError, DataError
from forty2.failures.builtin import KINDS, made_items
from forty2.failures.verifiers import parse_verifier
from forty2.files import JsonObject

BUILTIN = "builtin"
BENCHMARKS = ("mmlu", "gsm8k", "humaneval")
OTHER = "other"
"""Stratum of a row that names none."""
_SPARE = 2
"""Rows of a stratum that are held for each one wanted; duplicates and training rows drop out."""
_MATHEMATICS = ("algebra", "mathematics", "statistics")
_REASONING = ("formal_logic", "logical_fallacies")
_KEYS = ("stratum", "verifier", "reference")
_CHOOSE = "Answer with the letter of the right choice."
_WRITE = (
    "Complete this Python function. Reply with the whole function in one code block.\n```python\n"
)


class Candidate(NamedTuple):
    """A question that may come into the test set."""

    stratum: str
    messages: tuple[Message, ...]
    verifier: JsonObject | None
    reference: str | None
    source: str


class OpenedSource:
    """The questions of one source, by stratum.

    Args:
        name: what the user called it.
        about: what the test set's record says of it.
        candidates: its questions by stratum, in the order in which they are taken; None: they are
            made as they are asked for.
    """

    def __init__(
        self,
        name: str,
        about: JsonObject,
        candidates: Mapping[str, Sequence[Candidate]] | None,
        seed: int,
    ) -> None:
        self.name, self.about = name, about
        self._candidates, self._seed = candidates, seed

    def of(self, stratum: str) -> Iterator[Candidate]:
        """Yield the questions of a stratum."""
        if self._candidates is not None:
            yield from self._candidates.get(stratum, ())
            return
        for source, made in made_items(stratum, self._seed):
            system = ({"role": "system", "content": made.system},) if made.system else ()
            messages = (*system, {"role": "user", "content": made.prompt})
            yield Candidate(stratum, messages, made.verifier, made.reference, source)


def open_source(name: str, wanted: Mapping[str, int], seed: int) -> OpenedSource:
    """Read a source once; of rows, a seeded sample of each wanted stratum is held.

    Args:
        wanted: number of items by stratum.

    Raises:
        DataError, BenchmarkError: it cannot be read, or a row is wrong.
    """
    if name == BUILTIN:
        return OpenedSource(name, {"source": name, "strata": sorted(KINDS)}, None, seed)
    kind, _, path = name.partition(":")
    rows = _benchmark(kind, path) if kind in BENCHMARKS and not Path(name).exists() else _rows(name)
    sample = _Sample(wanted, seed)
    for candidate in rows:
        sample.add(candidate)
    if not sample.rows:
        raise DataError(f"{name}: holds no rows")
    about: JsonObject = {"source": name, "rows": sum(sample.rows.values())}
    about["strata"] = dict(sorted(sample.rows.items()))
    about["rows_sha256"] = sample.digest.hexdigest()
    return OpenedSource(name, about, sample.drawn(), seed)


class _Sample:
    """A seeded sample of the rows of each stratum, in memory that their number does not change.

    Each row's hash decides whether it is drawn (bottom-k sampling; Cohen & Kaplan 2007, "Summarizing
    data using bottom-k sketches"), so the order of the rows does not matter.
    """

    def __init__(self, wanted: Mapping[str, int], seed: int) -> None:
        self._wanted, self._seed = wanted, seed
        self.rows: Counter[str] = Counter()
        self.digest = hashlib.sha256()
        """Hash of all rows in their order."""
        self._held: dict[str, list[tuple[int, int, Candidate]]] = defaultdict(list)

    def add(self, row: Candidate) -> None:
        self.rows[row.stratum] += 1
        self.digest.update(f"{row}\n".encode())
        most = _SPARE * self._wanted.get(row.stratum, 0)
        if not most:
            return
        text = f"{self._seed} {row.messages}".encode()
        rank = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        held = self._held[row.stratum]
        entry = (-rank, -self.rows[row.stratum], row)
        if len(held) < most:
            heapq.heappush(held, entry)
        elif entry > held[0]:
            heapq.heapreplace(held, entry)

    def drawn(self) -> dict[str, list[Candidate]]:
        return {
            stratum: [row for *_, row in sorted(held, key=lambda entry: entry[:2], reverse=True)]
            for stratum, held in self._held.items()
        }


# --- rows of one's own ----------------------------------------------------------------------------


def _rows(name: str) -> Iterator[Candidate]:
    for origin, row in read_rows(name):
        yield _candidate(row, origin)


def _candidate(row: JsonObject, origin: str) -> Candidate:
    stratum, verifier, reference = (row.get(key) for key in _KEYS)
    if not isinstance(stratum, str | None) or stratum == "":
        raise DataError(f"{origin}: stratum must be a name")
    if not isinstance(reference, str | None):
        raise DataError(f"{origin}: reference must be a text")
    if row.get("tools"):
        raise DataError(
            f"{origin}: tools are not offered to the model; describe them in a system turn"
        )
    if verifier is not None:
        parse_verifier(verifier, origin)
    asked = {key: value for key, value in row.items() if key not in _KEYS}
    messages = parse_prompt(asked, origin)
    if messages[-1]["role"] != "user":
        raise DataError(f"{origin}: the last turn before the answer must be the user's")
    if reference is None:
        reference = _answer(asked, origin)
    return Candidate(stratum or OTHER, tuple(messages), verifier, reference, origin)


def _answer(row: JsonObject, origin: str) -> str | None:
    """Return the answer that a row holds; None: it holds none."""
    try:
        return answer_of(parse(row, origin)) or None
    except DataError:
        return None


# --- benchmarks -----------------------------------------------------------------------------------


def _benchmark(kind: str, path: str) -> Iterator[Candidate]:
    folder = os.environ.get(DATA)
    if not path and not folder:
        raise DataError(
            f"{kind}: not here; write {kind}:PATH, or set {DATA} to a folder with {kind}/"
        )
    place = Path(os.path.expanduser(path)) if path else Path(folder or "") / kind
    if not place.exists():
        raise DataError(f"{place}: there is no such file or folder; write {kind}:PATH")
    return {"mmlu": _mmlu, "gsm8k": _gsm8k, "humaneval": _humaneval}[kind](place)


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _mmlu(place: Path) -> Iterator[Candidate]:
    from forty2.benchmark.tasks.mmlu import LETTERS, load_subjects

    for subject in load_subjects(place, shots=0):
        stratum = OTHER
        if any(word in subject.name for word in _MATHEMATICS):
            stratum = "mathematics"
        elif subject.name in _REASONING:
            stratum = "reasoning"
        for question in subject.questions:
            choices = dict(zip(LETTERS, question.choices, strict=True))
            listed = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
            answer = LETTERS[question.answer]
            verifier = {"kind": "choice", "answer": answer, "choices": choices}
            prompt = f"{question.text.strip()}\n{listed}\n{_CHOOSE}"
            source = f"mmlu:{subject.name}:{question.number}"
            reference = f"{answer}. {choices[answer]}"
            yield Candidate(stratum, _user(prompt), verifier, reference, source)


def _gsm8k(place: Path) -> Iterator[Candidate]:
    from forty2.benchmark.tasks.gsm8k import bare, load_problems, without_calculations

    file = place / "train.jsonl" if place.is_dir() else place
    for problem in load_problems(file, shots=0).items:
        answer = bare(problem.answer)
        verifier = {"kind": "number", "answer": answer}
        try:
            parse_verifier(verifier, f"{file}:{problem.number}")
        except DataError as error:
            raise BenchmarkError(f"{file}:{problem.number}: the answer is no number") from error
        reference = without_calculations(problem.answer)
        source = f"gsm8k:{problem.number}"
        yield Candidate("mathematics", _user(problem.question), verifier, reference, source)


def _humaneval(place: Path) -> Iterator[Candidate]:
    from forty2.benchmark.tasks.humaneval import load_problems

    for problem in load_problems(place).items:
        verifier = {
            "kind": "unit_test",
            "entry_point": problem.entry_point,
            "tests": f"{problem.test}\ncheck({problem.entry_point})",
            "head": problem.prompt,
        }
        reference = (
            f"```python\n{problem.prompt}{problem.solution}\n```" if problem.solution else None
        )
        prompt = f"{_WRITE}{problem.prompt.rstrip()}\n```"
        yield Candidate("code", _user(prompt), verifier, reference, problem.task_id)
