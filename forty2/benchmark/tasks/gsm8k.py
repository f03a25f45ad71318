"""GSM8K: grade-school sums, answered at length and greedily, right where the last number is.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forty2 import machine
from forty2.benchmark.partial_results import PartialResults, weights
from forty2.benchmark.prompts import Prompts, Shot, examples_sha256, pick
from forty2.benchmark.stats import stderr
from forty2.data.sources import read_rows
from forty2.errors import BenchmarkError
from forty2.inference.generation import BATCH_SIZE, Reply, generate_replies
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent

SHOTS = 5
SHOT_SEED = 1234  # the harness's
MAX_TOKENS = 256
STOP = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"
METRICS = ("strict_match", "flexible_extract")
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


@dataclass(frozen=True, slots=True)
class Problem:
    """One question and its worked solution, which ends in "#### " and the answer."""

    question: str
    answer: str
    number: int
    """Its place in its file, from 1."""

    def asked(self) -> str:
        """As the model reads it."""
        return f"Question: {self.question}\nAnswer:"

    def shot(self) -> Shot:
        """As an example."""
        return Shot(self.asked(), self.answer)


@dataclass(frozen=True, slots=True)
class Problems:
    """What is asked, and the examples before each problem."""

    items: tuple[Problem, ...]
    shots: tuple[tuple[Shot, ...], ...]
    sha256: str
    """Of the file of problems."""


def gsm8k(
    model: str,
    adapter: str | None = None,
    *,
    data: str | Path,
    shots: int = SHOTS,
    n: int | None = None,
    limit: int | None = None,
    seed: int = 42,
    chat_template: bool = False,
    multiturn: bool = True,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = BATCH_SIZE,
    out: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a model, and write the result with every answer.

    Args:
        model: folder, hub name or `smollm2`.
        adapter: adapter folder, or a run folder.
        data: what `load_problems` takes.
        shots: examples before each question.
        n: how many questions to sample; None: all.
        limit: only the first questions, as the harness's `--limit`.
        seed: of the sample.
        chat_template: put the context through the model's chat template.
        multiturn: with it, examples as turns of their own, as the harness has it by default.
        max_tokens: longest answer.
        batch_size: answers generated at a time.
        out: JSON file to write; until it is whole, items are kept beside it (`Kept`).
        resume: go on with a measurement that stopped.

    Raises:
        BenchmarkError: questions are unusable, or a score is not finite.
        ModelError: the model or adapter cannot be loaded.
    """
    from forty2.model.loading import load

    problems = load_problems(data, shots=shots)
    places = pick(len(problems.items), n=n, limit=limit, seed=seed)
    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    settings: dict[str, Any] = {
        "benchmark": "gsm8k",
        "model": model,
        "adapter": adapter,
        "data": str(data),
        "data_sha256": problems.sha256,
        "examples_sha256": examples_sha256(problems.shots),
        "shots": shots,
        "chat_template": chat_template,
        "multiturn": chat_template and multiturn,
        "max_tokens": max_tokens,
        "n": len(places),
        "limit": limit,
        "seed": seed,
    }
    with PartialResults.open(
        Path(out) if out is not None else None,
        {**settings, "weights": weights(loaded, adapter)},
        resume=resume,
    ) as kept:
        items = answered(
            loaded,
            Prompts(loaded, chat=chat_template, multiturn=multiturn),
            problems,
            places,
            kept,
            max_tokens=max_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        measured = {**settings, **result(items)}
        kept.finish(measured)
    return measured


def result(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What answered items amount to, as JSON."""
    each = {name: [float(item[name]) for item in items] for name in METRICS}
    return {
        **{name: sum(values) / len(values) for name, values in each.items()},
        "stderr": {name: stderr(values) for name, values in each.items()},
        "stop_rate": sum(item["stopped"] for item in items) / len(items),
        "versions": machine.facts(),
        "items": [dict(item) for item in items],
    }


def answered(
    loaded: LoadedModel,
    prompts: Prompts,
    problems: Problems,
    places: Sequence[int],
    kept: PartialResults | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Answer the problems at `places`, and judge the answers.

    Args:
        kept: items that are there already are not answered again.
    """
    kept = kept if kept is not None else PartialResults(None, None, {})
    left = [place for place in places if str(place) not in kept]
    ids = [
        prompts.prompt(
            prompts.context(problems.items[place].asked(), problems.shots[place]), max_tokens
        )
        for place in left
    ]
    before = len(places) - len(left)
    replies = generate_replies(loaded, ids, stop=STOP, max_tokens=max_tokens, batch_size=batch_size)
    for done, (number, reply) in enumerate(replies, before + 1):
        place = left[number]
        kept.add(str(place), judged(problems.items[place], reply))
        progress("gsm8k", done, len(places), {})
    return [kept[str(place)] for place in places]


def judged(problem: Problem, reply: Reply) -> dict[str, Any]:
    """An item of the result: the answer, what was found in it, and whether that is right."""
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
    """The number after the first "#### "."""
    found = _STRICT.findall(text)
    return found[0].strip() if found else INVALID


def last_number(text: str) -> str:
    """The last number, with its sign, `$` and punctuation; a dot and a comma also are one."""
    found = _FLEXIBLE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else INVALID


def bare(text: str) -> str:
    """What is compared: the part after the last "#### ", without commas, `$` and a final dot."""
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


# --- problems -------------------------------------------------------------------------------------


def load_problems(source: str | Path, *, shots: int = SHOTS) -> Problems:
    """Read the problems, and draw the examples before each from the training file.

    One generator of random numbers goes through all problems in the file's order, so a problem
    has the same examples here as in the harness's run of the whole file.

    Args:
        source: a folder with `test.jsonl` and `train.jsonl`; or the former, the latter beside it.

    Raises:
        BenchmarkError: a file holds too little, or a row has other columns. Names file and line.
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
    return Problems(tuple(problems), tuple(drawn), sha256)


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
