"""A fast BLAS for mlx on Linux.

mlx's CPU wheels for Linux link the reference BLAS, whose fp32 matrix products take about twenty
times as long as OpenBLAS's on one thread. The wheel `scipy-openblas32` holds OpenBLAS, with kernels
for every x86-64 and arm64 processor, but its functions' names begin with `scipy_`. So a copy of
the library without that prefix is made in memory and loaded globally before mlx: names in the
global namespace win over those of libraries loaded later, for BLAS and LAPACK alike.

Each process that imports mlx makes the copy anew, in less than 0.1 s. A copy on disk would save
that time, but it would have to be trusted, shared between processes and users, and renewed.

This module imports nothing of the package: `forty2.speed` loads it by its path in environments
that lack forty2, so that every trainer there runs on the same BLAS.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ctypes
    from mmap import mmap

_PREFIX = b"scipy_"


class Blas(NamedTuple):
    """The BLAS that mlx's matrix products on the CPU run on."""

    name: str
    problem: str | None = None
    """Why no fast one was loaded, and what to do; None if one was."""


def load_before_mlx() -> None:
    """Have the BLAS loaded just before mlx is first imported: what needs no mlx does not pay."""
    if "mlx.core" in sys.modules:
        load()
    else:
        sys.meta_path.insert(0, _BeforeMlx())


class _BeforeMlx:
    """A finder that finds no module. Python asks it before every import."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Load the BLAS if the module to be imported is mlx."""
        if name == "mlx.core":
            load()


@functools.cache
def load() -> Blas:
    """Load OpenBLAS globally; on other systems than Linux, do nothing.

    `OPENBLAS_CORETYPE` and `OPENBLAS_NUM_THREADS` in the environment choose its kernels and its
    number of threads. If it cannot be loaded, everything still works, slowly.
    """
    if sys.platform != "linux":
        return Blas("Accelerate")
    if "mlx.core" in sys.modules:
        return _reference("mlx was imported before forty2; import forty2 first")
    import ctypes

    if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        return Blas("loaded by the user (LD_PRELOAD)")
    try:
        return Blas(_describe(_load_copy(_packaged_library())))
    except ModuleNotFoundError:
        return _reference("scipy-openblas32 is not installed; pip install scipy-openblas32")
    except (
        OSError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        struct.error,
    ) as error:
        return _reference(
            f"scipy-openblas32 could not be loaded ({error}); pip install --force-reinstall "
            "scipy-openblas32"
        )


def _reference(problem: str) -> Blas:
    return Blas("reference BLAS of mlx (slow)", problem)


def slowdown() -> float:
    """Measure how many times as long mlx takes as numpy, for a product of fp32 matrices."""
    import mlx.core as mx
    import numpy as np

    ours = mx.ones((512, 512))
    theirs = np.ones((512, 512), np.float32)
    with mx.stream(mx.cpu):
        return _seconds(lambda: mx.eval(ours @ ours)) / _seconds(lambda: theirs @ theirs)


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of three: the first starts threads and touches new memory."""
    import time

    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


# --- the library and its copy ---------------------------------------------------------------------


def _packaged_library() -> Path:
    """Return the path of the library in the package `scipy-openblas32`.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:  # a folder of that name has no origin
        raise ModuleNotFoundError("scipy_openblas32")
    return Path(spec.origin).parent / "lib" / "libscipy_openblas.so"


def _describe(library: ctypes.CDLL) -> str:
    """Return release and kernels: results of different kernels are rounded differently."""
    import ctypes

    library.openblas_get_config.restype = ctypes.c_char_p
    library.openblas_get_corename.restype = ctypes.c_char_p
    release = library.openblas_get_config().decode().split()[1]
    return f"OpenBLAS {release} ({library.openblas_get_corename().decode()} kernels)"


def _load_copy(library: Path) -> ctypes.CDLL:
    """Load a copy of a library without the prefix, globally.

    Raises:
        OSError, ValueError, LookupError, ArithmeticError, struct.error: it cannot be read, written
            or loaded, or is another kind of file.
    """
    try:
        with _open_in_memory() as (copy, path):
            return _fill_and_load(library, copy, path)
    except OSError:  # some sandboxes allow no such files, or no code in them
        import tempfile

        with tempfile.NamedTemporaryFile() as copy:
            return _fill_and_load(library, copy, copy.name)


@contextlib.contextmanager
def _open_in_memory() -> Iterator[tuple[IO[bytes], str]]:
    """Open a file that is in memory alone, and give its path."""
    import os

    with open(os.memfd_create("libopenblas.so"), "w+b") as file:
        yield file, f"/proc/self/fd/{file.fileno()}"


def _fill_and_load(library: Path, copy: IO[bytes], path: str) -> ctypes.CDLL:
    import ctypes
    import mmap
    import shutil

    with library.open("rb") as source:
        shutil.copyfileobj(source, copy, 1 << 20)
    copy.flush()
    with mmap.mmap(copy.fileno(), 0) as image:
        _strip_prefix(image)
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


class _Section(NamedTuple):
    """A part of a library's file."""

    offset: int
    size: int
    strings: int
    """Number of the section that holds its strings."""


_DYNAMIC, _DYNSYM, _GNU_HASH = 6, 11, 0x6FFFFFF6
"""Types of sections: what the loader reads first, the symbols, and the hash table of their names."""
_SONAME = 14
"""Tag of the entry of `_DYNAMIC` that holds the library's own name."""
_HIDDEN, _PROTECTED = 2, 3
"""Visibility of symbols that others cannot see, and of those that they see and cannot replace."""


def _strip_prefix(image: mmap) -> None:
    """Take the prefix off the names of a library's dynamic symbols, in place; hide the others.

    A name is stored as the place in a table of strings at which it begins, so a later place skips
    the prefix. Source of the formats: System V gABI, chapters 4 and 5, for 64 bits, little-endian.

    Raises:
        ValueError, LookupError, ArithmeticError, struct.error: the file is no such library.
    """
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a library for a 64-bit little-endian machine")
    (start,) = struct.unpack_from("<Q", image, 40)
    (count,) = struct.unpack_from("<H", image, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, start + 64 * i) for i in range(count)]
    sections = {header[1]: _Section(*header[4:7]) for header in headers}
    symbols, table = sections[_DYNSYM], sections[_GNU_HASH].offset
    offset, size = headers[symbols.strings][4:6]
    names = image[offset : offset + size]

    (first,) = struct.unpack_from("<I", image, table + 4)  # those before it are of other libraries
    entries = range(symbols.offset, symbols.offset + symbols.size, 24)[first:]
    _write_hash_table(image, table, [_rename_or_hide(image, entry, names) for entry in entries])

    # Else the copy would be given to whoever needs the library by its own name.
    dynamic = sections[_DYNAMIC]
    for entry in range(dynamic.offset, dynamic.offset + dynamic.size, 16):
        tag, value = struct.unpack_from("<QQ", image, entry)
        if tag == _SONAME:
            struct.pack_into("<Q", image, entry + 8, value + len(b"lib" + _PREFIX))


def _rename_or_hide(image: mmap, entry: int, names: bytes) -> int | None:
    """Take the prefix off a symbol's name; hide the symbol if its name has none.

    Names without the prefix are internals. numpy brings an OpenBLAS of its own, with other integers,
    and would be given those of this one.

    Returns:
        The hash of the new name; None for a hidden symbol.
    """
    place, info = struct.unpack_from("<IB", image, entry)
    if not names.startswith(_PREFIX, place):
        # The type without a binding, which makes it local: the library still finds it itself.
        struct.pack_into("<IBB", image, entry, place, info & 15, _HIDDEN)
        return None
    place += len(_PREFIX)
    struct.pack_into("<IBB", image, entry, place, info, _PROTECTED)
    value = 5381
    for byte in names[place : names.index(0, place)]:
        value = value * 33 + byte & 0xFFFFFFFF
    return value


def _write_hash_table(image: mmap, table: int, hashes: list[int | None]) -> None:
    """Replace the hash table by which the loader finds names, in the format of `.gnu.hash`.

    It has a single bucket: buckets hold neighbouring symbols, so more would need the symbols in
    another order. A lookup reads the bucket only if the Bloom filter before it lets the name pass.
    """
    _, first, words, shift = struct.unpack_from("<4I", image, table)
    bloom = [0] * words
    for value in hashes:
        if value is not None:
            bloom[value // 64 % words] |= 1 << value % 64 | 1 << (value >> shift) % 64
    chain = [(value or 0) & ~1 for value in hashes]
    chain[-1] |= 1  # ends the bucket
    struct.pack_into(
        f"<4I{words}QI{len(chain)}I", image, table, 1, first, words, shift, *bloom, first, *chain
    )
