"""A run in the archive, read from the small records in its folder; no mlx, no YAML."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forty2.errors import RunError, first_line
from forty2.files import JsonObject, read_json
from forty2.report.json_records import DAMAGE, visible
from forty2.report.records import TIMES, stage_times
from forty2.run_paths import phase_label
from forty2.runs.archive.notes import NOTES, Note, read_notes

STATES = ("finished", "stopped", "running", "failed", "damaged")
FAILED = "failed.json"
"""Record of the error that ended a run."""
_TOP_KEY = re.compile(r"(\w+):(.*)")
_PHASE = re.compile(r"  '?([\w.-]+)'?:\s*")
_OBJECTIVE = re.compile(r"    objective: (\w+)")
_OWNER = re.compile(r"process (\d+) ")
_TIMED = ("phase*/phase.json", "benchmarks/*.json", "summary.json", "fused.json", "metrics.jsonl")
"""Files whose newest is a run's last result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One run of the archive."""

    path: str
    """Absolute path of the run folder."""
    name: str
    """The recipe's name."""
    state: str
    """One of `STATES`."""
    started: str = ""
    """Time in UTC, ISO 8601; empty: the record is damaged."""
    model: str = ""
    model_path: str = ""
    """Absolute path of the base model's folder."""
    init_from: str | None = None
    """Folder of the adapter that the run went on from."""
    phases: dict[str, str] = dataclasses.field(default_factory=dict)
    """Objective of each phase of the recipe, by name, in order."""
    finished_phases: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Figures of the last measured stage, of the last phase's validation rows (`valid_…`), and
    `minutes` at work, over all starts."""
    base_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Figures of the base model."""
    verdict: str = ""
    size: int = 0
    """Bytes of all files in the folder."""
    fused: list[str] = dataclasses.field(default_factory=list)
    """Absolute paths of the fused model and its quantized copy, whether or not they still exist."""
    notes: list[Note] = dataclasses.field(default_factory=list)
    tags: list[str] = dataclasses.field(default_factory=list)
    problem: str | None = None
    """The error that ended the run, or the record that cannot be read."""

    def to_json(self) -> JsonObject:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: JsonObject) -> Entry:
        """Read what `to_json` made."""
        notes = [Note(**note) for note in record["notes"]]
        return cls(**{**record, "notes": notes})


def read_entry(folder: Path, size: int) -> Entry:
    """Read a run's records, other than whether it is running.

    A record that cannot be read makes the state `damaged`, and `problem` names it.

    Args:
        folder: a folder with run.json; absolute.
        size: bytes of its files.
    """
    facts: dict[str, Any] = {"name": folder.name}
    problem = None
    for part in (_provenance, _training, _outcome, _remarks):
        try:
            facts |= part(folder)
        except DAMAGE as error:
            problem = problem or _problem(folder, error)
    complete, failure = facts.pop("complete", False), facts.pop("failure", None)
    metrics = {**facts.pop("valid", {}), **facts.pop("minutes", {}), **facts.pop("measured", {})}
    state = "finished" if complete else "failed" if failure else "stopped"
    if problem is not None:
        state = "damaged"
    return Entry(
        path=str(folder),
        size=size,
        state=state,
        problem=problem or (failure if state == "failed" else None),
        metrics=metrics,
        **facts,
    )


def is_running(folder: Path) -> bool:
    """Return whether a process holds the run's lock.

    The lock is tried only if the process that it names is alive, so that a look at a folder never
    gets in the way of a run that is about to open it.
    """
    file = folder / "run.lock"
    try:
        found = _OWNER.match(file.read_text("utf-8")) if file.is_file() else None
        if found is None or not _is_alive(int(found[1])):
            return False
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return False
    return False


def absolute(path: str, folder: Path) -> str:
    """Return a recorded path as an absolute one: runs record some relative to where they ran.

    A run is usually in adapters/NAME of that folder, so the parents of the run folder are tried.
    """
    if not path or os.path.isabs(path):
        return path
    places = (Path(os.path.normpath(parent / path)) for parent in (*folder.parents[:3], Path.cwd()))
    fallback = os.path.normpath(Path.cwd() / path)
    return str(next((place for place in places if place.exists()), fallback))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _problem(folder: Path, error: BaseException) -> str:
    """Say on one line which record is damaged."""
    if isinstance(error, RunError):
        return str(visible(first_line(error)))
    return str(visible(f"{folder}: a record is damaged, or of another release ({error!r})"))


# --- the records ----------------------------------------------------------------------------------


def _object(path: Path) -> JsonObject:
    value = visible(read_json(_file(path)))
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds no JSON object")
    return value


def _file(path: Path) -> Path:
    """Refuse a pipe or device in a record's place: reading one might never end."""
    if path.exists() and not path.is_file():
        raise RunError(f"{path}: is not a file")
    return path


def _provenance(folder: Path) -> JsonObject:
    record = _object(folder / "run.json")
    started = datetime.fromisoformat(str(record["started"]))
    initial = record.get("init_from")
    return {
        "name": str(record["name"]),
        "started": started.replace(tzinfo=started.tzinfo or UTC).isoformat(),
        "model": str(record["model"]),
        "model_path": absolute(str(record.get("model_path") or ""), folder),
        "init_from": None if initial is None else absolute(str(initial), folder),
    }


def _training(folder: Path) -> JsonObject:
    """Read the phases, and whether everything that the recipe asks for is done."""
    recipe = _sections(_file(folder / "recipe.yaml").read_text("utf-8"))
    phases = _phases(recipe.get("phases", []))
    done = [
        label
        for place, name in enumerate(phases, 1)
        if (folder / (label := phase_label(place, name)) / "phase.json").exists()
    ]
    stages: list[str] = []
    summary = folder / "summary.json"
    if summary.exists():
        stages = [str(stage["stage"]) for stage in _object(summary).get("stages") or []]
    measured = not _is_measured(folder, recipe) or bool({"fused", *done[-1:]} & {*stages})
    fused = not _is_set(recipe, "fuse") or (folder / "fused.json").exists()
    valid: dict[str, float] = {}
    if done:
        last = _object(folder / done[-1] / "phase.json")
        valid = {f"valid_{key}": value for key, value in _numbers(last.get("valid") or {})}
    return {
        "phases": phases,
        "finished_phases": len(done),
        "complete": bool(phases) and len(done) == len(phases) and measured and fused,
        "valid": valid,
        "minutes": _minutes(folder),
    }


def _outcome(folder: Path) -> JsonObject:
    """Read the measurements, the fused models and the error that ended the run."""
    facts: JsonObject = {}
    if (folder / "summary.json").exists():
        summary = _object(folder / "summary.json")
        stages = summary.get("stages") or []
        facts["verdict"] = str(summary.get("verdict") or "")
        if stages:
            facts |= {
                "base_metrics": dict(_numbers(stages[0])),
                "measured": dict(_numbers(stages[-1])),
            }
    if (folder / "fused.json").exists():
        record = _object(folder / "fused.json")
        copies = [record["path"], (record.get("quantised") or {}).get("path")]
        facts["fused"] = [absolute(str(path), folder) for path in copies if path]
    if (folder / FAILED).exists():
        facts["failure"] = str(_object(folder / FAILED)["error"])
    return facts


def _remarks(folder: Path) -> JsonObject:
    found = read_notes(_file(folder / NOTES).parent)
    return {"notes": found.notes, "tags": found.tags}


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the figures of a record and of the mappings in it, e.g. scores by task."""
    for key, value in record.items():
        if isinstance(value, Mapping) and key != "stderr":
            yield from _numbers({k: v for k, v in value.items() if not isinstance(v, Mapping)})
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)


def _minutes(folder: Path) -> dict[str, float]:
    """Return the minutes at work, over all starts; nothing without a result.

    Runs of earlier releases recorded no times of their stages: theirs are from the start to the newest
    result.
    """
    started = datetime.fromisoformat(str(_object(folder / "run.json")["started"]))
    times = [path.stat().st_mtime for kind in _TIMED for path in folder.glob(kind)]
    if not times:
        return {}
    worked = stage_times(_file(folder / TIMES))
    if worked:
        return {"minutes": sum(one.seconds for one in worked) / 60}
    begun = started.replace(tzinfo=started.tzinfo or UTC).timestamp()
    return {"minutes": max(0.0, max(times) - begun) / 60}


# --- the stored recipe ----------------------------------------------------------------------------


def _sections(text: str) -> dict[str, list[str]]:
    """Split a recipe, as runs store it, into the lines of its top keys; the first is the key's own.

    A YAML parser would take longer than everything else that a listing reads.
    """
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if found := _TOP_KEY.match(line):
            lines = sections[found[1]] = [found[2].strip()]
        else:
            lines.append(line)
    return sections


def _is_set(recipe: Mapping[str, list[str]], key: str) -> bool:
    """Return whether a section is there and not null."""
    return bool(recipe.get(key)) and recipe[key][0] not in ("null", "~", "none")


def _is_measured(folder: Path, recipe: Mapping[str, list[str]]) -> bool:
    """Return whether a run has anything measured; with `benchmark: null`, whether its base was."""
    if not _is_set(recipe, "benchmark"):
        return (folder / "benchmarks").exists()
    return not {"  tasks: []", "  held_out: false"} <= {*recipe["benchmark"]}


def _phases(lines: list[str]) -> dict[str, str]:
    phases: dict[str, str] = {}
    name = ""
    for line in lines:
        if found := _PHASE.fullmatch(line):
            name = found[1]
            phases[name] = ""
        elif found := _OBJECTIVE.match(line):
            phases[name] = found[1]
    return phases
