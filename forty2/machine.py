"""What this machine is, and a fast BLAS for mlx on it.

mlx's CPU wheel for Linux links the reference BLAS, on which fp32 matrix products run 50 times
slower than the machine can. Symbols already in the global namespace win over those of a library
loaded later, so loading OpenBLAS globally *before* mlx is imported is enough to replace it.
`forty2/__init__.py` does so for every user of the package.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

_blas = "Accelerate" if sys.platform == "darwin" else "reference BLAS of mlx (slow)"


def cache_dir() -> Path:
    """Where downloads and derived files live: `FORTY2_CACHE`, else `~/.cache/forty2`."""
    return Path(os.environ.get("FORTY2_CACHE") or Path.home() / ".cache" / "forty2")


def blas() -> str:
    """The BLAS that mlx's CPU matrix products run on."""
    return _blas


def load_fast_blas() -> None:
    """Load OpenBLAS globally, before mlx binds its own. Does nothing off Linux.

    Looks for the library of the `cmeel-openblas` package, then for the system's
    (Debian: libopenblas0, which suits any processor). Finding neither
    is no error: everything works, slowly, and `forty2 model info` says so.
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
                _load_global(library)
                _blas = f"OpenBLAS ({Path(library).name})"
                return
        except OSError:
            continue


def facts() -> dict[str, str]:
    """Device, BLAS and versions, for `forty2 model info`, run records and reports."""
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
    }


def on_gpu() -> bool:
    """Whether mlx computes on a GPU."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu


def memory_bytes() -> int:
    """Physical memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _packaged_openblas() -> str | None:
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        return None  # the package is built for processors that have it, and kills others
    spec = importlib.util.find_spec("cmeel")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parents[1] / "cmeel.prefix" / "lib" / "libopenblas.so.0"
    return str(library) if library.exists() else None


def _load_global(library: str) -> None:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        if "libgfortran.so.5" not in str(error):
            raise
        _lend_gfortran()
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)


def _lend_gfortran() -> None:
    """Load the Fortran runtime that mlx's wheel bundles, under the name OpenBLAS asks for.

    OpenBLAS needs `libgfortran.so.5`, which a bare Linux lacks. The wheel's copy has a mangled
    name inside, and the loader matches names, so a copy with the plain name goes to the cache.
    """
    spec = importlib.util.find_spec("mlx")
    if spec is None or not spec.submodule_search_locations:
        raise OSError("mlx is not installed")
    # mlx is a namespace package: a folder named mlx beside the script would be among its locations.
    libraries = [
        Path(location).parent / "mlx_cpu.libs" for location in spec.submodule_search_locations
    ]
    source = next((file for folder in libraries for file in folder.glob("libgfortran-*.so*")), None)
    if source is None:
        raise OSError("mlx's wheel brings no Fortran runtime")
    lent = cache_dir() / "lib" / source.stem / "libgfortran.so.5"
    if not lent.exists():
        mangled, plain = source.name.encode() + b"\0", b"libgfortran.so.5\0"
        lent.parent.mkdir(parents=True, exist_ok=True)
        aside = lent.with_name(f"{lent.name}.{os.getpid()}")
        aside.write_bytes(source.read_bytes().replace(mangled, plain.ljust(len(mangled), b"\0")))
        aside.replace(lent)
    for quadmath in source.parent.glob("libquadmath-*.so*"):
        ctypes.CDLL(str(quadmath))
    ctypes.CDLL(str(lent))
