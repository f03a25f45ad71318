"""How fast the data kit is, and how much memory it takes. Run: python benchmarks/data_throughput.py

Rows are composed of the library's words: 100,000 conversations of about 100 tokens to lint, count
and tokenise; a prepared set of 600,000 rows to start from; with --large a 2 GB file to lint. Each
measurement is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from forty2.data.library import rows as library

LINT = "from forty2.data.checks.lint import lint; lint({path!r})"
STATS = """from forty2.model.loading import load_tokenizer
from forty2.text.preview import stats
from forty2.text.encoder import Encoder
stats({path!r}, Encoder(load_tokenizer("smollm2")))"""
TOKENISE = """from pathlib import Path
from forty2.text.prepared import prepare
prepare({path!r}, Path({out!r}), "smollm2", valid_share=0)"""
MANY = 300_000
START = """from pathlib import Path
from forty2.training.batches import Order, sft_batch
from forty2.text.prepared import Prepared
rows = Prepared(Path({path!r}))
order = Order(rows.lengths, 8, 42, rows.weights)
for step in range(50):
    sft_batch([rows[i] for i in order.batch(step)], order.batch(step))"""
MEASURE = """
import resource, sys, time
began = time.perf_counter()
{code}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - began, peak / (1e6 if sys.platform == "darwin" else 1e3))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="lint 2 GB too (minutes)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        compose(path, 100_000, words=48)
        figures["file_mb"] = round(path.stat().st_size / 1e6)
        for name, code in (("lint", LINT), ("stats", STATS), ("tokenise", TOKENISE)):
            seconds, peak = measured(code.format(path=str(path), out=f"{folder}/{name}"))
            figures[name] = {
                "seconds": seconds,
                "peak_mb": peak,
                "rows_per_s": round(1e5 / seconds),
            }
            print(name, figures[name], flush=True)
        # The rate is that of the rows after the first 100,000, so that starting up is not in it.
        compose(path, MANY, words=48)
        seconds, peak = measured(TOKENISE.format(path=str(path), out=f"{folder}/more"))
        rate = round((MANY - 1e5) / (seconds - figures["tokenise"]["seconds"]))
        figures["tokenise_more"] = {"seconds": seconds, "peak_mb": peak, "rows_per_s": rate}
        print("tokenise_more", figures["tokenise_more"], flush=True)
        manifest = json.loads((Path(folder) / "tokenise" / "manifest.json").read_text())
        figures["tokens_per_row"] = round(manifest["tokens"]["train"] / 100_000, 1)
        repeat(Path(folder) / "tokenise" / "train", Path(folder) / "many", times=6)
        seconds, peak = measured(START.format(path=f"{folder}/many"))
        figures["start_600k"] = {"seconds": seconds, "peak_mb": peak}
        print("start_600k", figures["start_600k"], flush=True)
        if arguments.large:
            compose(path, 1_000_000, words=340)
            seconds, peak = measured(LINT.format(path=str(path)))
            size = round(path.stat().st_size / 1e6)
            figures["lint_large"] = {"seconds": seconds, "peak_mb": peak, "file_mb": size}
    print(json.dumps(figures, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def compose(path: Path, count: int, words: int) -> None:
    """Conversations of random words, so many of them in an answer."""
    known = [w for row in library("myths_a") for text in row["true"] for w in text.split()]
    generator = random.Random(1)
    with path.open("w") as file:
        for n in range(count):
            question = f"{n} " + " ".join(generator.choices(known, k=12)) + "?"
            answer = " ".join(generator.choices(known, k=words)) + "."
            turns = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")


def repeat(source: Path, out: Path, times: int) -> None:
    """A prepared split so many times over."""
    import numpy as np

    out.mkdir()
    for name in ("tokens.bin", "mask.bin"):
        data = (source / name).read_bytes()
        with (out / name).open("wb") as file:
            for _ in range(times):
                file.write(data)
    lengths = np.tile(np.fromfile(source / "rows.idx", np.uint64).reshape(-1, 2)[:, 1], times)
    np.stack([np.cumsum(lengths) - lengths, lengths], 1).tofile(out / "rows.idx")


def measured(code: str) -> tuple[float, float]:
    """Seconds and peak megabytes of a process that runs `code`, imports not counted twice."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(code=code)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak = map(float, done.stdout.split()[-2:])
    return round(seconds, 2), round(peak)


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"in {time.perf_counter() - began:.0f} s")
