"""Built-in data sets: seeded, split before anything is weighted, and honest about their counts.

spark-sft     377 isotopes and a validation set        spark-sft-full     the whole library
spark-dpo     126 pairs: leaks, myths, activation      spark-dpo-full     every pair it composes
spark-boost   95 pairs: invented things, anachronisms  spark-boost-full   every pair it composes
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from forty2.data.build import spark
from forty2.data.sources import dumps
from forty2.errors import DataError
from forty2.rundir import staged, write_json, write_text

Rows = Sequence[Mapping[str, Any]]


class DataSet(NamedTuple):
    """Rows to train on, rows to validate on, and how they came about."""

    name: str
    seed: int
    asked: int | None
    """Training rows asked for; None is all there are."""
    train: Rows
    valid: Rows


_BUILDERS: dict[str, tuple[Callable[[int, int | None], spark.Split], int]] = {
    "spark-sft": (spark.sft, 377),
    "spark-dpo": (spark.dpo, 126),
    "spark-boost": (spark.boost, 95),
}
NAMES = [name for base in _BUILDERS for name in (base, f"{base}-full")]


def build(name: str, *, seed: int = 42, size: int | None = None) -> DataSet:
    """Build a set. The same name, seed and size give the same rows everywhere.

    Args:
        size: training rows; default: the published count, or all for a `-full` set.

    Raises:
        DataError: no such set, or it cannot give so many rows.
    """
    base = name.removesuffix("-full")
    if base not in _BUILDERS:
        raise DataError(f"no built-in data set {name!r}; there are {', '.join(NAMES)}")
    builder, published = _BUILDERS[base]
    if size is None and name == base:
        size = published
    split = builder(seed, size)
    if size is not None and len(split.train) < size:
        raise DataError(f"{name}: asked for {size} rows, the library composes {len(split.train)}")
    # A sized set validates on a ninth of its size, as published: 377/42, 126/14, 95/11.
    valid = split.valid if size is None else split.valid[: max(1, round(size / 9))]
    return DataSet(name, seed, size, split.train, valid)


def write_set(data: DataSet, folder: Path) -> None:
    """Write train.jsonl, valid.jsonl and manifest.json, all or nothing."""
    files = {"train.jsonl": dumps(data.train), "valid.jsonl": dumps(data.valid)}
    with staged(folder) as aside:
        for name, text in files.items():
            write_text(aside / name, text)
        write_json(aside / "manifest.json", manifest(data, files))


def manifest(data: DataSet, files: Mapping[str, str]) -> dict[str, Any]:
    """What a set holds and where it came from."""
    return {
        "name": data.name,
        "command": f"forty2 data build {data.name} --seed {data.seed}"
        + (f" --size {data.asked}" if data.asked is not None else ""),
        "seed": data.seed,
        "forty2": importlib.metadata.version("forty2"),
        "asked": data.asked,
        "written": {"train": len(data.train), "valid": len(data.valid)},
        "kinds": dict(sorted(Counter(map(_kind, data.train)).items())),
        "mean_words": _lengths(data.train),
        "sha256": {n: hashlib.sha256(text.encode()).hexdigest() for n, text in files.items()},
    }


def _kind(row: Mapping[str, Any]) -> str:
    return str(row.get("pair_type") or row.get("element"))


def _lengths(rows: Rows) -> dict[str, Any]:
    """Mean words of what is learned, per kind: both sides of pairs, for length to be no shortcut."""
    result: dict[str, Any] = {}
    for kind in sorted({_kind(row) for row in rows}):
        own = [row for row in rows if _kind(row) == kind]
        if "chosen" in own[0]:
            result[kind] = {
                side: round(fmean(len(row[side].split()) for row in own), 1)
                for side in ("chosen", "rejected")
            }
        else:
            answers = [
                m["content"] for row in own for m in row["messages"] if m["role"] == "assistant"
            ]
            result[kind] = round(fmean(len(answer.split()) for answer in answers), 1)
    return result
