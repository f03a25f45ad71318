"""Memory of the base programme by number of rows. Run: python benchmarks/base_programme.py [--rows N]

Writes a hundredth of the rows, and all of them, to Parquet, prepares them as `forty2 data prepare` does, and trains
some steps of the packaged recipe on the prepared folder. Each part is a process of its own, whose seconds and peak
resident memory are printed, as is the memory after each step: none should grow with the number of rows or steps.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import forty2  # isort: skip  # before mlx
from forty2.data.library import rows as library_rows

GROUP = 10_000
"""Rows of one group of a Parquet file."""
VALID = 20
"""Rows held out, of any number: their validation should not take longer with more rows."""
QUESTION, ANSWER = 12, 48
"""Words of a row."""


def write_rows(path: Path, settings: argparse.Namespace) -> None:
    """Write conversations of random words to Parquet, a group at a time."""
    import pyarrow
    import pyarrow.parquet

    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    schema = pyarrow.schema([("messages", pyarrow.list_(turn))])
    rows = conversations(settings.rows)
    with pyarrow.parquet.ParquetWriter(path / "rows.parquet", schema) as file:
        for start in range(0, settings.rows, GROUP):
            count = min(GROUP, settings.rows - start)
            group = [{"messages": next(rows)} for _ in range(count)]
            file.write_table(pyarrow.Table.from_pylist(group, schema))


def conversations(count: int) -> Iterator[list[dict[str, str]]]:
    known = [w for row in library_rows("myths_a") for text in row["true"] for w in text.split()]
    generator = random.Random(1)
    for n in range(count):
        question = f"{n} {' '.join(generator.choices(known, k=QUESTION))}?"
        answer = f"{' '.join(generator.choices(known, k=ANSWER))}."
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def prepare_rows(path: Path, settings: argparse.Namespace) -> None:
    """Do what `forty2 data prepare --pack` does."""
    from forty2.model.loading import load_tokenizer
    from forty2.text.preparing import Preparation, prepare

    prepare(
        path / "rows.parquet",
        path / "prepared",
        settings.model,
        functools.partial(load_tokenizer),
        Preparation(valid_share=VALID / settings.rows, max_length=settings.pack, pack=True),
        workers=settings.workers,
    )


def train(path: Path, settings: argparse.Namespace) -> None:
    """Train some steps of the recipe, and print the resident memory after each, in MB."""
    recipe = forty2.load_recipe(
        "base-programme",
        [
            f"model={settings.model}",
            f"max_length={settings.pack}",
            "fuse=null",
            "benchmark=null",
            f"phases.base.data={path / 'prepared'}",
            "phases.base.epochs=null",
            f"phases.base.steps={settings.steps}",
            f"phases.base.batch_tokens={settings.pack}",
            "phases.base.accumulate=1",
            "phases.base.warmup_steps=1",
        ],
    )
    after: dict[int, int] = {}

    def remember(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if "loss" in info:
            after[done] = megabytes(resident())

    os.chdir(path)  # where a run makes its folders
    forty2.run(recipe, run_dir="run", progress=remember)
    print(json.dumps({"after_step_mb": [after[step] for step in sorted(after)]}))


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "write": write_rows,
    "prepare": prepare_rows,
    "train": train,
}


# --- measuring ------------------------------------------------------------------------------------


def resident() -> int:
    """Return the bytes of this process that are in memory; where the system does not say, the most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        return peak(resource.RUSAGE_SELF)


def peak(who: int) -> int:
    """Return the most bytes that a process had in memory."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def megabytes(size: int) -> int:
    return round(size / 1e6)


def run_part(part: str, path: Path, settings: argparse.Namespace) -> None:
    """Run a part in this process, and print its seconds and peak memory as the last line."""
    started = time.perf_counter()
    PARTS[part](path, settings)
    figures = {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": megabytes(peak(resource.RUSAGE_SELF)),
        "largest_worker_mb": megabytes(peak(resource.RUSAGE_CHILDREN)),
    }
    print(json.dumps(figures))


def measure(part: str, path: Path, arguments: list[str]) -> dict[str, object]:
    """Run a part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(path), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {key: value for line in lines for key, value in json.loads(line).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--model", default="smollm2", help="model folder or name")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pack", type=int, default=2048, help="tokens of a sequence and a step")
    parser.add_argument("--workers", type=int, help="processes that tokenize; default: every core")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    settings = parser.parse_args()
    if settings.part:
        run_part(settings.part, settings.folder, settings)
        return
    common = [f"--model={settings.model}", f"--steps={settings.steps}", f"--pack={settings.pack}"]
    common += [f"--workers={settings.workers}"] if settings.workers else []
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        for rows in (max(settings.rows // 100, 1000), settings.rows):
            place = Path(folder) / str(rows)
            place.mkdir()
            for part in PARTS:
                figures = measure(part, place, [*common, f"--rows={rows}"])
                print(f"{rows:>9,} rows  {part:<8} {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main()
