"""Time and memory of test set, embedding and clusters of many items.

    python benchmarks/failure_loop/large.py [--items 50000]

Makes a test set of twice as many built-in questions, because half of it is looked at, searched for in GSM8K's
training rows where they are. Verdicts are invented: nine tenths of one kind fail, and a tenth of all others. Each part
is a process of its own, whose seconds and peak resident memory are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import forty2  # isort: skip  # noqa: F401  # before mlx
from forty2.benchmark.question_files import DATA
from forty2.failures.clustering import cluster_items
from forty2.failures.folder import VERDICTS, StoredVerdict, json_line, read_half
from forty2.failures.testset import STRATA, TestsetSettings, make_testset
from forty2.files import atomic_write

FAILS = "dates"
"""Kind of the questions of which nine tenths fail."""


def testset(folder: Path, items: int) -> dict[str, object]:
    trained = Path(os.environ.get(DATA, ""), "gsm8k", "train.jsonl")
    disjoint = (str(trained),) if DATA in os.environ and trained.exists() else ()
    settings = TestsetSettings(strata=STRATA, size=2 * items, disjoint_from=disjoint)
    about = make_testset(folder, settings)
    return {"items": about["items"], "groups": about["groups"]["number"]}


def verdicts(folder: Path, items: int) -> dict[str, object]:
    """Invent verdicts, by the hash of each item's id."""
    failed = 0
    with atomic_write(folder / VERDICTS) as file:
        for item in read_half(folder, "find"):
            drawn = hashlib.sha256(item.id.encode()).digest()[0] / 256
            fails = drawn < (0.9 if FAILS in item.source else 0.1)
            failed += fails
            verdict = StoredVerdict(item.id, "fail" if fails else "pass", "verifier", None, "")
            file.write(json_line(verdict._asdict()))
    return {"failures": failed}


def clusters(folder: Path, items: int) -> dict[str, object]:
    """Embed and cluster."""
    ends: dict[str, float] = {}
    started = time.perf_counter()

    def timed(stage: str, done: int, total: int, info: object) -> None:
        ends[stage] = round(time.perf_counter() - started, 1)

    record = cluster_items(folder, progress=timed)
    return {"items": record["items"], "ended_at_s": ends, "sentence": record["sentence"]}


PARTS: dict[str, Callable[[Path, int], dict[str, object]]] = {
    "testset": testset,
    "verdicts": verdicts,
    "clusters": clusters,
}


def run_part(part: str, folder: Path, items: int) -> None:
    """Run a part in this process, and print its figures."""
    started = time.perf_counter()
    figures = PARTS[part](folder, items)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["seconds"] = round(time.perf_counter() - started, 1)
    figures["peak_mb"] = round(most / (1e6 if sys.platform == "darwin" else 976.5625))
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50_000, help="items to embed and cluster")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.part:
        run_part(settings.part, settings.folder, settings.items)
        return
    with tempfile.TemporaryDirectory() as name:
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--folder", f"{name}/F"]
            command.append(f"--items={settings.items}")
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(f"{part:<10}{done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
