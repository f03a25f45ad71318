"""Checks of the places that `forty2 data` writes to, and its messages about written sets."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from forty2.cli.echo import echo
from forty2.errors import DataError
from forty2.files import JsonObject


def check_folder(folder: Path, *sources: str) -> None:
    """Refuse a folder that is read from, or that holds something else than an older data set."""
    _refuse_read(folder, sources)
    if folder.exists() and not (folder / "manifest.json").exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: exists and is not a data set of forty2; name another --output-dir"
        )


def check_file(file: Path, *sources: str) -> None:
    """Refuse a file that is read from, was not written by forty2, or would not be read as rows."""
    from forty2.data.sets import SUFFIXES, is_ours, manifest_of

    _refuse_read(file, sources)
    for source in sources:
        if _same(file.parent, os.path.expanduser(source)):  # a folder's files are its rows
            raise DataError(f"{file}: lies in {source}, which is read; write to another folder")
    if file.suffix not in SUFFIXES:
        ends = " or ".join(SUFFIXES)
        raise DataError(f"{file}: the output is JSON Lines; name a file that ends in {ends}")
    for there in (file, manifest_of(file)):
        if os.path.lexists(there) and not is_ours(file):
            raise DataError(
                f"{there}: exists and was not written by forty2; write to another file, "
                "or remove this one"
            )


def echo_written(path: Path, manifest: JsonObject) -> None:
    """Print a summary of a manifest: rows by split, and the findings of the lint."""
    names = {"train": "training", "valid": "validation"}
    written = " and ".join(
        f"{n:,} {names[name]} rows" if name in names else f"{n:,} rows"
        for name, n in manifest["written"].items()
    )
    echo(f"{path}: {written}")
    findings: Mapping[str, Mapping[str, int]] = manifest["lint"]
    for level, found in findings.items():
        if found:
            counts = ", ".join(f"{check} {n:,}" for check, n in found.items())
            echo(f"  lint {level}s: {counts} (forty2 data lint {path})")


def typed_command() -> str:
    """Return the command as it was typed, for the manifest."""
    return shlex.join(["forty2", *sys.argv[1:]])


def _refuse_read(path: Path, sources: Sequence[str]) -> None:
    """Refuse to write over a source, or over a folder that holds one."""
    for source in sources:
        read = Path(os.path.expanduser(source))
        if os.path.exists(read) and any(_same(path, p) for p in (read, *read.resolve().parents)):
            raise DataError(f"{path}: {source} is read from there; write to another place")


def _same(a: str | Path, b: str | Path) -> bool:
    """Return whether two paths lead to the same file or folder, even by a link or in another case."""
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)
