"""HumanEval: does the function that the model writes pass the problem's tests?

The definitions are those of lm-evaluation-harness 0.4.13, tasks humaneval (1.0) and
humaneval_instruct (4.0): prompts, stop strings, 1024 tokens, greedy answers. pass@k is the unbiased
estimator of Chen et al. 2021 (arXiv:2107.03374), eq. 1; for k above 1, answers are sampled at
temperature 0.2 from the nucleus of 0.95, as in the harness's humaneval_64.

The programs that the model writes are run only if the user allows it, and in `sandbox`. A program
has only Python's own library there, and no sockets or processes, so a solution that imports NumPy
or needs asyncio fails here, while the harness would pass it: `refused` counts such samples.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.benchmark import sandbox
from forty2.benchmark.metrics import pass_at as pass_at
from forty2.benchmark.prompts import Prompts, pick
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

MAX_TOKENS = 1024
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
TEMPERATURE, TOP_P = 0.2, 0.95
KS = (1, 2, 8, 10, 16, 32, 64, 100)
"""Values of k for which pass@k is reported, if there are enough samples."""
FILES = ("HumanEval.jsonl.gz", "HumanEval.jsonl")
REFUSAL = (
    "HumanEval runs programs that the model writes; allow it (run_untrusted_code: true in a recipe, else "
    "`run_untrusted_code=True`); they run in a sandbox, which limits what they can do to this machine"
)
_INSTRUCTION = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{prompt}\n```\n"
)
_BEGUN = "Here is the completed function:\n```python\n{prompt}\n"

Run = Callable[[str], sandbox.Outcome]


@dataclass(frozen=True, slots=True)
class Problem:
    """The head of a function with its description, and the tests."""

    task_id: str
    prompt: str
    test: str
    entry_point: str
    solution: str = ""
    """The authors' own solution; it is only searched for in training rows."""

    def context(self, prompts: Prompts, *, instruct: bool) -> str:
        """Return the text that the model continues."""
        if not instruct:
            return prompts.context(self.prompt)
        begun = _BEGUN.format(prompt=self.prompt)
        return prompts.context(_INSTRUCTION.format(prompt=self.prompt), begun=begun)

    def program(self, reply: str, *, instruct: bool) -> str:
        """Return the program that is run for a reply: the function and its tests."""
        code = reply.split("```", 1)[0] if instruct else reply
        return f"{self.prompt}{code}\n{self.test}\ncheck({self.entry_point})"


@dataclass(frozen=True, slots=True)
class Problems:
    """A set of problems."""

    items: tuple[Problem, ...]
    sha256: str
    """sha256 of their file."""


@dataclass(frozen=True, kw_only=True)
class HumanEval(Task[Problems]):
    """HumanEval: pass@k of functions that the model writes, which are run."""

    data: str | Path
    """HumanEval.jsonl.gz or .jsonl, or a folder with one of them."""
    run_untrusted_code: bool = False
    """Permission to run the programs that the model writes; must be True."""
    instruct: bool = False
    """Ask for the function in words, and begin the answer with its head."""
    samples: int = 1
    """Answers to each problem."""
    temperature: float | None = None
    """Temperature of the answers; None: 0 (greedy) for one sample, else 0.2."""
    top_p: float = TOP_P
    """Share of the probability that is sampled from."""
    n: int | None = None
    """Problems to sample; None: all."""
    limit: int | None = None
    """Only the first problems, as with the harness's `--limit`."""
    seed: int = 42
    chat_template: bool | None = None
    """Use of the chat template; None: instructions go through it, plain prompts do not."""
    max_tokens: int = MAX_TOKENS
    """Longest answer."""
    batch_size: int = BATCH_SIZE
    """Answers generated at a time."""
    run: Run = sandbox.run
    """Function that runs a program and returns its outcome."""

    name = "humaneval"
    title = "HumanEval"
    must_agree = (
        "chat_template",
        "instruct",
        "samples",
        "temperature",
        "top_p",
        "max_tokens",
    )
    may_differ = ("limit",)
    judged = tuple(f"pass@{k}" for k in KS)

    @property
    def templated(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.instruct if self.chat_template is None else self.chat_template

    @property
    def drawn_at(self) -> float:
        """Temperature of the answers."""
        if self.temperature is None:
            return 0.0 if self.samples == 1 else TEMPERATURE
        return self.temperature

    def load(self) -> Problems:
        if not self.run_untrusted_code:
            raise BenchmarkError(REFUSAL)
        if self.samples > 1 and self.drawn_at == 0:
            raise BenchmarkError(
                f"{self.samples} greedy answers would be the same; give a temperature"
            )
        problems = load_problems(self.data)
        places = pick(len(problems.items), n=self.n, limit=self.limit, seed=self.seed)
        sandbox.protections()  # raises before the model is loaded if the sandbox cannot run
        return replace(problems, items=tuple(problems.items[place] for place in places))

    def source(self, questions: Problems) -> Source:
        return Source(str(self.data), questions.sha256, len(questions.items))

    def question_texts(self, questions: Problems) -> list[tuple[str, str, str]]:
        return [(p.prompt, p.solution, p.test) for p in questions.items]

    def settings(self, questions: Problems, loaded: LoadedModel) -> JsonObject:
        return {
            "instruct": self.instruct,
            "chat_template": self.templated,
            "samples": self.samples,
            "temperature": self.drawn_at,
            "top_p": self.top_p if self.drawn_at else None,
            "max_tokens": self.max_tokens,
            "limit": self.limit,
        }

    def notes(self, questions: Problems, items: Sequence[Item]) -> JsonObject:
        return {"sandbox": {"held": sandbox.protections(), "gaps": sandbox.gaps()}}

    def score(
        self, loaded: LoadedModel, questions: Problems, partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        """Answer the problems, and run a problem's answers as soon as all of them are generated."""
        from forty2.inference.generation import Sampling, generate_replies

        prompts = Prompts(loaded, chat=self.templated)
        problems, samples = questions.items, self.samples
        left = [problem for problem in problems if problem.task_id not in partial]
        contexts = [problem.context(prompts, instruct=self.instruct) for problem in left]
        ids = [prompts.prompt(context, self.max_tokens) for context in contexts]
        replies = generate_replies(
            loaded,
            [row for row in ids for _ in range(samples)],
            stop=STOP,
            max_tokens=self.max_tokens,
            sampling=Sampling(self.drawn_at, self.top_p) if self.drawn_at else None,
            seeds=[
                _seed(self.seed, problem, number) for problem in left for number in range(samples)
            ],
            batch_size=self.batch_size,
        )
        collected: dict[int, dict[int, Reply]] = defaultdict(dict)
        done = len(problems) - len(left)
        for place, reply in replies:
            index, number = divmod(place, samples)
            collected[index][number] = reply
            if len(collected[index]) == samples:
                answers = collected.pop(index)
                in_order = [answers[number] for number in range(samples)]
                record = judged(left[index], in_order, self.run, instruct=self.instruct)
                partial.add(left[index].task_id, record)
                done += 1
                report(done, len(problems), {})
        return [partial[problem.task_id] for problem in problems]

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        names = [name for name in cls.judged if all(name in item.scores for item in items)]
        each = {name: [item.scores[name] for item in items] for name in names}
        samples = [sample for item in items for sample in item.record["samples"]]
        return {
            **{name: math.fsum(values) / len(values) for name, values in each.items()},
            "stderr": {name: stderr(values) for name, values in each.items()},
            "stop_rate": sum(sample["stopped"] for sample in samples) / len(samples),
            "refused": sum(_refused(sample["why"]) for sample in samples),
            "n": len(items),
        }

    @classmethod
    def scores(cls, record: JsonObject) -> dict[str, float]:
        samples = record["samples"]
        passed = int(sum(as_share(sample["passed"]) for sample in samples))
        return {f"pass@{k}": pass_at(k, len(samples), passed) for k in KS if k <= len(samples)}

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["task_id"], len(record["samples"])

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        return {name: figures[name] for name in cls.judged if name in figures}

    @classmethod
    def text(cls, result: Result) -> str:
        return answers_text(result.figures, list(cls.stored_means(result.figures)))


def judged(
    problem: Problem, replies: Sequence[Reply], run: Run = sandbox.run, *, instruct: bool = False
) -> JsonObject:
    """Run a problem's answers: return its record, with whether each passed and why not."""
    samples = []
    for reply in replies:
        outcome = run(problem.program(reply.text, instruct=instruct))
        samples.append(
            {
                "reply": reply.text,
                "tokens": reply.tokens,
                "stopped": reply.stopped,
                "passed": outcome.passed,
                "why": outcome.why,
            }
        )
    return {"task_id": problem.task_id, "samples": samples}


def _refused(why: str) -> bool:
    """Return whether a program may have failed because of the sandbox, not because it is wrong."""
    return why.startswith(("ModuleNotFoundError", "PermissionError"))


def _seed(seed: int, problem: Problem, number: int) -> int:
    """Return the seed of one answer, which does not depend on the other problems measured."""
    return random.Random(f"{seed} {problem.task_id} {number}").getrandbits(63)


# --- problems -------------------------------------------------------------------------------------


def load_problems(source: str | Path) -> Problems:
    """Read the problems.

    Args:
        source: HumanEval.jsonl.gz or .jsonl, or a folder with one of them.

    Raises:
        BenchmarkError: there are none, or a row has other columns; names file and line.
        DataError: the file cannot be read.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).exists()]
        if not found:
            raise BenchmarkError(f"{path}: neither {' nor '.join(FILES)} is there")
        path = found[0]
    problems: dict[str, Problem] = {}
    keys = ("task_id", "prompt", "test", "entry_point")
    for origin, row in read_rows(path):
        for key in keys:
            if not isinstance(row.get(key), str):
                raise BenchmarkError(f"{origin}: {key} is missing or no text")
        if row["task_id"] in problems:
            raise BenchmarkError(f"{origin}: {row['task_id']!r} is there twice; remove one")
        problem = Problem(*(row[key] for key in keys))
        solution = str(row.get("canonical_solution") or "")
        problems[problem.task_id] = replace(problem, solution=solution)
    if not problems:
        raise BenchmarkError(f"{path}: holds no problems")
    return Problems(tuple(problems.values()), hashlib.sha256(path.read_bytes()).hexdigest())
