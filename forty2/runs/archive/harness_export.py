"""Results written as lm-evaluation-harness writes them, for the tools that read its output."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from forty2.benchmark.harness_form import forms_of, lines_of, results_of
from forty2.benchmark.harness_samples import HarnessSamples
from forty2.benchmark.results import Result, Stage, as_measured
from forty2.errors import BenchmarkError, RunError
from forty2.files import staged_folder, write_json, write_text

_UNSAFE = re.compile(r"[^\w.-]+")
"""Characters that a folder's name should not have."""


def export_results(source: Path, out: Path) -> dict[Path, tuple[str, ...]]:
    """Write a result, or every measured stage of a run, as the harness's samples and results.

    Args:
        source: run folder, or JSON file of a result or stage.
        out: folder to write, one folder a stage in it; it must not exist.

    Returns:
        The names of the tasks, by the folder that holds them.

    Raises:
        BenchmarkError: there is nothing measured, or a file is damaged.
        RunError: `out` exists, or cannot be written.
    """
    if out.exists():
        raise RunError(f"{out}: exists already; name another `out`")
    measured = {
        _UNSAFE.sub("_", name): (_read(file), _date(file)) for name, file in _files(source).items()
    }
    tasks = {}
    with staged_folder(out) as unfinished:
        for name, (found, date) in measured.items():
            (unfinished / name).mkdir()
            tasks[out / name] = _write(unfinished / name, found, date, name)
    return tasks


def _files(source: Path) -> Mapping[str, Path]:
    """Return the files of results by the name of their folder."""
    if not source.is_dir():
        return {source.stem: source}
    files = sorted((source / "benchmarks").glob("*.json"))
    if not files:
        raise BenchmarkError(f"{source}: measured nothing: it holds no benchmarks/STAGE.json")
    return {file.stem: file for file in files}


def _read(file: Path) -> Result | Stage:
    found = as_measured(file, str(file))
    if isinstance(found, HarnessSamples):
        raise BenchmarkError(
            f"{file}: was not measured by forty2; give a run, or a result of forty2 benchmark"
        )
    return found


def _date(file: Path) -> str:
    """Return when a result was written, as the harness's file names have it."""
    moment = datetime.fromtimestamp(file.stat().st_mtime, UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="microseconds").replace(":", "-")


def _write(folder: Path, measured: Result | Stage, date: str, name: str) -> tuple[str, ...]:
    forms = forms_of(measured)
    for task, form in forms.items():
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines_of(form))
        write_text(folder / f"samples_{task}_{date}.jsonl", "".join(lines))
    write_json(folder / f"results_{date}.json", results_of(measured, forms, name))
    return tuple(forms)
