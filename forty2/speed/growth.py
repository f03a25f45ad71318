"""Growth of our own cost with size, to notice a cost that grows faster than it should."""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from forty2.data.library import rows as library_rows
from forty2.progress import Progress
from forty2.speed.environments import measure
from forty2.speed.results import GrowthCurve
from forty2.speed.suites import BATCH_SIZE, compose_pairs, english_tokens
from forty2.speed.workers.__main__ import Inputs, Job

PROMPT_TOKENS = (64, 128, 256, 512, 1024, 2048)
"""Tokens of a prompt, in batches of two pairs with responses of 48 tokens."""
BATCH_SIZES = (1, 2, 4, 8, 16)
"""Pairs in a batch, each of 64 + 48 + 48 tokens."""
DATA_ROWS = (100, 1_000, 10_000, 100_000)
"""Conversations of about 100 tokens."""
STEPS = 2
RESPONSES = (48, 48)


@dataclass(frozen=True)
class Point:
    """One size to measure."""

    quantity: str
    """The quantity that grows."""
    size: int
    worker: str
    memory: str
    """The memory to report: a field of `Figures`."""
    job: Job


def measure_growth(
    model: Path, dtype: str, rounds: int, progress: Progress
) -> dict[str, GrowthCurve]:
    """Measure our cost at each size.

    Returns:
        Medians over the rounds, by the quantity that grows.
    """
    measured: dict[str, list[tuple[int, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        points = list(growth_points(model, dtype, Path(folder)))
        for done, point in enumerate(points, 1):
            figures = [
                measure(sys.executable, point.worker, point.job).figures for _ in range(rounds)
            ]
            seconds = median(each.seconds for each in figures)
            gigabytes = median(getattr(each, point.memory) for each in figures)
            measured.setdefault(point.quantity, []).append((point.size, seconds, gigabytes))
            progress("growth", done, len(points), {})
    return {quantity: _curve(costs) for quantity, costs in measured.items()}


def growth_points(model: Path, dtype: str, folder: Path) -> Iterator[Point]:
    """Yield every point to measure; write data files into a folder."""
    tokens = english_tokens(model)
    batches = [("prompt tokens", size, 2, size) for size in PROMPT_TOKENS]
    batches += [("batch size", size, size, PROMPT_TOKENS[0]) for size in BATCH_SIZES]
    for quantity, size, batch_size, prompt in batches:
        rows = compose_pairs(STEPS * batch_size, (prompt, *RESPONSES), tokens, quantity, spread=0)
        job = Job(str(model), dtype, rows.inputs, STEPS, rows.tokens, batch_size=batch_size)
        yield Point(quantity, size, "ours_dpo", "mlx_gb", job)
    for size in DATA_ROWS:
        path = folder / f"{size}.jsonl"
        write_chats(path, size)
        job = Job(str(model), dtype, Inputs(data_file=str(path)), 1, size, batch_size=BATCH_SIZE)
        # Preparing data happens outside mlx's memory.
        yield Point("rows prepared", size, "ours_prepare", "process_gb", job)
        yield Point("rows batched", size, "ours_batches", "process_gb", job)


def growth_exponents(sizes: Sequence[float], costs: Sequence[float]) -> list[float]:
    """Compute the exponent of a cost between neighbouring sizes: 1 is proportional, 2 is square."""
    return [
        math.log(costs[i + 1] / costs[i]) / math.log(sizes[i + 1] / sizes[i])
        for i in range(len(sizes) - 1)
    ]


def write_chats(path: Path, count: int) -> None:
    """Write conversations of random words from the package's library, each different."""
    words = [w for row in library_rows("myths_a") for text in row["true"] for w in text.split()]
    generator = random.Random(count)
    with path.open("w") as file:
        for n in range(count):
            question = f"{n} {' '.join(generator.choices(words, k=12))}?"
            answer = " ".join(generator.choices(words, k=generator.randrange(8, 88)))
            turns = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")


def _curve(costs: Sequence[tuple[int, float, float]]) -> GrowthCurve:
    sizes, seconds, gigabytes = (list(column) for column in zip(*costs, strict=True))
    return GrowthCurve(
        size=sizes,
        seconds=seconds,
        gb=gigabytes,
        seconds_exponents=growth_exponents(sizes, seconds),
        gb_exponents=growth_exponents(sizes, gigabytes),
    )
