"""Kill small runs at every write and every computation, resume them, and compare all their files.

    python tests/chaos.py [--every K]

A run is a forked child process. An event happens before and after each call of the standard library
and of mlx that writes or computes; the calls are wrapped from outside, and the package does not know
of it. The K-th event ends the first child with SIGKILL, the 2K-th the second, and so on. Each run is
then resumed and must end with the files of a run that was never stopped, bit for bit.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forty2  # isort: skip

import mlx.core as mx
from support.runs import short_checks
from support.small_run import RECIPES
from support.small_run import make_inputs as make_inputs

import forty2.runs.pipeline
import forty2.training.batched_loss
import forty2.training.evaluation
import forty2.training.reference
import forty2.training.step
from forty2.errors import Forty2Error
from forty2.recipe.reading import load_recipe
from forty2.report.charts import line_chart

VARYING = ("tokens_per_s", "peak_memory_gb")
"""Keys in metrics.jsonl that depend on the machine and differ from run to run."""
_SPEED = re.compile(rb'[\d,]+( \| |</td><td class="number">)[\d.]+ GB')
"""Tokens per second and memory of a phase in a report or a card."""
_TIME = re.compile(
    rb'[\d.]+ (s|min|h)( \d+ min)?( \| |</td><td class="number">)(\xe2\x80\x93|[\d.]+ GB)'
)
"""Time and memory of a stage in a report."""


class Killer:
    """Counts events, and ends its process at the event of number `at`."""

    def __init__(self, at: int | None, then: Callable[[], None] | None = None) -> None:
        self.at, self.labels = at, list[str]()
        self._then = then or (lambda: os.kill(os.getpid(), signal.SIGKILL))

    def event(self, label: str, torn: Callable[[], Any] | None = None) -> None:
        """Count one more event.

        Args:
            torn: leaves a half-written file behind; called if this event ends the process.
        """
        self.labels.append(label)
        if len(self.labels) == self.at:
            if torn is not None:
                torn()
            self._then()

    def around(self, owner: Any, name: str, label: str) -> None:
        """Wrap `owner.name` in an event before and an event after every call."""
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.event(f"before {label}")
            result = inner(*args, **kwargs)
            self.event(f"after {label}")
            return result

        setattr(owner, name, call)

    def install(self) -> None:
        """Wrap every call of this process that writes or computes."""
        for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
            self.around(os, name, name)
        for kind in (
            forty2.training.batched_loss.ConversationLoss,
            forty2.training.batched_loss.PairLoss,
        ):
            self.around(kind, "batch", "batch")
        self.around(forty2.training.reference, "response_logps", "reference batch")
        self.around(forty2.training.step.Stepper, "step", "step")
        self.around(forty2.training.evaluation, "evaluate", "evaluation")
        opened, saved = io.open, mx.save_safetensors

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(file, mode, *args, **kwargs)
            self.event("before open")
            return _File(opened(file, mode, *args, **kwargs), self)

        def save(path: str, *args: Any, **kwargs: Any) -> None:
            self.event("before safetensors")
            saved(path, *args, **kwargs)
            self.event(
                "half safetensors", lambda: os.truncate(path, Path(path).stat().st_size // 2)
            )
            self.event("after safetensors")

        io.open = builtins.open = open_
        vars(mx)["save_safetensors"] = save


class _File:
    """A file open for writing, with an event in the middle of every write and one after it."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self._file, self._killer = file, killer

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._killer.event("half write", half)
        written = self._file.write(data)
        self._killer.event("after write", self._file.flush)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Ended(NamedTuple):
    """How a child ended."""

    code: int
    """Exit code; negative: the signal that killed the child."""
    message: str
    """Error message or traceback."""
    labels: list[str]
    """Labels of the events, if the child was not killed."""


def in_child(folder: Path, killer: Killer, work: Callable[[], object]) -> Ended:
    """Do some work in a forked child process that works, and has its cache, in a folder."""
    folder.mkdir(exist_ok=True)
    message, events = folder / "message.txt", folder / "events.json"
    for file in (message, events):
        file.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            os.environ["FORTY2_CACHE"] = str(folder / "cache")
            killer.install()
            try:
                with short_checks():  # they would take most of the time, and write nothing
                    work()
                code = 0
            except Forty2Error as error:
                message.write_text(str(error))
                code = error.exit_code
            killer.at = None
            events.write_text(json.dumps(killer.labels))
        except BaseException:
            message.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(
        code,
        message.read_text() if message.exists() else "",
        json.loads(events.read_text()) if events.exists() else [],
    )


def run_child(
    inputs: Path, folder: Path, killer: Killer, *, resume: bool, recipe: str = "recipe"
) -> Ended:
    """Run a recipe in a forked child process."""

    def work() -> None:
        out = ["fuse.out=fused"]  # in the working directory, not beside the recipe
        loaded = load_recipe(inputs / f"{recipe}.yaml", out)
        forty2.runs.pipeline.run(loaded, run_dir="run", resume=resume)

    return in_child(folder, killer, work)


def results(folder: Path) -> dict[str, Any]:
    """Return the contents of a run's files by name, without times and figures of the machine."""
    return contents(folder, *(folder / "run").rglob("*"), *folder.glob("fused*/*"))


def contents(folder: Path, *paths: Path) -> dict[str, Any]:
    """Return the contents of files by name, without times and figures of the machine."""
    found: dict[str, Any] = {}
    times = [json.loads(p.read_text())["started"] for p in paths if p.name == "run.json"]
    minutes = [
        f"{time[:16].replace('T', ' ')} UTC" for time in times
    ]  # in the reports' first lines
    for path in sorted(paths):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in ("run.lock", "times.jsonl"):
            continue
        found[name] = path.read_bytes()
        for text in (*times, *minutes):
            found[name] = found[name].replace(text.encode(), b"")
        if path.name.startswith(("report.", "README.")):
            found[name] = _TIME.sub(b"", _SPEED.sub(b"", found[name]))
        if path.name == "run.json":
            found[name] = {k: v for k, v in json.loads(found[name]).items() if k != "started"}
        elif path.name == "metrics.jsonl":
            found[name] = [
                {k: v for k, v in json.loads(line).items() if k not in VARYING}
                for line in found[name].decode().splitlines()
            ]
    return found


def torn_files(folder: Path, inside: str = "run") -> list[str]:
    """List the files that are damaged under their final name; an unfinished file has another."""
    torn = []
    for path in (folder / inside).rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        data = path.read_bytes()
        try:
            if path.suffix == ".json":
                json.loads(data)
            elif path.suffix == ".safetensors":
                header = struct.unpack("<Q", data[:8])[0]
                tensors = json.loads(data[8 : 8 + header])
                ends = [t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__"]
                assert len(data) == 8 + header + max(ends)
        except (ValueError, AssertionError, struct.error):
            torn.append(str(path.relative_to(folder)))
    return torn


class Outcome(NamedTuple):
    """The outcome of a run that was killed at one event."""

    at: int
    """Number of the event."""
    survived: bool
    """Whether the run could be resumed to its end."""
    differ: list[str]
    """Files that differ from those of a run that was never stopped."""
    torn: list[str]
    """Files that were half-written when the run was killed."""
    leftovers: list[str]
    """Unfinished files after the run was resumed."""
    message: str
    """Why the run could not be resumed."""

    @property
    def harmless(self) -> bool:
        return self.survived and not (self.differ or self.torn or self.leftovers)


def try_fault(inputs: Path, folder: Path, recipe: str, at: int, wanted: dict[str, Any]) -> Outcome:
    """Kill a run at an event, resume it, and compare its files with the wanted ones."""
    shutil.rmtree(folder, ignore_errors=True)
    killed = run_child(inputs, folder, Killer(at), resume=False, recipe=recipe)
    if killed.code != -signal.SIGKILL:
        return Outcome(at, False, [], [], [], f"not killed: {killed.code} {killed.message}")
    torn = torn_files(folder)
    began = any((folder / "run").glob("*"))  # else there is nothing to resume, and the run begins
    again = run_child(inputs, folder, Killer(None), resume=began, recipe=recipe)
    if again.code != 0:
        return Outcome(at, False, [], torn, [], again.message)
    got = results(folder)
    differ = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
    leftovers = [str(p.relative_to(folder)) for p in folder.rglob(".*")]
    return Outcome(at, True, differ, torn, leftovers, "")


def main() -> int:
    """Print a line for each fault that did harm, then a table. Return 1 if there was one, else 0."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--every", type=int, default=1, metavar="K", help="try every K-th event")
    arguments.add_argument(
        "--points", type=int, help="try this many events of each run, evenly spread"
    )
    asked = arguments.parse_args()
    started = time.monotonic()
    outcomes: list[Outcome] = []
    kinds: Counter[str] = Counter()
    events = files = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        place = Path(name).resolve()
        inputs = make_inputs_in_child(place / "inputs")
        for recipe in RECIPES:
            whole = run_child(inputs, place / recipe, Killer(None), resume=False, recipe=recipe)
            if whole.code != 0:
                print(whole.message)
                return 1
            wanted, labels = results(place / recipe), whole.labels
            events, files = events + len(labels), files + len(wanted)
            every = max(1, len(labels) // asked.points) if asked.points else asked.every
            for at in range(every, len(labels) + 1, every):
                outcome = try_fault(inputs, place / "fault", recipe, at, wanted)
                outcomes.append(outcome)
                kinds[labels[at - 1].removeprefix("before ")] += 1
                if not outcome.harmless:
                    what = (outcome.message.strip().splitlines() or [""])[-1]
                    print(
                        f"{recipe}, event {at}, {labels[at - 1]}: {what} {outcome[2:5]}", flush=True
                    )
    figures = {
        "events in the runs": events,
        "kinds of events tried": len(kinds),
        "faults tried": len(outcomes),
        "survived": sum(o.survived for o in outcomes),
        "files compared": files,
        "files whose bytes differ": sum(len(o.differ) for o in outcomes),
        "torn files seen": sum(len(o.torn) for o in outcomes),
        "leftovers after resuming": sum(len(o.leftovers) for o in outcomes),
        "seconds": round(time.monotonic() - started),
    }
    for key, value in figures.items():
        print(f"{key:<26}{value:>8}")
    return int(not all(o.harmless for o in outcomes))


def make_inputs_in_child(folder: Path) -> Path:
    """Make the inputs in a child process: this one must not start mlx's threads, as it forks more.

    What its children need of matplotlib is loaded here, once and not in each of them.
    """
    line_chart("a chart", {"a line": [(0, 0), (1, 1)]})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make_inputs(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the inputs could not be made")
    return folder


if __name__ == "__main__":
    sys.exit(main())
