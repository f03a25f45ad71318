"""MMLU by log-likelihood: which of four letters does the model give as the answer?

The definitions are those of lm-evaluation-harness 0.4.13, group mmlu (2.0): prompts, examples (the
first ones of `dev`), decisions (the likeliest letter; of equal ones the first), and means weighted
by the subjects' sizes. One thing differs on purpose: a score that is not finite is an error.

A subject's examples run through the model once. A question is one forward pass: the letters are
scored by what comes out at its last token, where each is one token. Questions of like length run
together.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2 import machine
from forty2.benchmark.calibration import calibration, first_choice
from forty2.benchmark.partial_results import PartialResults, weights
from forty2.benchmark.prompts import Prompts, Row, Shot, examples_sha256
from forty2.benchmark.questions import small_file
from forty2.benchmark.stats import stderr
from forty2.benchmark.subjects import GROUPS as GROUPS
from forty2.errors import BenchmarkError
from forty2.inference.generation import (
    common_prefix_length,
    logits_after,
    prefix_cache,
    supports_batches,
)
from forty2.inference.logprobs import logsumexp, token_logps
from forty2.inference.shared_prefix import SharedPrefix, score_rows
from forty2.model.kv_cache import keeps_plain_keys
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent

LETTERS = "ABCD"
SHOTS = 5  # of the usual figure; the harness's own default is none
BATCH_TOKENS = 1024  # of one forward, padding included
CACHE_TOKENS = 8192  # of one batch's keys and values, those of the examples included
COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a subject."""

    text: str
    choices: tuple[str, ...]
    answer: int
    """Which choice is right, from 0."""
    number: int
    """Its place in its subject's file, from 1."""
    origin: str
    """file:line"""

    def asked(self) -> str:
        """As the model reads it."""
        lines = zip(LETTERS, self.choices, strict=True)
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in lines)
        return f"{self.text.strip()}\n{listed}\nAnswer:"

    def shot(self) -> Shot:
        """As an example."""
        return Shot(self.asked(), LETTERS[self.answer])


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked of one subject, and the examples before each question."""

    name: str
    questions: tuple[Question, ...]
    shots: tuple[Shot, ...]
    sha256: str
    """Of its file of questions."""

    @property
    def description(self) -> str:
        about = self.name.replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {about}.\n\n"


def mmlu(
    model: str,
    adapter: str | None = None,
    *,
    data: str | Path,
    shots: int = SHOTS,
    subjects: Sequence[str] = (),
    n: int | None = None,
    limit: int | None = None,
    seed: int = 42,
    chat_template: bool = False,
    multiturn: bool = True,
    out: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a model, and write the result with every item's scores.

    Args:
        model: folder, hub name or `smollm2`.
        adapter: adapter folder, or a run folder.
        data: what `load_subjects` takes.
        shots: examples before each question, the first ones of `dev`.
        subjects: names of subjects or groups; none: all there are.
        n: how many questions to sample, spread over subjects by size; None: all.
        limit: only each subject's first questions, as the harness's `--limit`.
        seed: of the sample.
        chat_template: put the context through the model's chat template.
        multiturn: with it, examples as turns of their own, as the harness has it by default.
        out: JSON file to write; until it is whole, items are kept beside it (`Kept`).
        resume: go on with a measurement that stopped.

    Raises:
        BenchmarkError: questions are unusable, or a score is not finite.
        ModelError: the model or adapter cannot be loaded.
    """
    from forty2.model.loading import load

    asked = load_subjects(data, subjects, shots=shots)
    if limit is not None:
        asked = [_only(subject, range(min(limit, len(subject.questions)))) for subject in asked]
    if n is not None:
        asked = sample(asked, n, seed)
    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    settings: dict[str, Any] = {
        "benchmark": "mmlu",
        "model": model,
        "adapter": adapter,
        "data": str(data),
        "data_sha256": _sha256(asked),
        "examples_sha256": examples_sha256(subject.shots for subject in asked),
        "shots": shots,
        "chat_template": chat_template,
        "multiturn": chat_template and multiturn,
        "n": sum(len(subject.questions) for subject in asked),
        "limit": limit,
        "seed": seed,
    }
    with PartialResults.open(
        Path(out) if out is not None else None,
        {**settings, "subjects": [s.name for s in asked], "weights": weights(loaded, adapter)},
        resume=resume,
    ) as kept:
        prompts = Prompts(loaded, chat=chat_template, multiturn=multiturn)
        measured = {**settings, **result(score(loaded, prompts, asked, kept, progress=progress))}
        kept.finish(measured)
    return measured


def result(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What scored items amount to, as JSON: by subject, by group and in all.

    Standard errors over subjects are the harness's: the pooled variance within subjects.
    """
    by_subject: dict[str, list[float]] = defaultdict(list)
    for item in items:
        by_subject[item["subject"]].append(float(item["right"]))
    groups = {
        group: {name: by_subject[name] for name in names if name in by_subject}
        for group, names in GROUPS.items()
    }
    return {
        **_figures(by_subject),
        "groups": {group: _figures(inside) for group, inside in groups.items() if inside},
        "subjects": {name: _figures({name: values}) for name, values in sorted(by_subject.items())},
        "calibration": calibration(
            [
                first_choice(item["logps"], [int(n == item["answer"]) for n in range(len(LETTERS))])
                for item in items
            ]
        ),
        "versions": machine.facts(),
        "items": [dict(item) for item in items],
    }


def _figures(subjects: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Accuracy over subjects, weighted by size, and its standard error: None for one question.

    Where a subject has one question alone, its variance is not known, and the harness gives no
    standard error: here it is then that of all questions as one sample, which is a little larger.
    """
    values = [value for inside in subjects.values() for value in inside]
    n, error = len(values), None
    if all(len(inside) > 1 for inside in subjects.values()):
        within = [len(v) * (len(v) - 1) * stderr(v) ** 2 for v in subjects.values()]
        error = math.sqrt(math.fsum(within) / (n - len(subjects)) / n)
    elif n > 1:
        error = stderr(values)
    return {"acc": math.fsum(values) / n, "stderr": error, "n": n}


# --- questions ------------------------------------------------------------------------------------


def load_subjects(
    source: str | Path, names: Sequence[str] = (), *, shots: int = SHOTS
) -> list[Subject]:
    """Read subjects and check every question.

    Args:
        source: a folder with `test` and `dev`, which hold a CSV for each subject; or one such CSV,
            `dev` beside its folder.
        names: of subjects or groups; none: all.
        shots: how many examples to take from `dev`.

    Raises:
        BenchmarkError: there is no such file or subject, or a row is unusable. Names file and line.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        files = {_subject(file): file for file in sorted((path / "test").glob("*.csv"))}
        dev = path / "dev"
    else:
        files, dev = {_subject(path): path}, path.parent.parent / "dev"
    if not files:
        raise BenchmarkError(
            f"{path}: no test/*.csv; give MMLU's folder, with test/ and dev/ in it, or one CSV"
        )
    wanted = {s for name in names for s in GROUPS.get(name, [name])}
    unknown = sorted(wanted - set(files))
    if unknown:
        raise BenchmarkError(f"{path}: no questions of {', '.join(unknown)}; see its test/ folder")
    return [
        _load(name, file, dev, shots)
        for name, file in files.items()
        if not wanted or name in wanted
    ]


def sample(subjects: Sequence[Subject], n: int, seed: int) -> list[Subject]:
    """Draw `n` questions, spread over subjects by size: by the largest remainder, seeded.

    Subjects of which none is drawn are left out.
    """
    total = sum(len(subject.questions) for subject in subjects)
    if not 1 <= n <= total:
        raise BenchmarkError(f"cannot sample {n} of {total} questions; n must be 1 to {total}")
    rng = random.Random(seed)
    quota = [divmod(n * len(subject.questions), total) for subject in subjects]
    ranked = rng.sample(range(len(subjects)), len(subjects))
    ranked.sort(key=lambda index: -quota[index][1])
    up = set(ranked[: n - sum(whole for whole, _ in quota)])
    drawn = [
        _only(s, sorted(rng.sample(range(len(s.questions)), whole + (index in up))))
        for index, (s, (whole, _)) in enumerate(zip(subjects, quota, strict=True))
    ]
    return [subject for subject in drawn if subject.questions]


def _only(subject: Subject, places: Sequence[int]) -> Subject:
    questions = tuple(subject.questions[place] for place in places)
    return Subject(subject.name, questions, subject.shots, subject.sha256)


def _sha256(subjects: Sequence[Subject]) -> str:
    """Of all files of questions."""
    lines = "".join(f"{subject.sha256}  {subject.name}\n" for subject in subjects)
    return hashlib.sha256(lines.encode()).hexdigest()


def _subject(file: Path) -> str:
    return file.stem.removesuffix("_test")


def _load(name: str, file: Path, dev: Path, shots: int) -> Subject:
    data = small_file(file)
    questions = _questions(data, file)
    examples: list[Question] = []
    if shots:
        names = (f"{name}_dev.csv", f"{name}.csv")
        beside = next((dev / n for n in names if (dev / n).exists()), dev / names[0])
        examples = _questions(small_file(beside), beside)[:shots]
        if len(examples) < shots:
            raise BenchmarkError(f"{beside}: holds {len(examples)} examples, not {shots}")
    sha256 = hashlib.sha256(data).hexdigest()
    return Subject(name, tuple(questions), tuple(q.shot() for q in examples), sha256)


def _questions(data: bytes, file: Path) -> list[Question]:
    questions: list[Question] = []
    try:
        text = data.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise BenchmarkError(
                f"{file}:1: wrong columns, {', '.join(missing)} missing; the first line must be "
                f"{','.join(COLUMNS)}"
            )
        line = reader.line_num + 1
        for row in reader:
            questions.append(_question(row, len(questions) + 1, f"{file}:{line}"))
            line = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(f"{file}: not readable as CSV in UTF-8: {error}") from error
    if not questions:
        raise BenchmarkError(f"{file}: holds no questions")
    return questions


def _question(row: Mapping[str | None, Any], number: int, origin: str) -> Question:
    if None in row or None in row.values():
        raise BenchmarkError(f"{origin}: has another number of cells than the first line")
    if not row["question"].strip():
        raise BenchmarkError(f"{origin}: the question is empty; fill it in or remove it")
    if row["answer"] not in ("0", "1", "2", "3"):
        raise BenchmarkError(f"{origin}: the answer is {row['answer']!r}; it must be 0, 1, 2 or 3")
    choices = tuple(row[name] for name in COLUMNS[1:5])
    return Question(row["question"], choices, int(row["answer"]), number, origin)


# --- scores ---------------------------------------------------------------------------------------


def score(
    loaded: LoadedModel,
    prompts: Prompts,
    subjects: Sequence[Subject],
    kept: PartialResults | None = None,
    *,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Log-probabilities of the four letters after each question, subject by subject.

    Args:
        kept: items that are there already are not measured again.

    Returns:
        Per question: subject, number, `logps` of A to D, `choice` and `answer` from 0, `right`.

    Raises:
        BenchmarkError: a score is not finite.
    """
    kept = kept if kept is not None else PartialResults(None, None, {})
    total = sum(len(subject.questions) for subject in subjects)
    nothing = SharedPrefix(loaded.model) if keeps_plain_keys(loaded.model) else None
    batched = nothing is not None or supports_batches(loaded.model)
    done = 0
    items = []
    for subject in subjects:
        keys = {f"{subject.name}/{q.number}": q for q in subject.questions}
        left = [(key, question) for key, question in keys.items() if key not in kept]
        done += len(keys) - len(left)
        rows = [_rows(prompts, subject, question) for _, question in left]
        scorer = _Scorer(loaded.model, nothing, _beginning(prompts, subject), batched)
        for places, scored in scorer(rows):
            for place, logps in zip(places, scored, strict=True):
                key, question = left[place]
                kept.add(key, _item(subject.name, question, logps))
            done += len(places)
            progress("mmlu", done, total, {"subject": subject.name})
        items += [kept[key] for key in keys]
    return items


def _item(subject: str, question: Question, logps: Sequence[float]) -> dict[str, Any]:
    if not np.isfinite(logps).all():
        raise BenchmarkError(
            f"{question.origin}: a letter scores {[*logps]}; the model is broken (weights, adapter "
            "or precision)"
        )
    choice = int(np.argmax(logps))
    return {
        "subject": subject,
        "number": question.number,
        "logps": list(logps),
        "choice": choice,
        "answer": question.answer,
        "right": choice == question.answer,
    }


def _rows(prompts: Prompts, subject: Subject, question: Question) -> list[Row]:
    """The four letters as continuations, with the left end cut off where it does not fit."""
    context = prompts.context(question.asked(), subject.shots, description=subject.description)
    rows = prompts.rows(context, LETTERS)
    return [Row(row.given[-(prompts.length + 1 - len(row.scored)) :], row.scored) for row in rows]


def _beginning(prompts: Prompts, subject: Subject) -> list[int]:
    """What the subject's contexts begin with, as tokens: what two unlike questions have alike."""
    first, second = (
        prompts.ids(prompts.context(text, subject.shots, description=subject.description))
        for text in ("Who?", "1")
    )
    return first[: common_prefix_length([first, second])]


class _Scorer:
    """Scores the letters after questions that begin alike; the beginning runs once."""

    def __init__(
        self,
        model: nn.Module,
        nothing: SharedPrefix | None,
        beginning: Sequence[int],
        batched: bool,
    ) -> None:
        """
        Args:
            nothing: an empty prefix; None: the model's cache cannot be shared.
            beginning: as tokens.
            batched: whether rows of unequal length may run together.
        """
        self._model = model
        self._nothing = nothing
        self._batched = batched
        self._beginning = list(beginning)

    @functools.cached_property
    def _begun(self) -> SharedPrefix:
        assert self._nothing is not None
        return self._nothing.extend(self._beginning)

    def __call__(
        self, questions: Sequence[Sequence[Row]]
    ) -> Iterator[tuple[list[int], list[list[float]]]]:
        """Yields places in `questions` and, for each, the log-probabilities of its four rows."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, rows in enumerate(questions):
            if self._batched and len({(*row.given, *row.scored[:-1]) for row in rows}) == 1:
                groups[self._skipped(rows), len(rows[0].scored)].append(place)
            else:
                yield [place], [self._one_by_one(rows)]
        for (skip, last), places in groups.items():
            logits = self._logits(skip, last)
            places.sort(key=lambda place: len(questions[place][0].given))
            lengths = [len(questions[place][0].given) for place in places]
            for batch in _batches(lengths, skip):
                chosen = [places[n] for n in batch]
                yield chosen, self._at_once([questions[place] for place in chosen], logits, skip)

    def _logits(self, skip: int, last: int) -> Callable[[Sequence[Sequence[int]]], mx.array]:
        """What gives the logits of the last tokens of rows, the first tokens of which are skipped."""
        if self._nothing is not None:
            prefix = self._begun if skip else self._nothing
            return functools.partial(prefix.logits, last=last)
        cache = prefix_cache(self._model, self._beginning[:skip])
        return functools.partial(logits_after, self._model, cache, last=last)

    def _at_once(
        self,
        questions: Sequence[Sequence[Row]],
        logits_of: Callable[[Sequence[Sequence[int]]], mx.array],
        skip: int,
    ) -> list[list[float]]:
        """Of questions whose rows differ in their last token only: one forward pass of each."""
        scored = len(questions[0][0].scored)
        ids = [[*rows[0].given[skip:], *rows[0].scored[:-1]] for rows in questions]
        logits = logits_of(ids)
        letters = mx.array([[row.scored[-1] for row in rows] for rows in questions])
        picked = mx.take_along_axis(logits[:, -1], letters, axis=-1).astype(mx.float32)
        logps = picked - logsumexp(logits[:, -1])[:, None]
        if scored > 1:
            before = mx.array([rows[0].scored[:-1] for rows in questions])
            logps += token_logps(logits[:, :-1], before).sum(axis=1, keepdims=True)
        return cast(list[list[float]], logps.tolist())

    def _one_by_one(self, rows: Sequence[Row]) -> list[float]:
        """Of any rows: what they have alike runs once, the rest of each as a continuation."""
        if self._nothing is None:
            return score_rows(self._model, rows)
        skip = self._skipped(rows)
        prefix = self._begun if skip else self._nothing
        # the last token before the scored ones is fed again: its output predicts the first of them
        given = [row.given for row in rows]
        alike = min(common_prefix_length(given), min(map(len, given)) - 1)
        rest = [(row.given[alike:], row.scored) for row in rows]
        return prefix.extend(given[0][skip:alike]).score(rest)

    def _skipped(self, rows: Sequence[Row]) -> int:
        """How many ids of the rows' beginning need not run again: all of it or none."""
        length = len(self._beginning)
        begins = (row.given[:length] == self._beginning and len(row.given) > length for row in rows)
        return length if all(begins) else 0


def _batches(lengths: Sequence[int], skipped: int) -> Iterator[list[int]]:
    """Consecutive places of rows so long, the first tokens of which need not run."""
    batch: list[int] = []
    for place, length in enumerate(lengths):
        size = len(batch) + 1
        if batch and (size * (length - skipped) > BATCH_TOKENS or size * length > CACHE_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
