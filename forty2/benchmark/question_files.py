"""Reading of question files, after a check of their size."""

from __future__ import annotations

import os
from pathlib import Path

from forty2.errors import BenchmarkError

_MAX_BYTES = 10_000_000
"""Largest question file; TruthfulQA's is a tenth of it."""
DATA = "FORTY2_BENCH_DATA"
"""Environment variable with the folder in which each benchmark's questions are a folder of its name."""


def read_question_file(path: Path) -> bytes:
    """Read a whole file of questions.

    Raises:
        BenchmarkError: it cannot be read, or is too large to hold questions.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BenchmarkError(
                f"{path}: is no file but a pipe or a device; save it to a file first"
            )
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise BenchmarkError(
                f"{path}: {path.stat().st_size:,} bytes are too many for a file of questions (limit "
                f"{_MAX_BYTES:,}); give the benchmark's own"
            )
        return path.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read: {error.strerror}") from error


def named_questions(name: str) -> Path | None:
    """Return the folder of a benchmark's questions in `FORTY2_BENCH_DATA`; None: there is none."""
    folder = os.environ.get(DATA)
    place = Path(os.path.expanduser(folder)) / name if folder else None
    return place if place is not None and place.exists() else None
