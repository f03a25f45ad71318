"""How the cost of ours grows, so that a term that grows faster than it should is seen."""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from forty2.data.library import rows as library
from forty2.progress import Progress
from forty2.speed.environments import measure
from forty2.speed.suites import BATCH, pairs, prose
from forty2.speed.workers.__main__ import Job

PROMPTS = (64, 128, 256, 512, 1024, 2048)
"""Tokens, in batches of two pairs with responses of 48."""
BATCHES = (1, 2, 4, 8, 16)
"""Pairs of 64 + 48 + 48 tokens."""
DATA = (100, 1_000, 10_000, 100_000)
"""Conversations of about 100 tokens."""
STEPS = 2
RESPONSES = (48, 48)


class Point(NamedTuple):
    """Something to measure at one size."""

    what: str
    size: int
    worker: str
    job: Job


def grow(model: Path, dtype: str, rounds: int, progress: Progress) -> dict[str, Any]:
    """By what grows: sizes, medians of seconds and gigabytes, and exponents between neighbours."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        every = list(points(model, dtype, Path(folder)))
        for done, point in enumerate(every, 1):
            samples = [
                measure(sys.executable, point.worker, point.job)["figures"] for _ in range(rounds)
            ]
            # What data takes is no business of mlx.
            memory = "mlx_gb" if point.worker == "ours_dpo" else "process_gb"
            grown = result.setdefault(point.what, {"size": [], "seconds": [], "gb": []})
            grown["size"].append(point.size)
            grown["seconds"].append(median(sample["seconds"] for sample in samples))
            grown["gb"].append(median(sample[memory] for sample in samples))
            progress("growth", done, len(every), {})
    for grown in result.values():
        for of in ("seconds", "gb"):
            grown[f"{of}_exponents"] = exponents(grown["size"], grown[of])
    return result


def points(model: Path, dtype: str, folder: Path) -> Iterator[Point]:
    """Everything to measure; files of data are written into a folder."""
    stream = prose(model)
    for what, sizes in (("prompt tokens", PROMPTS), ("batch size", BATCHES)):
        for size in sizes:
            batch, prompt = (2, size) if what == "prompt tokens" else (size, PROMPTS[0])
            rows = pairs(STEPS * batch, (prompt, *RESPONSES), stream, what, spread=0)
            job = Job(str(model), dtype, rows.rows, STEPS, rows.tokens, batch_size=batch)
            yield Point(what, size, "ours_dpo", job)
    for size in DATA:
        data = folder / f"{size}.jsonl"
        write_chats(data, size)
        for what, worker in (("rows prepared", "ours_prepare"), ("rows batched", "ours_batches")):
            yield Point(what, size, worker, Job(str(model), dtype, [str(data)], 1, size, BATCH))


def exponents(sizes: Sequence[float], costs: Sequence[float]) -> list[float]:
    """Between neighbours: 1 is proportional, 2 is square."""
    return [
        math.log(costs[i + 1] / costs[i]) / math.log(sizes[i + 1] / sizes[i])
        for i in range(len(sizes) - 1)
    ]


def write_chats(path: Path, count: int) -> None:
    """Conversations of the library's words, no two alike."""
    words = [word for row in library("myths_a") for text in row["true"] for word in text.split()]
    generator = random.Random(count)
    with path.open("w") as file:
        for n in range(count):
            question = f"{n} {' '.join(generator.choices(words, k=12))}?"
            answer = " ".join(generator.choices(words, k=generator.randrange(8, 88)))
            turns = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
