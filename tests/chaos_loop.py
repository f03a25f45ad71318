"""Kill a whole failure loop at its writes, steps and requests, resume it, and compare all its files.

    python tests/chaos_loop.py [--points N]

The loop has a tiny random model, a teacher and a judge: a server of its own process, whose log shows each request.
A killed loop is resumed and must end with the files of one that was never stopped, bit for bit. Of the requests,
those that were under way when it was killed may be sent again, and no others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from chaos import Ended, Killer, contents, in_child, make_inputs_in_child, torn_files
from support.chat_server import Reply, said, server
from support.failure_folder import topic_text

from forty2.failures.builtin.made import WORDS
from forty2.failures.loop import run_loop
from forty2.files import JsonObject
from forty2.inference.embedding import MINILM, load_embedder

AT_ONCE = 2
"""Requests under way at a time."""
LOOP = f"""\
version: 1
name: mine
model: MODEL
teacher: URL
judge: URL
limits: {{at_once: {AT_ONCE}}}
testset: {{from: [rows.jsonl], strata: {{trains: 24, cooking: 24, code: 24}}}}
find: {{max_tokens: 4}}
cluster: {{k: 3}}
label: {{by: teacher}}
generate: {{size: 4}}
recover:
  seeds: [1, 2]
  recipe:
    version: 1
    name: arms
    max_length: 128
    adapter: {{rank: 2, layers: 2}}
    phases: {{sft: {{objective: sft, epochs: 1, lr: 1.0e-3, save_every_steps: 1}}}}
    benchmark: {{n: 2}}
"""


def write_inputs(folder: Path, model: Path, url: str) -> None:
    """Write the loop's file, and questions: trains fail, cooking passes, code is for the judge."""
    rng, rows = random.Random(1), []
    patterns = {"trains": "what no random model says", "cooking": "", "code": None}
    for topic, pattern in patterns.items():
        verifier = None if pattern is None else {"kind": "regex", "pattern": pattern}
        for n in range(40):
            text = f"{topic_text(topic, rng)} Case {n * n} of {topic}."
            rows.append({"prompt": text, "stratum": topic, "verifier": verifier})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "loop.yaml").write_text(LOOP.replace("MODEL", str(model)).replace("URL", url))


def answer(_: int, body: JsonObject) -> Reply:
    """Answer as teacher or judge; the same to the same request."""
    text = body["messages"][0]["content"]
    if "is to be scored" in text:
        return said(f"Score: {8 + body['seed'] % 3}", tokens=(90, 4))
    if '"label"' in text:
        return said('{"label": "journeys by train"}', tokens=(90, 6))
    words = random.Random(body["seed"]).sample(WORDS, 6)
    row = {"question": f"{' '.join(words)}?", "answer": f"{words[0]}.", "verifier": None}
    return said(json.dumps(row), tokens=(300, 40))


@contextmanager
def server_process(log: Path) -> Iterator[str]:
    """Run the server in a process of its own, which writes a line into the log for each request."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with log.open("a") as file, server(lambda n, body: _logged(file, n, body)) as (url, _):
            os.write(write, url.encode())
            os.close(write)
            while True:
                time.sleep(60)
    os.close(write)
    try:
        yield os.read(read, 1000).decode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _logged(file: Any, number: int, body: JsonObject) -> Reply:
    file.write(json.dumps([body["seed"], body["messages"][0]["content"]]) + "\n")
    file.flush()
    return answer(number, body)


class Outcome(NamedTuple):
    """What became of a loop that was killed at one event."""

    differ: list[str]
    torn: list[str]
    left: list[str]
    """Unfinished files."""
    again: int
    """Requests that were sent more often than by a loop that was never stopped."""
    message: str
    """Why it did not end as it should."""

    @property
    def harmless(self) -> bool:
        lists = (self.differ, self.torn, self.left)
        return not any(lists) and self.again <= AT_ONCE and not self.message


class Chaos:
    """Loops in one place, with one server."""

    def __init__(self, place: Path, url: str, log: Path, models: Path) -> None:
        self._place, self._url, self._log, self._models = place, url, log, models

    def start(self, folder: Path, killer: Killer) -> Ended:
        """Run a loop in a child, or go on with it."""
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        if not (folder / "cache" / "models").exists():
            (folder / "cache" / "models").symlink_to(self._models)
        if not (folder / "loop.yaml").exists():
            write_inputs(folder, self._place / "inputs" / "model", self._url)
        return in_child(folder, killer, lambda: run_loop("loop.yaml", out="F"))

    def files(self, folder: Path) -> dict[str, Any]:
        return contents(folder, *(folder / "F").rglob("*"))

    def asked(self) -> Counter[str]:
        """Count the requests since the log was emptied. Two models that say the same are judged alike."""
        return Counter(self._log.read_text().splitlines())

    def fault(self, at: int, wanted: dict[str, Any], asked: Counter[str]) -> Outcome:
        """Kill a loop at an event, go on with it, and compare."""
        folder = self._place / "fault"
        shutil.rmtree(folder, ignore_errors=True)
        self._log.write_text("")
        killed = self.start(folder, Killer(at))
        if killed.code != -signal.SIGKILL:
            return Outcome([], [], [], 0, f"not killed: {killed.code} {killed.message}")
        torn = torn_files(folder, "F")
        again = self.start(folder, Killer(None))
        if again.code != 0:
            return Outcome([], torn, [], 0, again.message)
        got = self.files(folder)
        left = [str(p.relative_to(folder)) for p in (folder / "F").rglob("*") if _unfinished(p)]
        return Outcome(
            [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)],
            torn,
            left,
            (self.asked() - asked).total(),
            "",
        )


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".") or path.suffix == ".part"


def main() -> int:
    """Print a line for each fault that did harm, then a table. Return 1 if there was one, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=60, help="events to try, evenly spread")
    points = parser.parse_args().points
    started = time.monotonic()
    kinds: Counter[str] = Counter()
    outcomes: list[Outcome] = []
    os.environ["no_proxy"] = "127.0.0.1"
    with tempfile.TemporaryDirectory(prefix="chaos-loop-") as name:
        place = Path(name).resolve()
        (place / "home").mkdir()
        fetched = in_child(place / "home", Killer(None), lambda: load_embedder(MINILM))
        make_inputs_in_child(place / "inputs")
        log = place / "requests.jsonl"
        with server_process(log) as url:
            chaos = Chaos(place, url, log, place / "home" / "cache" / "models")
            whole = chaos.start(place / "whole", Killer(None))
            if fetched.code or whole.code:
                print(fetched.message, whole.message)
                return 1
            wanted, labels = chaos.files(place / "whole"), whole.labels
            asked = chaos.asked()
            every = max(1, len(labels) // points)
            for at in itertools.islice(range(every, len(labels) + 1, every), points):
                outcome = chaos.fault(at, wanted, asked)
                outcomes.append(outcome)
                kinds[labels[at - 1].removeprefix("before ")] += 1
                if not outcome.harmless:
                    print(f"event {at}, {labels[at - 1]}: {outcome}", flush=True)
    figures = {
        "events in the loop": len(labels),
        "kinds of events tried": len(kinds),
        "faults tried": len(outcomes),
        "ended with the same bytes": sum(one.harmless for one in outcomes),
        "files compared": len(wanted),
        "requests of the loop": asked.total(),
        "most requests sent again": max((one.again for one in outcomes), default=0),
        "seconds": round(time.monotonic() - started),
    }
    for key, value in figures.items():
        print(f"{key:<26}{value:>8}")
    return int(not all(one.harmless for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
