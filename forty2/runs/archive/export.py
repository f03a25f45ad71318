"""A run as one zip file for a colleague: no checkpoints, and no path of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from forty2.errors import RunError
from forty2.files import (
    CHECKSUMS,
    atomic_write,
    read_json,
    refuse_links,
    seal,
    write_json,
    write_sealed,
    write_text,
)
from forty2.report.records import read_run
from forty2.report.run import write_report
from forty2.run_paths import finished_phases
from forty2.runs.archive.entry import is_running

Adapters = Literal["last", "all", "none"]
_RECORDS = (
    "recipe.yaml",
    "*.json",
    "metrics.jsonl",
    "times.jsonl",
    "data/*/*",
    "benchmarks/*.json",
)
_MODELS = ("adapters.safetensors", "tags.safetensors", "adapter_config.json", CHECKSUMS)
"""Files of a phase that are its adapter; the others are records."""


def export_run(
    run: Path, out: Path, *, adapters: Adapters = "last", replace: bool = False
) -> list[str]:
    """Write a run's recipe, records, report and adapters into a zip file.

    Paths in them are made relative to the current folder, or cut down to their last part. Whoever
    unpacks the file has a run that `forty2 runs list` shows.

    Args:
        adapters: of the last phase, of all phases, or of none.
        replace: write over an existing file.

    Returns:
        Names of the files in it.

    Raises:
        RunError: the run is under way or damaged, or the file exists or cannot be written.
    """
    if is_running(run):
        raise RunError(f"{run}: is running; export it when it has ended")
    if out.is_dir():
        raise RunError(f"{out}: is a folder; name the zip file to write")
    if out.exists() and not replace:
        raise RunError(f"{out}: exists; name another file, or replace it with `replace=True`")
    refuse_links(run)
    read_run(run)  # a damaged run is refused by its own name
    name = run.resolve().name
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name
        _copy(run, copy, adapters)
        _make_portable(copy, _replacements(run))
        write_report(copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        names = [path.relative_to(copy.parent).as_posix() for path in files]
        with atomic_write(out) as target, zipfile.ZipFile(target, "w") as archive:
            for path, inside in zip(files, names, strict=True):
                weights = path.suffix == ".safetensors"  # numbers hardly get smaller
                kind = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
                archive.write(path, inside, kind)
    return names


def _copy(run: Path, copy: Path, adapters: Adapters) -> None:
    """Copy the files that a colleague needs."""
    phases = [*finished_phases(run)]
    whole = {"last": phases[-1:], "all": phases, "none": []}[adapters]
    files = [path for kind in _RECORDS for path in run.glob(kind)]
    files += [
        path
        for phase in phases
        for path in phase.iterdir()
        if phase in whole or path.name not in _MODELS
    ]
    for path in files:
        if path.is_file() and not path.name.startswith("."):
            target = copy / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            shutil.copystat(path, target)


def _replacements(run: Path) -> list[tuple[str, str]]:
    """Return the paths of this machine that records name, and what to write instead; longest first."""
    here, home = os.getcwd(), str(Path.home())
    named = {str(run.resolve()), here, home}
    recipe = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    for value in (recipe, read_json(run / "run.json"), *_optional(run / "fused.json")):
        named |= {text for text in _strings(value) if os.path.isabs(text) and "\n" not in text}
    found = {}
    for path in named:
        if path == os.sep:
            continue
        inside = os.path.relpath(path, here) if Path(path).is_relative_to(here) else None
        found[path] = inside or Path(path).name
    found[home] = "~" if home not in (here, os.sep) else found.get(home, home)
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


def _optional(file: Path) -> Iterator[Any]:
    if file.exists():
        yield read_json(file)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _make_portable(copy: Path, paths: Sequence[tuple[str, str]]) -> None:
    """Replace this machine's paths in every record of a copy of a run; checksums are made again."""

    def portable(value: Any) -> Any:
        if isinstance(value, str):
            for path, relative in paths:
                value = value.replace(path, relative)
        elif isinstance(value, Mapping):
            return {portable(key): portable(inner) for key, inner in value.items()}
        elif isinstance(value, list):
            return [portable(inner) for inner in value]
        return value

    for file in copy.rglob("*.json"):
        record = read_json(file)
        changed = portable(record)
        if changed == record:
            continue
        with _times_of(file):
            if "sha256" in record and file.parent.name == "benchmarks":
                write_sealed(file, {k: v for k, v in changed.items() if k != "sha256"})
            else:
                write_json(file, changed)
    for file in (*copy.rglob("*.yaml"), *copy.rglob("*.jsonl")):
        with _times_of(file):
            write_text(file, portable(file.read_text("utf-8")))
    for sums in copy.rglob(CHECKSUMS):
        seal(sums.parent)


@contextlib.contextmanager
def _times_of(file: Path) -> Iterator[None]:
    """Keep a file's time: the age of results is read from it."""
    about = file.stat()
    yield
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
