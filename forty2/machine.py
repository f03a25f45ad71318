"""This machine: its device, memory and software versions, and a fast BLAS for mlx on it.

mlx's CPU wheel for Linux links the reference BLAS, whose fp32 matrix products are 50 times slower
than OpenBLAS's. Symbols already in the global namespace win over those of a library loaded later,
so loading OpenBLAS globally *before* mlx is imported is enough to replace it.
`forty2/__init__.py` does so for every user of the package.

This module imports nothing of the package: `forty2.speed` loads it by its path in environments
that lack forty2, so that every trainer there runs on the same BLAS.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

_blas = "Accelerate" if sys.platform == "darwin" else "reference BLAS of mlx (slow)"


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
        "blas": blas() if device.type == mx.DeviceType.cpu else "not used (GPU)",
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


# --- BLAS -----------------------------------------------------------------------------------------


def blas() -> str:
    """Name the BLAS that mlx's CPU matrix products run on."""
    return _blas


def load_fast_blas() -> None:
    """Load OpenBLAS globally, before mlx binds its own; on other systems than Linux, do nothing.

    Looks for the library of the `cmeel-openblas` package, then for the system's (Debian:
    libopenblas0, which suits any processor). If neither is there, everything still works, slowly,
    and `forty2 model info` says so.
    """
    global _blas
    if sys.platform != "linux":
        return
    if "mlx.core" in sys.modules:
        _blas = "reference BLAS of mlx (slow; import forty2 before mlx for a fast one)"
        return
    for library in (_packaged_openblas(), "libopenblas.so.0"):
        try:
            if library is not None:
                _load_globally(library)
                _blas = f"OpenBLAS ({Path(library).name})"
                return
        except OSError:
            continue


def _packaged_openblas() -> str | None:
    """Return the path of the `cmeel-openblas` package's library; None if it cannot run here."""
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        return None  # it is built for processors that have AVX-512; others would end with SIGILL
    spec = importlib.util.find_spec("cmeel")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parents[1] / "cmeel.prefix" / "lib" / "libopenblas.so.0"
    return str(library) if library.exists() else None


def _load_globally(library: str) -> None:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        if "libgfortran.so.5" not in str(error):
            raise
        _load_fortran_runtime()
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)


def _load_fortran_runtime() -> None:
    """Load the Fortran runtime that mlx's wheel bundles, under the name that OpenBLAS asks for.

    OpenBLAS needs `libgfortran.so.5`, which a bare Linux lacks. The wheel's copy has a mangled name
    inside, and the loader matches names, so a copy with the plain name goes to the cache.

    Raises:
        OSError: mlx brings no Fortran runtime, or the copy cannot be written.
    """
    spec = importlib.util.find_spec("mlx")
    if spec is None or not spec.submodule_search_locations:
        raise OSError("mlx is not installed")
    # mlx is a namespace package: a folder named mlx beside the script would be among its locations.
    folders = [
        Path(location).parent / "mlx_cpu.libs" for location in spec.submodule_search_locations
    ]
    source = next((file for folder in folders for file in folder.glob("libgfortran-*.so*")), None)
    if source is None:
        raise OSError("mlx's wheel brings no Fortran runtime")
    copy = cache_dir() / "lib" / source.stem / "libgfortran.so.5"
    if not copy.exists():
        mangled, plain = source.name.encode() + b"\0", b"libgfortran.so.5\0"
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Not by forty2.files, which this module may not import. A copy cut short by a power cut
        # does not load, and the next library in line is taken.
        unfinished = copy.with_name(f"{copy.name}.{os.getpid()}")
        unfinished.write_bytes(
            source.read_bytes().replace(mangled, plain.ljust(len(mangled), b"\0"))
        )
        unfinished.replace(copy)
    for quadmath in source.parent.glob("libquadmath-*.so*"):
        ctypes.CDLL(str(quadmath))
    ctypes.CDLL(str(copy))
