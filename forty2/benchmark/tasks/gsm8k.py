"""GSM8K: grade-school sums, answered at length and greedily; the final number must be right.

The definitions are those of lm-evaluation-harness 0.4.13, task gsm8k (3.0): prompts, five examples
drawn anew for each question, stop strings, 256 tokens, and two ways to find the answer:
    strict match       the number after the first "#### ", as the examples end
    flexible extract   the last number in the text
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.benchmark.prompts import Prompts, Shot, examples_sha256, pick
from forty2.benchmark.results import Item, Result
from forty2.benchmark.stats import stderr
from forty2.benchmark.task import BATCH_SIZE, Report, Source, Task, answers_text, as_share
from forty2.data.sources import read_rows
from forty2.errors import BenchmarkError
from forty2.files import JsonObject

if TYPE_CHECKING:  # a result is read without mlx
    from forty2.benchmark.partial_results import PartialResults
    from forty2.inference.generation import Reply
    from forty2.model.loading import LoadedModel

SHOTS = 5
SHOT_SEED = 1234
"""Seed of the examples, the harness's."""
MAX_TOKENS = 256
STOP = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"
METRICS = ("strict_match", "flexible_extract")
_CALCULATION = re.compile(r"<<[^<>]*>>")
"""A sum as its solution annotates it, e.g. <<2*3=6>>; copies of the data often leave it out."""
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


@dataclass(frozen=True, slots=True)
class Problem:
    """One question and its worked solution, which ends in "#### " and the answer."""

    question: str
    answer: str
    number: int
    """Place in its file, from 1."""

    def asked(self) -> str:
        """Return the question as the model reads it."""
        return f"Question: {self.question}\nAnswer:"

    def shot(self) -> Shot:
        """Return the problem as an example."""
        return Shot(self.asked(), self.answer)


@dataclass(frozen=True, slots=True)
class Problems:
    """Problems, and the examples before each."""

    items: tuple[Problem, ...]
    shots: tuple[tuple[Shot, ...], ...]
    sha256: str
    """sha256 of the file of problems."""
    examples_sha256: str | None
    """sha256 of the examples before all problems of the file; None: there are none."""

    def only(self, places: Sequence[int]) -> Problems:
        """Return the problems at some places."""
        items, shots = (self.items[n] for n in places), (self.shots[n] for n in places)
        return Problems(tuple(items), tuple(shots), self.sha256, self.examples_sha256)


@dataclass(frozen=True, kw_only=True)
class Gsm8k(Task[Problems]):
    """GSM8K: sums answered at length, strict match and flexible extract."""

    data: str | Path
    """Folder or file of problems, as for `load_problems`."""
    shots: int = SHOTS
    """Examples before each question."""
    n: int | None = None
    """Questions to sample; None: all."""
    limit: int | None = None
    """Only the first questions, as with the harness's `--limit`."""
    seed: int = 42
    chat_template: bool = False
    multiturn: bool = True
    """With a chat template, make examples turns of their own, as the harness does by default."""
    max_tokens: int = MAX_TOKENS
    """Longest answer."""
    batch_size: int = BATCH_SIZE
    """Answers generated at a time."""

    name = "gsm8k"
    title = "GSM8K"
    judged = METRICS
    must_agree = ("chat_template", "multiturn", "shots", "max_tokens", "examples_sha256")
    may_differ = ("limit",)

    def load(self) -> Problems:
        problems = load_problems(self.data, shots=self.shots)
        return problems.only(pick(len(problems.items), n=self.n, limit=self.limit, seed=self.seed))

    def source(self, questions: Problems) -> Source:
        return Source(str(self.data), questions.sha256, len(questions.items))

    def question_texts(self, questions: Problems) -> list[tuple[str, str, str]]:
        return [(p.question, p.answer, without_calculations(p.answer)) for p in questions.items]

    def settings(self, questions: Problems, loaded: LoadedModel) -> JsonObject:
        return {
            "examples_sha256": questions.examples_sha256,
            "shots": self.shots,
            "chat_template": self.chat_template,
            "multiturn": self.chat_template and self.multiturn,
            "max_tokens": self.max_tokens,
            "limit": self.limit,
        }

    def score(
        self, loaded: LoadedModel, questions: Problems, partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        from forty2.inference.generation import generate_replies

        prompts = Prompts(loaded, chat=self.chat_template, multiturn=self.multiturn)
        keys = [str(problem.number - 1) for problem in questions.items]
        left = [place for place, key in enumerate(keys) if key not in partial]
        contexts = [
            prompts.context(questions.items[place].asked(), questions.shots[place])
            for place in left
        ]
        replies = generate_replies(
            loaded,
            [prompts.prompt(context, self.max_tokens) for context in contexts],
            stop=STOP,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
        )
        for done, (number, reply) in enumerate(replies, len(keys) - len(left) + 1):
            place = left[number]
            partial.add(keys[place], judged(questions.items[place], reply))
            report(done, len(keys), {})
        return [partial[key] for key in keys]

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        each = {name: [item.scores[name] for item in items] for name in METRICS}
        return {
            **{name: sum(values) / len(values) for name, values in each.items()},
            "stderr": {name: stderr(values) for name, values in each.items()},
            "stop_rate": sum(item.record["stopped"] for item in items) / len(items),
            "n": len(items),
        }

    @classmethod
    def scores(cls, record: JsonObject) -> dict[str, float]:
        return {name: as_share(record[name]) for name in METRICS}

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["question"], record["answer"]

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        return {name: figures[name] for name in METRICS}

    @classmethod
    def text(cls, result: Result) -> str:
        return answers_text(result.figures, METRICS)


def judged(problem: Problem, reply: Reply) -> JsonObject:
    """Judge an answer: return its record, with the numbers found in it and whether they are right."""
    right = bare(problem.answer)
    strict, flexible = strict_answer(reply.text), last_number(reply.text)
    return {
        "number": problem.number,
        "question": problem.question,
        "answer": right,
        "reply": reply.text,
        "tokens": reply.tokens,
        "stopped": reply.stopped,
        "strict": strict,
        "flexible": flexible,
        "strict_match": bare(strict) == right,
        "flexible_extract": bare(flexible) == right,
    }


def strict_answer(text: str) -> str:
    """Return the number after the first "#### "."""
    found = _STRICT.findall(text)
    return found[0].strip() if found else INVALID


def last_number(text: str) -> str:
    """Return the last number with its sign, `$` and punctuation; a lone `.,` counts as one, too."""
    found = _FLEXIBLE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else INVALID


def without_calculations(solution: str) -> str:
    """Return a solution without the annotations of its sums."""
    return _CALCULATION.sub("", solution)


def bare(text: str) -> str:
    """Return the part to compare: that after the last "#### ", without commas, `$` and a final dot."""
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


# --- problems -------------------------------------------------------------------------------------


def load_problems(source: str | Path, *, shots: int = SHOTS) -> Problems:
    """Read the problems, and draw the examples before each from the training file.

    One random generator goes through all problems in the file's order, so a problem has the same
    examples here as in the harness's run of the whole file.

    Args:
        source: a folder with `test.jsonl` and `train.jsonl`; or the former with the latter beside
            it.

    Raises:
        BenchmarkError: a file has too few rows, or a row has other columns; names file and line.
        DataError: a file cannot be read.
    """
    path = Path(os.path.expanduser(source))
    test = path / "test.jsonl" if path.is_dir() else path
    problems = _read(test)
    drawn: list[tuple[Shot, ...]] = [()] * len(problems)
    if shots:
        train = test.with_name(test.name.replace("test", "train"))
        if train == test:
            raise BenchmarkError(f"{test}: name it test.jsonl, and put train.jsonl beside it")
        examples = _read(train)
        if len(examples) < shots:
            raise BenchmarkError(f"{train}: holds {len(examples)} examples, not {shots}")
        rng = random.Random(SHOT_SEED)
        drawn = [tuple(q.shot() for q in rng.sample(examples, shots)) for _ in problems]
    sha256 = hashlib.sha256(test.read_bytes()).hexdigest()
    return Problems(tuple(problems), tuple(drawn), sha256, examples_sha256(drawn))


def _read(file: Path) -> list[Problem]:
    problems: list[Problem] = []
    for origin, row in read_rows(file):
        for key in ("question", "answer"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise BenchmarkError(f"{origin}: {key} is missing or no text")
        if "#### " not in row["answer"]:
            raise BenchmarkError(f"{origin}: the answer does not end in '#### ' and a number")
        problems.append(Problem(row["question"], row["answer"], len(problems) + 1))
    if not problems:
        raise BenchmarkError(f"{file}: holds no questions")
    return problems
