"""The whole failure loop with a served model as teacher and judge, and the starter model as student.

    python benchmarks/failure_loop/served.py --model FOLDER --out F/     # goes on after a stop, even by kill -9

FOLDER holds a chat model, such as one that `forty2 model import` wrote. `mlx_lm.server` serves it on the loopback and
logs every request. The student is taught JSON first (`run.py`); then it is asked for JSON, for tool calls, which it has
never seen, and for conversions of units without a verifier, which the judge scores. Printed are the verdict, seconds,
peak memory, and the requests in the server's log beside the answers that the loop has stored.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run import TAUGHT, teach_basics

from forty2.failures.builtin import made_items
from forty2.failures.loop import run_loop
from forty2.files import JsonObject, atomic_write, make_folder, read_json
from forty2.progress_bars import Bars

JUDGED = "units"
"""Kind of the questions that have a reference and no verifier."""
SEED = 7
"""Not that of the loop: other questions."""
PATIENCE = 3600
"""Seconds that a reply may take: a request that is sent again would be in the log twice."""
_REQUEST = re.compile(r"Incoming Request Body: (?=\{)")


# --- the server -----------------------------------------------------------------------------------


@contextmanager
def served(model: Path, port: int, log: Path) -> Iterator[str]:
    """Serve a model with mlx-lm's own server, and return its address; the log is gone on with."""
    program = "import forty2, sys; from mlx_lm.server import main; sys.exit(main())"
    settings = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *settings, "--log-level", "DEBUG"],
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        SystemExit: it has ended.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None:
        try:
            opener.open(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("mlx_lm.server ended; see server.log")


def logged_requests(log: Path) -> Counter[str]:
    """Count the requests in the log of the server by what was asked."""
    text = log.read_text("utf-8", "replace")
    decoder = json.JSONDecoder()
    bodies = (decoder.raw_decode(text, found.end())[0] for found in _REQUEST.finditer(text))
    return Counter(json.dumps(body, sort_keys=True) for body in bodies)


# --- the loop -------------------------------------------------------------------------------------


def write_judged(path: Path, count: int) -> None:
    """Write questions with references, for the judge."""
    with atomic_write(path) as file:
        for _, made in itertools.islice(made_items(JUDGED, SEED), count):
            row = {"prompt": made.prompt, "reference": made.reference, "stratum": "judged"}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def settings_of(options: argparse.Namespace, student: str, url: str) -> list[str]:
    """Return what differs from the packaged loop."""
    count = options.items
    strata = {TAUGHT: count * 5 // 8, "tool-calls": count // 4, "judged": count // 8}
    model = f"{{name: '{url}', model: default_model}}"
    return [
        f"model={student}",
        f"teacher={model}",
        f"judge={model}",
        f"limits={{at_once: {options.at_once}, timeout: {PATIENCE}}}",
        f"testset.from=[builtin, {options.out.absolute() / 'judged.jsonl'}]",
        f"testset.strata={json.dumps(strata)}",
        f"testset.disjoint_from=[{'' if options.student else student}]",
        "find.repeats=2",
        "cluster.k=auto",
        "label.by=teacher",
        f"generate.size={options.rows}",
        f"generate.max_tokens={options.max_tokens}",
        "score.at_least=7",  # of a small judge's scores, few are 8
        f"recover.seeds={list(range(42, 42 + options.seeds))}",
    ]


def stored_answers(folder: Path) -> JsonObject:
    """Count the requests whose answers the steps have stored."""
    found: JsonObject = {}
    for name in ("find.json", "labels.json", "accepted.json"):
        if (folder / name).exists():
            record = read_json(folder / name)
            requests = record.get("requests") or (record.get("judged") or {}).get("requests")
            found[name] = requests["sent"] if requests else 0
    if (folder / "generated.json").exists():
        arms = read_json(folder / "generated.json")["arms"]
        found["generated.json"] = sum(arm["asked"] for arm in arms.values())
    tests = [read_json(path) for path in sorted((folder / "recover").glob("*.json"))]
    judged = [one["judged"] for one in tests if isinstance(one, dict) and one.get("judged")]
    found["recover"] = sum(one["requests"]["sent"] for one in judged)
    return found


def main() -> None:
    """Serve the model, teach the basics, run the loop, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the chat model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--student", help="another model or run; it is taught nothing before")
    parser.add_argument("--items", type=int, default=400, help="questions, both halves together")
    parser.add_argument("--rows", type=int, default=20, help="rows to ask for, of each arm")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest reply of the teacher")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each arm")
    parser.add_argument("--at-once", type=int, default=4, help="most requests under way")
    parser.add_argument("--port", type=int, default=8642, help="the same each time")
    options = parser.parse_args()
    make_folder(options.out)
    started = time.monotonic()
    student = options.student or str(teach_basics(options.out))
    write_judged(options.out / "judged.jsonl", options.items)
    log, folder = options.out / "server.log", options.out / "loop"
    with served(options.model, options.port, log) as url, Bars() as bars:
        ended = run_loop(
            "builtin-loop",
            overrides=settings_of(options, student, url),
            out=folder,
            started=lambda step, what: bars(step, 0, 1, {"heading": f"{step} ({what})"}),
            progress=bars,
        )
    in_log, stored = logged_requests(log), stored_answers(folder)
    scale = 1e9 if sys.platform == "darwin" else 976_562.5
    peaks = [resource.getrusage(who).ru_maxrss / scale for who in (0, resource.RUSAGE_CHILDREN)]
    print(ended.sentence, f"report: {ended.report}", sep="\n")
    print(f"seconds of this call: {time.monotonic() - started:.0f}")
    print(f"peak memory in GB: loop {peaks[0]:.2f}, server {peaks[1]:.2f}")
    print(f"requests in the server's log: {in_log.total()}; answers stored: {sum(stored.values())}")
    print(f"  stored by step: {stored}")
    print(f"  sent again: {in_log.total() - sum(stored.values())}")
    print(f"  the same text and seed more than once: {in_log.total() - len(in_log)}")


if __name__ == "__main__":
    main()
