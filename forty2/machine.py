"""This machine: its cache folder, device, memory and software versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path

from forty2 import blas


def cache_dir() -> Path:
    """Return the folder for downloads and derived files: `FORTY2_CACHE`, else `~/.cache/forty2`."""
    return Path(os.environ.get("FORTY2_CACHE") or Path.home() / ".cache" / "forty2")


def on_gpu() -> bool:
    """Return whether mlx computes on a GPU."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu


def memory_bytes() -> int:
    """Return the physical memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def facts() -> dict[str, str]:
    """Describe device, BLAS, system, versions and revision, for run records and reports."""
    import mlx.core as mx

    device = mx.default_device()
    if device.type == mx.DeviceType.gpu:
        name = str(mx.device_info().get("device_name", "GPU"))
    else:
        name = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    return {
        "device": f"{device.type.name} ({name})",
        "blas": blas.load().name if device.type == mx.DeviceType.cpu else "not used (GPU)",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("forty2", "mlx", "mlx-lm", "numpy", "transformers")},
        "revision": package_revision(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def package_revision() -> str:
    """Return the git commit that the package runs from.

    Returns:
        The commit's hash, with "-dirty" if files of the package were changed or added since;
        "installed from wheel" outside a checkout; "unknown" if git cannot tell.
    """
    package = Path(__file__).parent
    if not (package.parent / ".git").exists():
        return "installed from wheel"
    # This starts one git process. Reading .git/HEAD would start none, but cannot tell whether the
    # code differs from the commit, and a record that names the wrong code is worse than none.
    import subprocess

    status = ["status", "--porcelain=v2", "--branch", "--untracked-files=normal", "--", "."]
    try:
        done = subprocess.run(
            # Take no lock, so as not to disturb a git command of the user, and start no program
            # that the repository's configuration names.
            ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *status],
            cwd=package,
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"
    commit, changed = "unknown", False
    for line in done.stdout.splitlines():
        if line.startswith("# branch.oid "):
            commit = line.removeprefix("# branch.oid ")
        elif not line.startswith("#"):
            changed = True
    return f"{commit}-dirty" if changed else commit
