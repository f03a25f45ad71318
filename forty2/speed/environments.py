"""The peers' environments: each its own, made on first use from the Python package index."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forty2 import machine
from forty2.errors import BenchmarkError
from forty2.speed.workers.__main__ import Job

WORKERS = Path(__file__).parent / "workers"
MLX_LM = "mlx-lm==0.32.2"


class Peer(NamedTuple):
    """What is installed for a peer, beside the mlx that runs ours."""

    package: str
    along: tuple[str, ...] = (MLX_LM,)
    off_mac: tuple[str, ...] | None = None
    """Of a peer that asks for CUDA's packages on Linux: what it really needs there."""


PEERS = {
    "mlx-lm": Peer(MLX_LM, ("lm_eval==0.4.13",)),
    "mlx-lm-lora": Peer("mlx-lm-lora==5.10.2"),
    "mlx-optiq": Peer("mlx-optiq==0.7.7"),
    "unsloth": Peer(
        "unsloth_zoo==2026.10.9",
        off_mac=("transformers<=5.17", "datasets<5", "psutil", "packaging", "pillow"),
    ),
}


def python_of(name: str, say: Callable[[str], None]) -> str:
    """The interpreter of a peer's environment.

    Raises:
        BenchmarkError: it could not be made.
    """
    installs = _installs(PEERS[name])
    short = hashlib.sha256(json.dumps(installs).encode()).hexdigest()[:8]
    folder = machine.cache_dir() / "bench" / f"{name}-{short}"
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
            if not done.exists():
                say(f"{PEERS[name].package}: downloading into {folder}, once")
                _make(folder, python, name, installs)
                done.touch()
    return str(python)


def measure(python: str, worker: str, job: Job) -> dict[str, Any]:
    """One measurement in a process of its own, on one thread: what the worker prints.

    Raises:
        BenchmarkError: it failed.
    """
    # Ours finds forty2 as this process did; a peer must see no packages but its own.
    outside = os.environ if python == sys.executable else _outside()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(dataclasses.asdict(job)))
        done = subprocess.run(
            [python, str(WORKERS), worker, str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**outside, "OPENBLAS_NUM_THREADS": "1"},
        )
    if done.returncode:
        raise BenchmarkError(f"{worker} failed: {_reason(done.stderr, done.returncode)}")
    printed: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return printed


def _installs(peer: Peer) -> list[list[str]]:
    """What pip is given, call by call."""
    if sys.platform == "darwin" or peer.off_mac is None:
        return [[*_mlx(), peer.package, *peer.along]]
    return [[*_mlx(), *peer.along, *peer.off_mac], ["--no-deps", peer.package]]


def _mlx() -> list[str]:
    """The mlx that is installed here, and the BLAS that it is given."""
    here = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    if sys.platform == "darwin":
        return [f"mlx=={here['mlx']}"]
    cuda = [f"cuda{release}" for release in (13, 12) if f"mlx-cuda-{release}" in here]
    blas = [f"{name}=={here[name]}" for name in here if name == "cmeel-openblas"]
    return [f"mlx[{(cuda or ['cpu'])[0]}]=={here['mlx']}", *blas]


def _make(folder: Path, python: Path, name: str, installs: Sequence[Sequence[str]]) -> None:
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(
            f"{name}: no virtual environment can be made in {folder}: {error}; on Debian: "
            "apt install python3-venv"
        ) from error
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in installs:
        done = subprocess.run(
            [*pip, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=_outside(),
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(
                f"{name}: pip could not install {arguments[-1]}: "
                f"{_reason(done.stderr, done.returncode)}; check the network"
            )


def _outside() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _reason(stderr: str, code: int) -> str:
    """What went wrong, from a program's last words."""
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    error = next((line for line in said if line.startswith("ERROR")), (said or [""])[-1])
    return error[:300] or f"it ended with {code} and said nothing"
