"""Preparation of conversations: tokenize a source once, in one process or several, and store it.

`prepared` describes and reads the folder that is written.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.data.formats import parse
from forty2.data.records import Chat, Text
from forty2.data.sources import MANIFEST, read_rows
from forty2.data.splitting import split
from forty2.errors import DataError
from forty2.files import JsonObject, staged_folder, write_json
from forty2.progress import Progress, silent
from forty2.text.encoder import Encoder, TrainOn
from forty2.text.packing import packed
from forty2.text.prepared import VERSION, tokenizer_key
from forty2.text.rows import Row, fit_rows
from forty2.text.tokenizer import LoadTokenizer, Tokenizer

_CHUNK = 512
"""Rows that a worker tokenizes together."""
_ENOUGH_FOR_WORKERS = 20_000
"""Smallest number of rows for which starting processes saves time."""


class _Task(NamedTuple):
    """Rows of one chunk on their way to a worker."""

    rows: list[tuple[str, JsonObject]]
    """Origin and raw row."""
    splits: list[str]
    """For each row, the split that it belongs to."""
    max_length: int
    train_on: TrainOn


class _Part(NamedTuple):
    """A chunk's rows of one split, one after another, as they are stored."""

    tokens: npt.NDArray[np.uint32]
    mask: npt.NDArray[np.uint8]
    lengths: list[int]
    origins: list[str]


class _TokenizedChunk(NamedTuple):
    """A chunk as a worker returns it."""

    rows: int
    """Number of rows, dropped ones included."""
    parts: dict[str, _Part]
    """Rows that fit, by split."""
    shortened: int
    """Number of rows whose prompt lost its beginning."""
    dropped: list[str]
    """Origins of rows that do not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The choices that decide what a prepared folder holds."""

    valid_share: float = 0.1
    """Share of the rows held out for validation by `splitting.split`; 0: none."""
    max_length: int = 1024
    """Most tokens of a row. Longer prompts lose their beginning; rows whose response does not fit are
    dropped and named."""
    pack: bool = False
    """Whether to fill sequences of `max_length` tokens with whole rows."""
    seed: int = 42
    train_on: TrainOn = "all"
    """Which assistant turns of a conversation are learned."""


def prepare(
    source: str | Path,
    folder: Path,
    model: str,
    load_tokenizer: LoadTokenizer,
    preparation: Preparation,
    *,
    workers: int | None = None,
    about: Mapping[str, object] | None = None,
    progress: Progress = silent,
) -> JsonObject:
    """Tokenize conversations and texts into a folder that a recipe can name as `data`.

    Args:
        source: rows, as `read_rows` takes them.
        folder: folder to write.
        model: model whose tokenizer is used: `load_tokenizer(model)`, called once in every worker.
        preparation: share held out, length, packing and seed.
        workers: number of processes; default: one for each core for large sources, else one.
        about: first keys of the manifest.

    Returns:
        The manifest.

    Raises:
        DataError: a row is damaged, has a weight or is no conversation or text, or none fits.
    """
    share = preparation.valid_share
    tokenizer = load_tokenizer(model)
    held_out = split(source, share, seed=preparation.seed) if share else []
    total = len(held_out) or sum(1 for _ in read_rows(source))
    workers = workers or ((os.cpu_count() or 1) if total >= _ENOUGH_FOR_WORKERS else 1)
    chunks = _tokenize_all(_tasks(source, held_out, preparation), model, load_tokenizer, workers)
    with staged_folder(folder) as unfinished, ExitStack() as stack:
        names = ["train", "valid"] if any(held_out) else ["train"]
        writers = {name: stack.enter_context(_Writer(unfinished / name)) for name in names}
        written = _write_all(chunks, writers, lambda rows: progress("prepare", rows, total, {}))
        if not writers["train"].rows:
            raise DataError(
                f"{source}: no row's response fits into {preparation.max_length} tokens"
            )
        for writer in writers.values():
            writer.finish(preparation.max_length if preparation.pack else None)
        manifest = {
            **(about or {}),
            "version": VERSION,
            "forty2": importlib.metadata.version("forty2"),
            "source": str(source),
            "model": model,
            **_encoding(tokenizer, preparation),
            "seed": preparation.seed,
            "asked": total,
            **_counts(writers, preparation.pack),
            "shortened": written.shortened,
            "dropped": written.dropped,
            "lint": {},
            "sha256": {name: writer.digest.hexdigest() for name, writer in writers.items()},
        }
        write_json(unfinished / MANIFEST, manifest)
    return manifest


def _encoding(tokenizer: Tokenizer, preparation: Preparation) -> JsonObject:
    """Return the keys of a manifest that say how rows became tokens."""
    return {
        "tokenizer": tokenizer_key(tokenizer),
        "template_date": getattr(tokenizer, "template_date", None),
        "train_on": preparation.train_on,
        "max_length": preparation.max_length,
    }


class _Written(NamedTuple):
    """The outcome of writing all rows."""

    shortened: int
    """Rows whose prompt lost its beginning."""
    dropped: list[str]
    """Origins of the rows that did not fit."""


def _write_all(
    chunks: Iterable[_TokenizedChunk], writers: Mapping[str, _Writer], report: Callable[[int], None]
) -> _Written:
    """Append tokenized chunks to the files of their splits; report the rows done so far."""
    dropped: list[str] = []
    shortened = rows = 0
    for chunk in chunks:
        for name, part in chunk.parts.items():
            writers[name].add(part)
        dropped += chunk.dropped
        shortened += chunk.shortened
        rows += chunk.rows
        report(rows)
    return _Written(shortened, dropped)


def _counts(writers: Mapping[str, _Writer], pack: bool) -> JsonObject:
    """Return the counts of the rows written, by split, for the manifest."""
    return {
        "written": {name: writer.rows for name, writer in writers.items()},
        "packs": {name: writer.packs for name, writer in writers.items()} if pack else None,
        "tokens": {name: writer.tokens for name, writer in writers.items()},
        "supervised": {name: writer.supervised for name, writer in writers.items()},
    }


class _Writer:
    """Appends rows to the files of one split."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._files = {
            name: (folder / name).open("wb") for name in ("tokens.bin", "mask.bin", "origins.txt")
        }
        self._lengths: list[int] = []
        self.tokens = self.supervised = self.packs = 0
        self.digest = hashlib.sha256()

    @property
    def rows(self) -> int:
        return len(self._lengths)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, part: _Part) -> None:
        tokens, mask = part.tokens.astype("<u4").tobytes(), part.mask.tobytes()
        self._files["tokens.bin"].write(tokens)
        self._files["mask.bin"].write(mask)
        self._files["origins.txt"].writelines(f"{origin}\n".encode() for origin in part.origins)
        self.digest.update(tokens + mask)
        self._lengths += part.lengths
        self.tokens += len(part.tokens)
        self.supervised += int(part.mask.sum())

    def finish(self, pack_length: int | None) -> None:
        """Write the index; with a pack length (tokens), first put the rows into the order of packs."""
        self.__exit__()
        lengths = np.array(self._lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        if pack_length is not None:
            packs = list(packed(self._lengths, pack_length))
            order = np.array([row for pack in packs for row in pack], np.int64)
            self._reorder("tokens.bin", 4, starts[order], lengths[order])
            self._reorder("mask.bin", 1, starts[order], lengths[order])
            lines = (self._folder / "origins.txt").read_text("utf-8").split("\n")
            ordered = "".join(f"{lines[i]}\n" for i in order)
            (self._folder / "origins.txt").write_text(ordered, "utf-8")
            lengths = lengths[order]
            starts = np.cumsum(lengths) - lengths
            counts = np.array([len(pack) for pack in packs], np.uint64)
            first = np.cumsum(counts) - counts
            np.stack([first, counts], 1).astype("<u8").tofile(self._folder / "packs.idx")
            self.packs = len(packs)
        np.stack([starts, lengths], 1).astype("<u8").tofile(self._folder / "rows.idx")

    def _reorder(
        self, name: str, size: int, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> None:
        """Write a file's pieces in another order; `size` is the bytes of a token in it."""
        path, unfinished = self._folder / name, self._folder / f".{name}"
        source = np.memmap(path, np.uint8, "r")
        with unfinished.open("wb") as file:
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                file.write(source[size * start : size * (start + length)].tobytes())
        del source
        unfinished.replace(path)


def _tasks(
    source: str | Path, held_out: Sequence[bool], preparation: Preparation
) -> Iterator[_Task]:
    """Yield the rows of a source in chunks; without `held_out`, all rows are for training."""
    rows, at = iter(read_rows(source)), 0
    while chunk := list(islice(rows, _CHUNK)):
        names = ["valid" if v else "train" for v in held_out[at : at + len(chunk)]]
        splits = names or ["train"] * len(chunk)
        yield _Task(chunk, splits, preparation.max_length, preparation.train_on)
        at += len(chunk)


def _tokenize_all(
    tasks: Iterator[_Task], model: str, load_tokenizer: LoadTokenizer, workers: int
) -> Iterator[_TokenizedChunk]:
    """Tokenize chunks in one process or several, and yield them in the order of the tasks."""
    if workers == 1:
        encoder = Encoder(load_tokenizer(model))
        yield from (_tokenize(encoder, task) for task in tasks)
        return
    # spawn, because mlx and the tokenizer's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _start_worker, (model, load_tokenizer)) as pool:
        yield from pool.imap(_tokenize_in_worker, tasks)


_worker_encoder: Encoder | None = None
"""Encoder of a worker process; None in the main process."""


def _start_worker(model: str, load_tokenizer: LoadTokenizer) -> None:
    global _worker_encoder
    _worker_encoder = Encoder(load_tokenizer(model))


def _tokenize_in_worker(task: _Task) -> _TokenizedChunk:
    assert _worker_encoder is not None
    return _tokenize(_worker_encoder, task)


def _tokenize(encoder: Encoder, task: _Task) -> _TokenizedChunk:
    records = []
    for origin, raw in task.rows:
        record = parse(raw, origin)
        if not isinstance(record, Chat | Text):
            raise DataError(f"{origin}: only conversations and texts are prepared")
        records.append(record)
    fitting: dict[str, list[Row]] = {}
    shortened = 0
    dropped: list[str] = []
    encoded = encoder.training_on(task.train_on).encode_sft_records(records)
    for rows, name in zip(encoded, task.splits, strict=True):
        weighted = next((row for row in rows if row.weight != 1), None)
        if weighted is not None:
            raise DataError(f"{weighted.origin}: has a weight, which prepared data cannot store")
        fitted = fit_rows(rows, task.max_length)
        shortened += len(fitted.shortened)
        dropped += fitted.dropped
        fitting.setdefault(name, []).extend(fitted.rows)
    parts = {name: _part(rows_of_split) for name, rows_of_split in fitting.items()}
    return _TokenizedChunk(len(records), parts, shortened, dropped)


def _part(rows: Sequence[Row]) -> _Part:
    return _Part(
        np.fromiter(chain.from_iterable(row.ids for row in rows), np.uint32),
        np.fromiter(chain.from_iterable(row.mask for row in rows), np.uint8),
        [len(row.ids) for row in rows],
        [row.origin for row in rows],
    )
