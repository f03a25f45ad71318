"""Trackers: the numbers of a run's metrics.jsonl, in TensorBoard or Weights & Biases.

One exporter serves a run under way, a resumed one, and one that has ended: it reads the lines of the
file, compares them with what the tracker has, and sends what is new. A run that goes on from a
checkpoint logs some steps again; they come out the same, so they are not sent twice. If they come out
otherwise, because training went back to a checkpoint at a lower rate, the tracker's copy is begun anew.

A tracker that fails never ends a run: it is left out from then on, and `forty2 runs export` catches up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from forty2.errors import RecipeError, RunError, on_one_line
from forty2.files import JsonObject, make_folder, owner_only, read_json, write_json
from forty2.recipe.differences import flattened
from forty2.recipe.schema import Tracker
from forty2.runs.archive.entry import is_running

if TYPE_CHECKING:
    from forty2.runs.context import RunContext

PROJECT = "forty2"
"""Project of a run whose recipe names none."""
_PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_METRICS = "metrics.jsonl"
"""File of a run with its metrics."""
_TIMINGS = ("tokens_per_s", "peak_memory_gb")
"""Figures that differ when the same step is taken again."""


class Copy(Protocol):
    """A tracker's copy of a run's metrics."""

    sent: list[JsonObject]
    """Records that it holds, without timings."""

    def send(self, record: JsonObject) -> None:
        """Add a record."""

    def begin_anew(self) -> None:
        """Drop everything that was sent."""

    def close(self) -> None:
        """Write out what is buffered."""

    def where(self) -> str:
        """Say where to look."""


def check_installed(trackers: Sequence[Tracker]) -> None:
    """Refuse trackers whose package is missing.

    Raises:
        RecipeError: names the package, and the command that installs it.
    """
    for name in trackers:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise RecipeError(
                f"report_to: {name} needs the package {_PACKAGES[name]}, which is not installed; run: "
                f"pip install {_PACKAGES[name]}"
            )


def export_to_tracker(run: Path, tracker: Tracker, project: str | None = None) -> tuple[int, str]:
    """Send the metrics of a run that has ended, or stopped, to a tracker; those it has are left alone.

    Args:
        project: project of the tracker; None: that of the run's recipe.

    Returns:
        The number of records sent, and where to look.

    Raises:
        RunError: the run is under way, damaged or without metrics, or the tracker fails.
        RecipeError: the tracker's package is missing.
    """
    check_installed([tracker])
    if is_running(run):
        raise RunError(f"{run}: is running; export it when it has ended, or set report_to")
    if not (run / "recipe.yaml").exists():
        raise RunError(f"{run}: holds no run")
    metrics = run / _METRICS
    if not (metrics.exists() and metrics.stat().st_size):
        raise RunError(f"{run}: has no metrics yet, since no phase has begun; train it first")
    try:
        exporter = _Exporter(run, tracker, project)
        exporter.follow()
        exporter.close()
    except RunError:
        raise
    except Exception as error:  # another package's
        raise _failed(tracker, error) from error
    return exporter.number_sent, exporter.where()


@contextlib.contextmanager
def reporting(run: RunContext) -> Iterator[None]:
    """Send the run's metrics to the trackers of its recipe while it goes on.

    Raises:
        RunError: a tracker cannot be started.
    """
    exporters = {}
    if run.group.first:
        for name in run.recipe.report_to:
            try:
                exporters[name] = _Exporter(run.path, name, run.recipe.project)
            except RunError:
                raise
            except Exception as error:  # another package's
                raise _failed(name, error) from error

    def follow(last: bool = False) -> None:
        for name, exporter in list(exporters.items()):
            try:
                exporter.follow()
                if last:
                    exporter.close()
            except Exception as error:  # another package's; hours of training must not end with it
                del exporters[name]
                run.progress("run", 0, 1, {"warning": _left_out(run.path, name, error)})

    run.folder.on_change = follow
    try:
        yield
    finally:
        run.folder.on_change = None
        follow(last=True)


def _failed(name: str, error: Exception) -> RunError:
    reason = on_one_line(error).rstrip(".")
    advice = "; to log in later, set WANDB_MODE=offline" if "login" in reason else ""
    return RunError(f"report_to: {name}: {reason}{advice}")


def _left_out(run: Path, name: str, error: Exception) -> str:
    return (
        f"{name} is left out from now on ({on_one_line(error)}); when the run has ended, catch up with "
        f"forty2 runs export {run} --to {name}"
    )


class _Exporter:
    """Keeps a tracker's copy equal to a run's metrics.jsonl."""

    def __init__(self, run: Path, tracker: Tracker, project: str | None) -> None:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
        project = project or recipe.get("project") or PROJECT
        self._file = run / _METRICS
        self._copy: Copy = _TensorBoard(run) if tracker == "tensorboard" else _WandB(run, project)
        self._read: list[JsonObject] = []
        """Records of the file so far."""
        self._inode, self._offset = 0, 0
        self.number_sent = 0

    def where(self) -> str:
        """Say where to look."""
        return self._copy.where()

    def follow(self) -> None:
        """Send what is new in the file."""
        if not self._file.exists():
            return
        about = self._file.stat()
        if about.st_ino != self._inode or about.st_size < self._offset:
            self._inode, self._offset, self._read = about.st_ino, 0, []
        with self._file.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")[:-1]  # a last line without an end is under way
        for line in lines:
            self._offset += len(line) + 1
            place = f"{self._file}:{len(self._read) + 1}"
            self._take(_record(line, place, "delete this line"))

    def close(self) -> None:
        """End the copy."""
        self._copy.close()

    def _take(self, record: JsonObject) -> None:
        place, known = len(self._read), self._copy.sent
        self._read.append(record)
        if place < len(known):
            if known[place] == _without_timings(record):
                return
            self._copy.begin_anew()
            for one in self._read[:-1]:
                self._send(one)
        self._send(record)

    def _send(self, record: JsonObject) -> None:
        self._copy.send(record)
        self._copy.sent.append(_without_timings(record))
        self.number_sent += 1


def _record(line: bytes, place: str, advice: str) -> JsonObject:
    """Read a line of a log.

    Args:
        place: where it is, for the message.
        advice: what to do about a damaged one.

    Raises:
        RunError: it is damaged.
    """
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"phase", "step"} <= record.keys():
        raise RunError(f"{place}: damaged; {advice}")
    found: JsonObject = record
    return found


def _without_timings(record: JsonObject) -> JsonObject:
    return {key: value for key, value in record.items() if key not in _TIMINGS}


def _numbers(record: JsonObject) -> dict[str, float]:
    """Return the numbers of a record by name; warnings are texts, which stay in the report."""
    return {
        key: float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float)
    }


class _TensorBoard:
    """Event files in RUN/tensorboard, one tag for each phase and figure, at the phase's own steps.

    The files are written anew by every process, from metrics.jsonl, so nothing can be in them twice.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / "tensorboard"
        self._writer: Any = None
        make_folder(self._folder)
        self.begin_anew()

    def begin_anew(self) -> None:
        from tensorboardX import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        for file in self._folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.sent: list[JsonObject] = []
        self._writer = SummaryWriter(str(self._folder), flush_secs=10)

    def send(self, record: JsonObject) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(f"{record['phase']}/{name}", value, record["step"])

    def close(self) -> None:
        self._writer.close()

    def where(self) -> str:
        return f"tensorboard --logdir {self._folder}"


class _WandB:
    """A run of Weights & Biases, named after the run folder; what was sent is noted in RUN/wandb.

    state.json holds the id of the run, and sent.jsonl the records. A copy that is begun anew is a new
    run of the same group. W&B's own files are where it puts them (`WANDB_DIR`, else wandb/ in the working
    folder): they hold links that lead elsewhere, which a run folder must not.
    """

    def __init__(self, run: Path, project: str) -> None:
        self._path, self._project = run, project
        self._folder = run / "wandb"
        make_folder(self._folder)
        self._state, self._log = self._folder / "state.json", self._folder / "sent.jsonl"
        if not self._state.exists():
            write_json(self._state, {"id": uuid.uuid4().hex[:12], "project": project})
        state = read_json(self._state)
        if state["project"] != project:
            raise RunError(
                f"{run}: was sent to project {state['project']}; delete {self._folder} to send it to "
                f"{project}, too"
            )
        self.sent = self._read_sent()
        self._run = self._start()

    def _read_sent(self) -> list[JsonObject]:
        """Read the records that were sent; a last line that a kill cut off is removed."""
        if not self._log.exists():
            return []
        lines = self._log.read_bytes().split(b"\n")
        if cut_off := lines.pop():
            os.truncate(self._log, self._log.stat().st_size - len(cut_off))
        advice = f"delete {self._folder} to send everything again"
        return [_record(line, str(self._log), advice) for line in lines]

    def _start(self) -> Any:
        import wandb

        recipe = yaml.safe_load((self._path / "recipe.yaml").read_text("utf-8"))
        started = wandb.init(
            project=self._project,
            name=self._path.resolve().name,
            group=self._path.resolve().name,
            id=read_json(self._state)["id"],
            resume="allow",
            config=dict(flattened(recipe)),
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True
            ),
        )
        for phase in recipe["phases"]:
            started.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        return started

    def begin_anew(self) -> None:
        self._run.finish()
        write_json(self._state, {"id": uuid.uuid4().hex[:12], "project": self._project})
        self._log.unlink(missing_ok=True)
        self.sent = []
        self._run = self._start()

    def send(self, record: JsonObject) -> None:
        values = {f"{record['phase']}/{name}": value for name, value in _numbers(record).items()}
        self._run.log({**values, f"{record['phase']}/step": record["step"]}, step=len(self.sent))
        with open(self._log, "a", encoding="utf-8", opener=owner_only) as file:
            file.write(json.dumps(_without_timings(record)) + "\n")

    def close(self) -> None:
        self._run.finish()

    def where(self) -> str:
        if self._run.offline:
            own = Path(self._run.dir).parent  # its files/
            return f"offline; send it with: wandb sync {own.parent}/offline-run-*-{self._run.id}"
        return str(self._run.url)
