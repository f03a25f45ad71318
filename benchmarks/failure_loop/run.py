"""The whole failure loop for real: a model that was taught one kind of question meets another one.

The starter model answers 3% of the built-in questions, so none of their kinds stands out. Therefore it is first
taught to write JSON (`basics.yaml`). Then the loop (`loop.yaml`) asks for JSON and, rarely, for tool calls, which
it has never seen, without being told that these are what fails.

    python benchmarks/failure_loop/run.py --out F/     # goes on after a stop
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path

import forty2
from forty2.failures.builtin import made_items
from forty2.failures.loop import run_loop
from forty2.files import atomic_write, make_folder
from forty2.progress import bars

HERE = Path(__file__).parent
TAUGHT, ROWS = "json", 60
"""Kind of the questions that are taught, and their number."""
SEED = 7
"""Not that of the loop: other questions."""


def write_basics(path: Path) -> None:
    """Write questions of one kind with right replies."""
    with atomic_write(path) as file:
        for _, made in itertools.islice(made_items(TAUGHT, SEED), ROWS):
            turns = [
                {"role": "user", "content": made.prompt},
                {"role": "assistant", "content": made.reference},
            ]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n")


def main() -> None:
    """Teach the basics, then run the loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    out: Path = parser.parse_args().out
    make_folder(out)
    started = time.monotonic()
    write_basics(out / "basics.jsonl")
    for name in ("basics.yaml", "loop.yaml"):
        shutil.copyfile(HERE / name, out / name)
    basics = out / "basics"
    if not (basics / "report.html").exists():
        forty2.run(
            forty2.load_recipe(out / "basics.yaml"),
            run_dir=basics,
            resume=(basics / "run.json").exists(),
        )
    print(f"basics: {(time.monotonic() - started) / 60:.0f} min", flush=True)
    ended = run_loop(
        out / "loop.yaml",
        out=out / "loop",
        started=lambda step, what: print(f"{step} ({what})", flush=True),
        progress=bars,
    )
    print(ended.sentence, f"report: {ended.report}", sep="\n")
    print(f"in all: {(time.monotonic() - started) / 60:.0f} min")


if __name__ == "__main__":
    main()
