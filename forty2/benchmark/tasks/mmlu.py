"""MMLU by log-likelihood: which of four letters does the model give as the answer?

The definitions are those of lm-evaluation-harness 0.4.13, group mmlu (2.0): prompts, examples (the
first ones of `dev`), decisions (the likeliest letter; of equal ones the first), and means weighted
by the subjects' sizes. One thing differs on purpose: a score that is not finite is an error.

A subject's examples run through the model once. If each letter is one token, a question is one
forward pass, and the output at its last token scores all four. Questions of similar length run
together.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forty2.benchmark.calibration import calibration, first_choice
from forty2.benchmark.mmlu_subjects import GROUP_OF, GROUPS
from forty2.benchmark.prompts import Prompts, Row, Shot, examples_sha256
from forty2.benchmark.question_files import read_question_file
from forty2.benchmark.results import Item, Result
from forty2.benchmark.stats import stderr
from forty2.benchmark.task import Report, Source, Task, with_error
from forty2.data.strata import largest_remainder
from forty2.errors import BenchmarkError
from forty2.files import JsonObject

if TYPE_CHECKING:  # a result is read without mlx
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel

LETTERS = "ABCD"
SHOTS = 5
"""Examples before each question, as in most published figures; the harness's own default is 0."""
COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
NO_GROUP = "no group"
"""Group of subjects that are not among the 57."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a subject."""

    text: str
    choices: tuple[str, ...]
    answer: int
    """Place of the right choice, from 0."""
    number: int
    """Place in its subject's file, from 1."""
    origin: str
    """Where it was read, as file:line."""

    def asked(self) -> str:
        """Return the question as the model reads it."""
        lines = zip(LETTERS, self.choices, strict=True)
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in lines)
        return f"{self.text.strip()}\n{listed}\nAnswer:"

    def shot(self) -> Shot:
        """Return the question as an example."""
        return Shot(self.asked(), LETTERS[self.answer])


@dataclass(frozen=True, slots=True)
class Subject:
    """Questions of one subject, and the examples before each of them."""

    name: str
    questions: tuple[Question, ...]
    shots: tuple[Shot, ...]
    sha256: str
    """sha256 of its file of questions."""

    @property
    def description(self) -> str:
        about = self.name.replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {about}.\n\n"


@dataclass(frozen=True, kw_only=True)
class Mmlu(Task[list[Subject]]):
    """MMLU by log-likelihood of four letters, by subject, group and in all."""

    data: str | Path
    """MMLU's folder or one CSV, as for `load_subjects`."""
    shots: int = SHOTS
    """Examples before each question, the first ones of `dev`."""
    subjects: Sequence[str] = ()
    """Names of subjects or groups; none: all."""
    n: int | None = None
    """Questions to sample, spread over subjects by size; None: all."""
    limit: int | None = None
    """Only each subject's first questions, as with the harness's `--limit`."""
    seed: int = 42
    chat_template: bool = False
    multiturn: bool = True
    """With a chat template, make examples turns of their own, as the harness does by default."""

    name = "mmlu"
    title = "MMLU"
    judged = ("mmlu",)
    must_agree = ("chat_template", "multiturn", "shots", "examples_sha256")
    may_differ = ("limit",)
    category_key = "subject"
    category_metric = "mmlu"

    def load(self) -> list[Subject]:
        subjects = load_subjects(self.data, self.subjects, shots=self.shots)
        if self.limit is not None:
            subjects = [_only(s, range(min(self.limit, len(s.questions)))) for s in subjects]
        return subjects if self.n is None else sample(subjects, self.n, self.seed)

    def source(self, questions: list[Subject]) -> Source:
        lines = "".join(f"{subject.sha256}  {subject.name}\n" for subject in questions)
        n = sum(len(subject.questions) for subject in questions)
        return Source(str(self.data), hashlib.sha256(lines.encode()).hexdigest(), n)

    def question_texts(self, questions: list[Subject]) -> list[tuple[str, str]]:
        return [(q.text, q.asked()) for subject in questions for q in subject.questions]

    def settings(self, questions: list[Subject], loaded: LoadedModel) -> JsonObject:
        return {
            "examples_sha256": examples_sha256(subject.shots for subject in questions),
            "shots": self.shots,
            "chat_template": self.chat_template,
            "multiturn": self.chat_template and self.multiturn,
            "limit": self.limit,
        }

    def score(
        self, loaded: LoadedModel, questions: list[Subject], partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        prompts = Prompts(loaded, chat=self.chat_template, multiturn=self.multiturn)
        return score(loaded, prompts, questions, partial, report)

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        """Compute accuracies by subject, by group and in all.

        Standard errors over subjects are the harness's: the pooled variance within subjects.
        """
        by_subject: dict[str, list[float]] = defaultdict(list)
        for item in items:
            by_subject[str(item.category)].append(item.scores["mmlu"])
        groups = {
            group: {name: by_subject[name] for name in names if name in by_subject}
            for group, names in GROUPS.items()
        }
        choices = [
            (item.record["logps"], [int(n == item.record["answer"]) for n in range(len(LETTERS))])
            for item in items
        ]
        return {
            **_accuracy(by_subject),
            "groups": {group: _accuracy(inside) for group, inside in groups.items() if inside},
            "subjects": {name: _accuracy({name: v}) for name, v in sorted(by_subject.items())},
            "calibration": calibration([first_choice(*choice) for choice in choices]),
        }

    @classmethod
    def scores(cls, record: JsonObject) -> dict[str, float]:
        if not np.isfinite(np.asarray(record["logps"], np.float64)).all():
            right = math.nan
        else:
            right = float(int(np.argmax(record["logps"])) == record["answer"])
        return {"mmlu": right, GROUP_OF.get(record["subject"], NO_GROUP): right}

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return f"{record['subject']} {record['number']}", record["answer"]

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        groups = {group: part["acc"] for group, part in figures["groups"].items()}
        return {"mmlu": figures["acc"], **groups}

    @classmethod
    def order(cls, names: Sequence[str]) -> list[str]:
        return [name for name in ("mmlu", *GROUPS, NO_GROUP) if name in names]

    @classmethod
    def text(cls, result: Result) -> str:
        figures = result.figures
        parts = {**figures["subjects"], **figures["groups"], "MMLU": figures}
        return "\n".join(
            f"{name:<36}{with_error(part['acc'], part['stderr'])}  {part['n']:>6} questions"
            for name, part in parts.items()
        )


def _accuracy(subjects: Mapping[str, Sequence[float]]) -> JsonObject:
    """Compute the accuracy over subjects, weighted by size, and its standard error.

    The standard error is None for one question. If a subject has only one question, its variance is
    unknown, and the harness gives no standard error; here it is that of all questions as one sample,
    which is a little larger.
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
        names: names of subjects or groups; none: all.
        shots: number of examples to take from `dev`.

    Raises:
        BenchmarkError: there is no such file or subject, or a row is unusable; names file and line.
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
    sizes = {index: len(subject.questions) for index, subject in enumerate(subjects)}
    quota = largest_remainder(sizes, n, rng.sample(range(len(subjects)), len(subjects)))
    drawn = [
        _only(subject, sorted(rng.sample(range(sizes[index]), quota[index])))
        for index, subject in enumerate(subjects)
    ]
    return [subject for subject in drawn if subject.questions]


def _only(subject: Subject, places: Sequence[int]) -> Subject:
    return replace(subject, questions=tuple(subject.questions[place] for place in places))


def _subject(file: Path) -> str:
    return file.stem.removesuffix("_test")


def _load(name: str, file: Path, dev: Path, shots: int) -> Subject:
    data = read_question_file(file)
    questions = _questions(data, file)
    examples: list[Question] = []
    if shots:
        names = (f"{name}_dev.csv", f"{name}.csv")
        beside = next((dev / n for n in names if (dev / n).exists()), dev / names[0])
        examples = _questions(read_question_file(beside), beside)[:shots]
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


def _question(row: Mapping[str | None, str], number: int, origin: str) -> Question:
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
    partial: PartialResults | None = None,
    report: Report | None = None,
) -> list[JsonObject]:
    """Compute log-probabilities of the four letters after each question, in nats.

    Args:
        partial: holds records of questions scored before, and takes new ones.
        report: called with the number of questions done and in all.

    Returns:
        Per question: subject, number, `logps` of A to D, `choice` and `answer` from 0, `right`.

    Raises:
        BenchmarkError: a score is not finite.
    """
    from forty2.benchmark.partial_results import PartialResults
    from forty2.benchmark.scoring import Scorer

    partial = partial or PartialResults.in_memory()
    total = sum(len(subject.questions) for subject in subjects)
    scorer = Scorer(loaded.model)
    done = 0
    records = []
    for subject in subjects:
        keys = {f"{subject.name}/{q.number}": q for q in subject.questions}
        left = [(key, question) for key, question in keys.items() if key not in partial]
        done += len(keys) - len(left)
        rows = [_rows(prompts, subject, question) for _, question in left]
        after = scorer.after(_beginning(prompts, subject))
        for places, scored in after.score_choices(rows):
            for place, logps in zip(places, scored, strict=True):
                key, question = left[place]
                partial.add(key, _record(subject.name, question, logps))
            done += len(places)
            if report is not None:
                report(done, total, {"subject": subject.name})
        records += [partial[key] for key in keys]
    return records


def _record(subject: str, question: Question, logps: Sequence[float]) -> JsonObject:
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
    """Tokenize the four letters as continuations; a context that is too long loses its left end."""
    context = prompts.context(question.asked(), subject.shots, description=subject.description)
    rows = prompts.rows(context, LETTERS)
    return [Row(row.given[-(prompts.length + 1 - len(row.scored)) :], row.scored) for row in rows]


def _beginning(prompts: Prompts, subject: Subject) -> list[int]:
    """Return the ids that the subject's contexts begin with: those that two different ones share."""
    from forty2.inference.generation import common_prefix_length

    first, second = (
        prompts.ids(prompts.context(text, subject.shots, description=subject.description))
        for text in ("Who?", "1")
    )
    return first[: common_prefix_length([first, second])]
