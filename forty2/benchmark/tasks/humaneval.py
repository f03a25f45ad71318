"""HumanEval: does the function that the model writes pass the problem's tests?

The definitions are those of lm-evaluation-harness 0.4.13, tasks humaneval (1.0) and
humaneval_instruct (4.0): prompts, stop strings, 1024 tokens, greedy answers. pass@k is the unbiased
estimator of Chen et al. 2021 (arXiv:2107.03374), eq. 1; for k above 1, answers are sampled at
temperature 0.2 from the nucleus of 0.95, as in the harness's humaneval_64.

Measuring runs what the model wrote: only when asked for, and in `sandbox`. There it finds Python's
own library alone, and no sockets or processes, so a solution that imports NumPy or needs asyncio
fails here, where the harness would pass it: `refused` counts such samples.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forty2 import machine
from forty2.benchmark import sandbox
from forty2.benchmark.metrics import pass_at as pass_at
from forty2.benchmark.partial_results import PartialResults, weights
from forty2.benchmark.prompts import Prompts, pick
from forty2.benchmark.stats import stderr
from forty2.data.sources import read_rows
from forty2.errors import BenchmarkError
from forty2.inference.generation import BATCH_SIZE, Reply, Sampling, generate_replies
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent

MAX_TOKENS = 1024
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
TEMPERATURE, TOP_P = 0.2, 0.95
KS = (1, 2, 8, 10, 16, 32, 64, 100)
"""pass@k is told of those that there are samples for."""
FILES = ("HumanEval.jsonl.gz", "HumanEval.jsonl")
REFUSAL = (
    "HumanEval runs programs that the model writes; allow it with --run-untrusted-code "
    "(they run in a sandbox, which limits what they can do to this machine)"
)
_INSTRUCTION = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{prompt}\n```\n"
)
_BEGUN = "Here is the completed function:\n```python\n{prompt}\n"

Run = Callable[[str], sandbox.Outcome]


@dataclass(frozen=True, slots=True)
class Problem:
    """The head of a function, what it must do, and the tests."""

    task_id: str
    prompt: str
    test: str
    entry_point: str

    def context(self, prompts: Prompts, *, instruct: bool) -> str:
        """What the model goes on from."""
        if not instruct:
            return prompts.context(self.prompt)
        begun = _BEGUN.format(prompt=self.prompt)
        return prompts.context(_INSTRUCTION.format(prompt=self.prompt), begun=begun)

    def program(self, reply: str, *, instruct: bool) -> str:
        """What is run for a reply: the function and its tests."""
        code = reply.split("```", 1)[0] if instruct else reply
        return f"{self.prompt}{code}\n{self.test}\ncheck({self.entry_point})"


@dataclass(frozen=True, slots=True)
class Problems:
    """What is asked."""

    items: tuple[Problem, ...]
    sha256: str


def humaneval(
    model: str,
    adapter: str | None = None,
    *,
    data: str | Path,
    run_untrusted_code: bool,
    instruct: bool = False,
    samples: int = 1,
    temperature: float | None = None,
    top_p: float = TOP_P,
    n: int | None = None,
    limit: int | None = None,
    seed: int = 42,
    chat_template: bool = False,
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
        data: HumanEval.jsonl.gz or .jsonl, or a folder with one of them.
        run_untrusted_code: must be True: what the model writes is run.
        instruct: ask for the function, its head repeated as the answer's beginning.
        samples: answers to each problem.
        temperature: of sampling; None: greedy for one sample, else 0.2.
        top_p: share of the probability that is sampled from.
        n: how many problems to sample; None: all.
        limit: only the first problems, as the harness's `--limit`.
        seed: of the sample of problems, and of the answers.
        chat_template: put the context through the model's chat template.
        max_tokens: longest answer.
        batch_size: answers generated at a time.
        out: JSON file to write; until it is whole, items are kept beside it (`Kept`).
        resume: go on with a measurement that stopped.

    Raises:
        BenchmarkError: not allowed, or problems are unusable, or a score is not finite.
        ModelError: the model or adapter cannot be loaded.
    """
    from forty2.model.loading import load

    if not run_untrusted_code:
        raise BenchmarkError(REFUSAL)
    if temperature is None:
        temperature = 0.0 if samples == 1 else TEMPERATURE
    if samples > 1 and temperature == 0:
        raise BenchmarkError(f"{samples} greedy answers would be the same; give a temperature")
    problems = load_problems(data)
    places = pick(len(problems.items), n=n, limit=limit, seed=seed)
    held, gaps = sandbox.protections(), sandbox.gaps()
    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    settings: dict[str, Any] = {
        "benchmark": "humaneval",
        "model": model,
        "adapter": adapter,
        "data": str(data),
        "data_sha256": problems.sha256,
        "instruct": instruct,
        "chat_template": chat_template,
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p if temperature else None,
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
            Prompts(loaded, chat=chat_template),
            [problems.items[place] for place in places],
            kept,
            instruct=instruct,
            samples=samples,
            sampling=Sampling(temperature, top_p) if temperature else None,
            seed=seed,
            max_tokens=max_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        measured = {**settings, "sandbox": {"held": held, "gaps": gaps}, **result(items)}
        kept.finish(measured)
    return measured


def result(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What judged items amount to, as JSON."""
    samples = min(len(item["samples"]) for item in items)
    each = {
        f"pass@{k}": [
            pass_at(k, len(item["samples"]), sum(s["passed"] for s in item["samples"]))
            for item in items
        ]
        for k in KS
        if k <= samples
    }
    every = [sample for item in items for sample in item["samples"]]
    return {
        **{name: math.fsum(values) / len(values) for name, values in each.items()},
        "stderr": {name: stderr(values) for name, values in each.items()},
        "stop_rate": sum(sample["stopped"] for sample in every) / len(every),
        "refused": sum(_refused(sample["why"]) for sample in every),
        "versions": machine.facts(),
        "items": [dict(item) for item in items],
    }


def answered(
    loaded: LoadedModel,
    prompts: Prompts,
    problems: Sequence[Problem],
    kept: PartialResults | None = None,
    *,
    instruct: bool = False,
    samples: int = 1,
    sampling: Sampling | None = None,
    seed: int = 42,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
    run: Run = sandbox.run,
) -> list[dict[str, Any]]:
    """Answer problems, and run each one's answers as soon as all of them are there.

    Args:
        kept: items that are there already are not answered again.
        run: what says whether a program passes.
    """
    kept = kept if kept is not None else PartialResults(None, None, {})
    left = [problem for problem in problems if problem.task_id not in kept]
    ids = [prompts.prompt(p.context(prompts, instruct=instruct), max_tokens) for p in left]
    replies = generate_replies(
        loaded,
        [row for row in ids for _ in range(samples)],
        stop=STOP,
        max_tokens=max_tokens,
        sampling=sampling,
        seeds=[_seed(seed, problem, number) for problem in left for number in range(samples)],
        batch_size=batch_size,
    )
    collected: dict[int, dict[int, Reply]] = defaultdict(dict)
    done = len(problems) - len(left)
    for place, reply in replies:
        index, number = divmod(place, samples)
        collected[index][number] = reply
        if len(collected[index]) == samples:
            said = collected.pop(index)
            in_order = [said[number] for number in range(samples)]
            kept.add(left[index].task_id, judged(left[index], in_order, run, instruct=instruct))
            done += 1
            progress("humaneval", done, len(problems), {})
    return [kept[problem.task_id] for problem in problems]


def judged(
    problem: Problem, replies: Sequence[Reply], run: Run = sandbox.run, *, instruct: bool = False
) -> dict[str, Any]:
    """An item of the result: each answer, whether it passed, and why not."""
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
    """Whether a program may have failed for what it finds here and not for what it does."""
    return why.startswith(("ModuleNotFoundError", "PermissionError"))


def _seed(seed: int, problem: Problem, number: int) -> int:
    """Of one answer: the same whatever else is measured beside it."""
    return random.Random(f"{seed} {problem.task_id} {number}").getrandbits(63)


# --- problems -------------------------------------------------------------------------------------


def load_problems(source: str | Path) -> Problems:
    """Read the problems.

    Args:
        source: HumanEval.jsonl.gz or .jsonl, or a folder with one of them.

    Raises:
        BenchmarkError: there are none, or a row has other columns. Names file and line.
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
        problems[row["task_id"]] = Problem(*(row[key] for key in keys))
    if not problems:
        raise BenchmarkError(f"{path}: holds no problems")
    return Problems(tuple(problems.values()), hashlib.sha256(path.read_bytes()).hexdigest())
