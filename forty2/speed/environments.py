"""Environments of the other trainers, one each, made on first use from the Python package index."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forty2 import machine
from forty2.errors import BenchmarkError, first_line
from forty2.progress import Progress
from forty2.speed.workers.__main__ import Job, Measurement

WORKERS = Path(__file__).parent / "workers"
MLX_LM = "mlx-lm==0.32.2"


@dataclass(frozen=True)
class Peer:
    """Another trainer: the packages to install along with the mlx that runs ours."""

    package: str
    companions: tuple[str, ...] = (MLX_LM,)
    """Packages that its worker needs besides the trainer's own dependencies."""
    linux_dependencies: tuple[str, ...] | None = None
    """Dependencies to install on Linux instead of the package's own, which include CUDA; None: its
    own."""


PEERS = {
    "mlx-lm": Peer(MLX_LM, ("lm_eval==0.4.13",)),
    "mlx-lm-lora": Peer("mlx-lm-lora==5.10.2"),
    "mlx-optiq": Peer("mlx-optiq==0.7.7"),
    "unsloth": Peer(
        "unsloth_zoo==2026.10.9",
        linux_dependencies=("transformers<=5.17", "datasets<5", "psutil", "packaging", "pillow"),
    ),
}


def peer_python(name: str, progress: Progress) -> str:
    """Return the path of the interpreter in a trainer's environment; make it if it is missing.

    Raises:
        BenchmarkError: it could not be made.
    """
    pip_calls = _pip_calls(PEERS[name])
    short = hashlib.sha256(json.dumps(pip_calls).encode()).hexdigest()[:8]
    folder = machine.cache_dir() / "bench" / f"{name}-{short}"
    complete = folder / "done"
    if not complete.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
            if not complete.exists():
                stage = f"installing {PEERS[name].package} into {folder}"
                progress(stage, 0, 1, {})
                _make_environment(folder, name, pip_calls)
                complete.touch()
                progress(stage, 1, 1, {})
    return str(_python(folder))


def measure(python: str, worker: str, job: Job) -> Measurement:
    """Run a worker in a process of its own, on one thread.

    Args:
        python: path of the interpreter.
        worker: name of the worker's module.

    Raises:
        BenchmarkError: it failed.
    """
    # Our worker finds forty2 as this process did; other trainers must see only their own packages.
    environment = dict(os.environ) if python == sys.executable else _without_python_path()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        job.write(path)
        done = subprocess.run(
            [python, str(WORKERS), worker, str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        )
    if done.returncode:
        raise BenchmarkError(f"{worker} failed: {_last_error(done)}")
    return Measurement.from_json(done.stdout.strip().splitlines()[-1])


def _pip_calls(peer: Peer) -> list[list[str]]:
    """List the arguments of each call of pip."""
    if sys.platform == "darwin" or peer.linux_dependencies is None:
        return [[*_installed_mlx(), peer.package, *peer.companions]]
    return [
        [*_installed_mlx(), *peer.companions, *peer.linux_dependencies],
        ["--no-deps", peer.package],
    ]


def _installed_mlx() -> list[str]:
    """List pip's requirements for the mlx and the OpenBLAS that are installed here."""
    versions = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    if sys.platform == "darwin":
        return [f"mlx=={versions['mlx']}"]
    cuda = [f"cuda{release}" for release in (13, 12) if f"mlx-cuda-{release}" in versions]
    blas = [f"{name}=={versions[name]}" for name in versions if name == "scipy-openblas32"]
    return [f"mlx[{(cuda or ['cpu'])[0]}]=={versions['mlx']}", *blas]


def _make_environment(folder: Path, name: str, pip_calls: Sequence[Sequence[str]]) -> None:
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(
            f"{name}: no virtual environment can be made in {folder}: {first_line(error)}; on "
            "Debian: apt install python3-venv"
        ) from error
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in pip_calls:
        done = subprocess.run(
            [str(_python(folder)), *pip, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=_without_python_path(),
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(
                f"{name}: pip could not install {arguments[-1]}: {_last_error(done)}; check the "
                "network"
            )


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _without_python_path() -> dict[str, str]:
    """Return the environment variables without PYTHONPATH, which adds packages of this process."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _last_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a process failed: its first line that begins with ERROR, else its last line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    return errors[0][:300] if errors else f"exit code {done.returncode}, without a message"
