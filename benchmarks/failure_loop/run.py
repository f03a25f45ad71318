"""The whole failure loop for real: a model that was taught one kind of question meets another one.

The starter model answers 3% of the built-in questions, so none of their kinds stands out. Therefore it is first
taught to write JSON (`basics.yaml`). Then the packaged loop asks for JSON and, rarely, for tool calls, which
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
from forty2.progress_bars import Bars

HERE = Path(__file__).parent
TAUGHT, ROWS = "json", 60
"""Kind of the questions that are taught, and their number."""
SEED = 7
"""Not that of the loop: other questions."""
LOOP = (
    "testset.strata={json: 850, tool-calls: 150}",
    "cluster.k=auto",  # two kinds of question give two stable clusters; ten would not be stable
    "generate.size=160",
)
"""What differs from the packaged loop, beside its model."""


def write_basics(path: Path) -> None:
    """Write questions of one kind with right replies."""
    with atomic_write(path) as file:
        for _, made in itertools.islice(made_items(TAUGHT, SEED), ROWS):
            turns = [
                {"role": "user", "content": made.prompt},
                {"role": "assistant", "content": made.reference},
            ]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n")


def teach_basics(out: Path) -> Path:
    """Teach the starter model one kind of question, and return its run; what is done stays."""
    write_basics(out / "basics.jsonl")
    shutil.copyfile(HERE / "basics.yaml", out / "basics.yaml")
    basics = (out / "basics").absolute()
    if not (basics / "report.html").exists():
        forty2.run(
            forty2.load_recipe(out / "basics.yaml"),
            run_dir=basics,
            resume=(basics / "run.json").exists(),
        )
    return basics


def main() -> None:
    """Teach the basics, then run the loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    out: Path = parser.parse_args().out
    make_folder(out)
    started = time.monotonic()
    basics = teach_basics(out)
    print(f"basics: {(time.monotonic() - started) / 60:.0f} min", flush=True)
    with Bars() as bars:
        ended = run_loop(
            "builtin-loop",
            overrides=[f"model={basics}", f"testset.disjoint_from=[{basics}]", *LOOP],
            out=out / "loop",
            started=lambda step, what: bars(step, 0, 1, {"heading": f"{step} ({what})"}),
            progress=bars,
        )
    print(ended.sentence, f"report: {ended.report}", sep="\n")
    print(f"in all: {(time.monotonic() - started) / 60:.0f} min")


if __name__ == "__main__":
    main()
