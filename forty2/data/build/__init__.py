"""Built-in data sets: seeded, split before anything is weighted, with exact counts.

spark-sft           377 isotopes and a validation set        -full: the whole library
spark-sft-plain-0   the same with no plain answers, not 5%
spark-sft-plain-12  the same with 12%
spark-narrow        100 rows that only hedge: a bad example  -full: all that it has of them
spark-dpo           126 pairs: leaks, myths, activation      -full: every pair it composes
spark-boost         95 pairs: invented things, anachronisms  -full: every pair it composes
spark-boost-even    95 pairs: as many real things, as long   -full: every pair, one of each thing
dialectic           100 pairs, even over 36 strata           -full: the whole library
dialectic-sft       their chosen answers, as chats           -full: the whole library
mypt-alpha          840 rows: the form of an answer          -full: every row, and so below
mypt-beta           2,100 rows: copying
mypt-gamma          2,100 rows: copying pseudo-words
mypt-operators      1,500 rows: copy, wrap, extract
mypt-3a2            2,400 rows: facts and sums

`knowledge`, which needs a model, is not among them: see `knowledge.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from forty2.data.build import spark
from forty2.data.build.curriculum import stage
from forty2.data.build.dialectic import chosen_answers, dialectic
from forty2.data.sets import write_set
from forty2.data.splitting import Split
from forty2.errors import DataError
from forty2.files import JsonObject

Rows = Sequence[JsonObject]


class DataSet(NamedTuple):
    """Rows to train on, rows to validate on, and the arguments they were built with."""

    name: str
    seed: int
    asked: int | None
    """Number of training rows asked for; None: the default of the set."""
    balance: float | None
    """Share of plain answers asked for, between 0 and 1; None: the default."""
    train: Rows
    valid: Rows


def _stage(name: str) -> Callable[[int, int | None], Split]:
    def build_stage(seed: int, size: int | None) -> Split:
        rows = stage(name, seed)
        return Split(rows.train[:size], rows.valid)

    return build_stage


_BUILDERS: dict[str, tuple[Callable[[int, int | None], Split], int]] = {
    "spark-sft": (spark.sft, 377),
    "spark-sft-plain-0": (partial(spark.sft, balance=0.0), 377),
    "spark-sft-plain-12": (partial(spark.sft, balance=0.12), 377),
    "spark-narrow": (spark.narrow, 100),
    "spark-dpo": (spark.dpo, 126),
    "spark-boost": (spark.boost, 95),
    "spark-boost-even": (spark.even_boost, 95),
    "dialectic": (dialectic, 100),
    "dialectic-sft": (chosen_answers, 100),
    "mypt-alpha": (_stage("mypt-alpha"), 840),
    "mypt-beta": (_stage("mypt-beta"), 2_100),
    "mypt-gamma": (_stage("mypt-gamma"), 2_100),
    "mypt-operators": (_stage("mypt-operators"), 1_500),
    "mypt-3a2": (_stage("mypt-3a2"), 2_400),
}
NAMES = [name for base in _BUILDERS for name in (base, f"{base}-full")]


def build(
    name: str, *, seed: int = 42, size: int | None = None, balance: float | None = None
) -> DataSet:
    """Build a set. The same arguments give the same rows on every machine.

    Args:
        name: one of `NAMES`.
        size: number of training rows; default: the published count, or all for a `-full` set.
        balance: share of plain answers among isotopes (spark-sft alone); default 0.05.

    Raises:
        DataError: there is no such set, or it has fewer rows than `size`.
    """
    base = name.removesuffix("-full")
    if base not in _BUILDERS:
        raise DataError(f"there is no built-in data set {name!r}; choose one of {', '.join(NAMES)}")
    builder, published = _BUILDERS[base]
    if size is None and name == base:
        size = published
    if balance is not None and base != "spark-sft":
        raise DataError(f"{name}: takes no share of plain answers; only spark-sft does")
    split = builder(seed, size) if balance is None else spark.sft(seed, size, balance)
    if size is not None and len(split.train) < size:
        raise DataError(f"{name}: asked for {size} rows, but the library gives {len(split.train)}")
    # A sized set validates on a ninth of its size, as published: 377/42, 126/14, 95/11.
    valid = split.valid if size is None else split.valid[: max(1, round(size / 9))]
    return DataSet(name, seed, size, balance, split.train, valid)


def write_built(data: DataSet, folder: Path) -> JsonObject:
    """Write train.jsonl, valid.jsonl and manifest.json, all or nothing; return the manifest."""
    options = {"seed": data.seed, "size": data.asked, "balance": data.balance}
    given = [f"--{name} {value}" for name, value in options.items() if value is not None]
    about = {
        "name": data.name,
        "command": " ".join(["forty2 data build", data.name, *given]),
        "seed": data.seed,
        "asked": data.asked,
    }
    return write_set(folder, {"train": data.train, "valid": data.valid}, about)
