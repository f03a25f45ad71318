"""Speed and memory of the data tools. Run: python benchmarks/data_throughput.py

Rows are random words of the package's library: 100,000 conversations of about 100 tokens to lint,
count and tokenize, a prepared set of 600,000 rows to start from, and with --large a 2 GB file to
lint. Each measurement is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import forty2  # isort: skip  # noqa: F401  # before mlx
from forty2.data.library import rows as library_rows

ROWS = 100_000
MORE_ROWS = 300_000
"""Rows for the tokenizing rate: that of the rows after the first `ROWS`, without the start-up."""
WORDS, LARGE_WORDS = 48, 340
"""Words of an answer, and of one in the 2 GB file."""
REPEATS = 6
"""Copies of the prepared set of `ROWS` rows to start from."""
BATCH_SIZE, BATCHES = 8, 50


# --- what is measured; imports count, as they do for a user ---------------------------------------


def lint_file(path: Path, out: Path) -> None:
    from forty2.data.checks.lint import lint

    lint(str(path))


def count_tokens(path: Path, out: Path) -> None:
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder
    from forty2.text.preview import stats

    stats(str(path), Encoder(load_tokenizer("smollm2")))


def tokenize(path: Path, out: Path) -> None:
    from forty2.text.prepared import prepare

    prepare(str(path), out, "smollm2", valid_share=0)


def form_first_batches(path: Path, out: Path) -> None:
    from forty2.text.prepared import Prepared
    from forty2.training.batches import Order, sft_batch

    rows = Prepared(path)
    order = Order(rows.lengths, BATCH_SIZE, 42, rows.weights)
    for step in range(BATCHES):
        sft_batch([rows[i] for i in order.batch(step)], order.batch(step))


TASKS: dict[str, Callable[[Path, Path], None]] = {
    "lint": lint_file,
    "stats": count_tokens,
    "tokenise": tokenize,
    "start": form_first_batches,
}


# --- measuring ------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What a task took."""

    seconds: float
    peak_mb: int


def measure(task: str, path: Path, out: Path) -> Cost:
    """Run a task in a process of its own."""
    command = [sys.executable, __file__, "--task", task, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split()[-2:])
    return Cost(round(seconds, 2), round(megabytes))


def run_task(task: str, path: Path, out: Path) -> None:
    """Run a task in this process, and print its seconds and peak megabytes."""
    started = time.perf_counter()
    TASKS[task](path, out)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, peak / (1e6 if sys.platform == "darwin" else 1e3))


def measure_all(folder: Path, *, large: bool) -> dict[str, object]:
    """Measure every task, and print its cost when it is known."""
    figures: dict[str, object] = {}

    def record(name: str, cost: Cost, **more: object) -> None:
        figures[name] = {**cost._asdict(), **more}
        print(name, figures[name], flush=True)

    path = folder / "chats.jsonl"
    write_chats(path, ROWS, WORDS)
    figures["file_mb"] = megabytes(path)
    costs = {task: measure(task, path, folder / task) for task in ("lint", "stats", "tokenise")}
    for task, cost in costs.items():
        record(task, cost, rows_per_s=round(ROWS / cost.seconds))
    write_chats(path, MORE_ROWS, WORDS)
    cost = measure("tokenise", path, folder / "more")
    rate = (MORE_ROWS - ROWS) / (cost.seconds - costs["tokenise"].seconds)
    record("tokenise_more", cost, rows_per_s=round(rate))
    manifest = json.loads((folder / "tokenise" / "manifest.json").read_text())
    figures["tokens_per_row"] = round(manifest["tokens"]["train"] / ROWS, 1)
    repeat_prepared(folder / "tokenise" / "train", folder / "many", REPEATS)
    record("start_600k", measure("start", folder / "many", folder / "start"))
    if large:
        write_chats(path, 1_000_000, LARGE_WORDS)
        record("lint_large", measure("lint", path, folder / "lint"), file_mb=megabytes(path))
    return figures


def write_chats(path: Path, count: int, words: int) -> None:
    """Write conversations of random words, so many of them in each answer."""
    known = [w for row in library_rows("myths_a") for text in row["true"] for w in text.split()]
    generator = random.Random(1)
    with path.open("w") as file:
        for n in range(count):
            question = f"{n} " + " ".join(generator.choices(known, k=12)) + "?"
            answer = " ".join(generator.choices(known, k=words)) + "."
            turns = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")


def repeat_prepared(source: Path, out: Path, times: int) -> None:
    """Write a prepared split that holds another several times."""
    import numpy as np

    out.mkdir()
    for name in ("tokens.bin", "mask.bin"):
        data = (source / name).read_bytes()
        with (out / name).open("wb") as file:
            for _ in range(times):
                file.write(data)
    lengths = np.tile(np.fromfile(source / "rows.idx", np.uint64).reshape(-1, 2)[:, 1], times)
    np.stack([np.cumsum(lengths) - lengths, lengths], 1).tofile(out / "rows.idx")


def megabytes(path: Path) -> int:
    return round(path.stat().st_size / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="lint 2 GB too (minutes)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, path, out = arguments.task
        run_task(task, Path(path), Path(out))
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_all(Path(folder), large=arguments.large)
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(f"in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
