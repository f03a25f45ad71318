"""Conversations tokenised once and kept as memory-mapped arrays, so that training starts at once.

FOLDER/train|valid/tokens.bin  uint32, every row after the other
                   mask.bin    uint8, 1 where supervised
                   rows.idx    uint64, (start, length) of each row
                   packs.idx   uint64, (first row, rows) of each pack, where rows are packed
                   origins.txt where each row came from, a line each
FOLDER/manifest.json           counts, tokenizer, sha256

A row is never split. Packed rows share one sequence and do not see each other: each has its own
segment, and attention stays within it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.data.formats import parse
from forty2.data.mixing import split
from forty2.data.records import Chat, Text
from forty2.data.sources import MANIFEST, read_rows
from forty2.errors import DataError
from forty2.files import read_json, staged_folder, write_json
from forty2.progress import Progress, silent
from forty2.text.encoder import Encoder, Row, fit_rows

VERSION = 1
_CHUNK = 512
_ENOUGH_FOR_WORKERS = 20_000
_PACK_POOL = 4096
"""Rows that packs are chosen from together."""
_MOST_SEGMENTS = 255


class Prepared(Sequence[Row]):
    """The rows (or packs) of one split, read from disk as they are asked for."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokens = np.memmap(folder / "tokens.bin", np.uint32, "r")
            self._mask = np.memmap(folder / "mask.bin", np.uint8, "r")
            self._rows = np.fromfile(folder / "rows.idx", np.uint64).reshape(-1, 2).astype(np.int64)
            packs = folder / "packs.idx"
            self._packs = (
                np.fromfile(packs, np.uint64).reshape(-1, 2).astype(np.int64)
                if packs.exists()
                else np.stack([np.arange(len(self._rows)), np.ones(len(self._rows), np.int64)], 1)
            )
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: damaged; prepare it again") from error
        ends = np.concatenate([[0], np.cumsum(self._rows[:, 1])])
        if ends[-1] != len(self._tokens) or ends[-1] != len(self._mask):
            raise DataError(f"{folder}: its files are of different lengths; prepare it again")
        first, count = self._packs.T
        self.lengths: list[int] = (ends[first + count] - ends[first]).tolist()
        self.packed = bool((count > 1).any())
        self.weights = [1.0] * len(self._packs)
        self._folder = folder

    def __len__(self) -> int:
        return len(self._packs)

    def sha256(self) -> str:
        """Of all that the rows are; read, not mapped, so that it takes no memory."""
        digest = hashlib.sha256()
        for name in ("tokens.bin", "mask.bin", "rows.idx", "packs.idx"):
            if (self._folder / name).exists():
                with (self._folder / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def __getitem__(self, index: Any) -> Any:
        first, count = (int(n) for n in self._packs[index])
        start, end = int(self._rows[first, 0]), int(self._rows[first + count - 1].sum())
        segments = None
        if count > 1:
            segments = np.repeat(np.arange(count), self._rows[first : first + count, 1]).tolist()
        return Row(
            self._tokens[start:end].tolist(),
            self._mask[start:end].astype(bool).tolist(),
            f"{self._folder}: row {first + 1}",
            segments,
        )


class _Task(NamedTuple):
    """Rows of one chunk on their way to a worker."""

    rows: list[tuple[str, dict[str, Any]]]
    splits: list[str]
    """Which split each belongs to."""
    max_length: int


class _Part(NamedTuple):
    """A chunk's rows of one split, one after the other."""

    tokens: npt.NDArray[np.uint32]
    mask: npt.NDArray[np.uint8]
    lengths: list[int]
    origins: list[str]


class _Done(NamedTuple):
    rows: int
    parts: dict[str, _Part]
    shortened: int
    dropped: list[str]


def is_prepared(source: str | Path) -> bool:
    """Whether a recipe's data is a folder that `prepare` wrote."""
    return (Path(source) / "train" / "rows.idx").is_file()


def is_packed(rows: Sequence[Any]) -> bool:
    """Whether some sequence holds several rows."""
    return isinstance(rows, Prepared) and rows.packed


def open_prepared(source: str | Path, tokenizer_key: str, max_length: int) -> dict[str, Prepared]:
    """The splits of a prepared folder.

    Raises:
        DataError: it is damaged, or was made with another tokenizer or for longer rows.
    """
    folder = Path(source)
    manifest = read_json(folder / MANIFEST)
    if manifest.get("version") != VERSION:
        raise DataError(f"{folder}: was prepared by another release; prepare it again")
    if manifest.get("tokenizer") != tokenizer_key:
        raise DataError(f"{folder}: was prepared with another tokenizer; prepare it again")
    if manifest["max_length"] > max_length:
        raise DataError(
            f"{folder}: holds rows of up to {manifest['max_length']} tokens, the recipe's "
            f"max_length is {max_length}; raise it"
        )
    return {
        name: Prepared(folder / name)
        for name in ("train", "valid")
        if (folder / name / "rows.idx").exists()
    }


def tokenizer_key(tokenizer: Any) -> str:
    """A hash of what ids depend on: vocabulary, special tokens, chat template."""
    digest = hashlib.sha256()
    for token, i in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token}\0{i}\n".encode("utf-8", "surrogatepass"))
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()


def prepare(
    source: str | Path,
    folder: Path,
    model: str,
    *,
    valid_share: float = 0.1,
    max_length: int = 1024,
    pack: bool = False,
    seed: int = 42,
    workers: int | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Tokenise conversations and texts into a folder that a recipe can name as `data`.

    Args:
        model: whose tokenizer and chat template.
        valid_share: split off by prompt, as `split` does; 0: none.
        max_length: longer prompts lose their left end, rows whose response would not fit are
            dropped and named.
        pack: fill sequences of `max_length` with whole rows.
        workers: processes; default one a core for large sources.

    Returns:
        The manifest.
    """
    held = split(source, valid_share, seed=seed) if valid_share else []
    total = len(held) or sum(1 for _ in read_rows(source))
    if workers is None:
        workers = (os.cpu_count() or 1) if total >= _ENOUGH_FOR_WORKERS else 1
    with staged_folder(folder) as aside, ExitStack() as stack:
        writers = {"train": stack.enter_context(_Writer(aside / "train"))}
        if any(held):
            writers["valid"] = stack.enter_context(_Writer(aside / "valid"))
        dropped: list[str] = []
        shortened = at = 0
        for done in _tokenised(source, held, model, max_length, workers):
            for name, part in done.parts.items():
                writers[name].add(part)
            dropped += done.dropped
            shortened += done.shortened
            at += done.rows
            progress("prepare", at, total, {})
        if not writers["train"].rows:
            raise DataError(f"{source}: no row's response fits into {max_length} tokens")
        for writer in writers.values():
            writer.finish(max_length if pack else None)
        manifest = {
            **(about or {}),
            "version": VERSION,
            "forty2": importlib.metadata.version("forty2"),
            "source": str(source),
            "model": model,
            "tokenizer": tokenizer_key(_tokenizer(model)),
            "max_length": max_length,
            "seed": seed,
            "asked": total,
            "written": {name: writer.rows for name, writer in writers.items()},
            "packs": {name: w.packs for name, w in writers.items()} if pack else None,
            "tokens": {name: writer.tokens for name, writer in writers.items()},
            "supervised": {name: writer.supervised for name, writer in writers.items()},
            "shortened": shortened,
            "dropped": dropped,
            "lint": {},
            "sha256": {name: writer.digest.hexdigest() for name, writer in writers.items()},
        }
        write_json(aside / MANIFEST, manifest)
    return manifest


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
        """Write the index; packed, the rows are put into the order of their packs."""
        self.__exit__()
        lengths = np.array(self._lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        if pack_length is not None:
            packs = list(packed(self._lengths, pack_length))
            order = np.array([row for pack in packs for row in pack], np.int64)
            for name, kind in (("tokens.bin", np.uint32), ("mask.bin", np.uint8)):
                self._reorder(name, kind, starts[order], lengths[order])
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
        self, name: str, kind: Any, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> None:
        path, aside = self._folder / name, self._folder / f".{name}"
        source = np.memmap(path, kind, "r")
        with aside.open("wb") as file:
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                file.write(source[start : start + length].tobytes())
        del source
        aside.replace(path)


def packed(lengths: Sequence[int], capacity: int) -> Iterator[list[int]]:
    """Indices of rows that share a sequence: best fit, longest first, within pools in order.

    Every row comes once and whole; a pack holds at most `capacity` tokens and 255 rows.
    """
    for start in range(0, len(lengths), _PACK_POOL):
        pool = range(start, min(start + _PACK_POOL, len(lengths)))
        packs: list[list[int]] = []
        by_room: dict[int, list[list[int]]] = {}
        for i in sorted(pool, key=lambda i: -lengths[i]):
            room = next((r for r in range(lengths[i], capacity + 1) if by_room.get(r)), None)
            pack: list[int] = by_room[room].pop() if room is not None else []
            if not pack:
                packs.append(pack)
                room = capacity
            assert room is not None
            pack.append(i)
            if len(pack) < _MOST_SEGMENTS:
                by_room.setdefault(room - lengths[i], []).append(pack)
        yield from (sorted(pack) for pack in packs)


# --- tokenising, in this process or several -------------------------------------------------------


def _tokenised(
    source: str | Path, held: Sequence[bool], model: str, max_length: int, workers: int
) -> Iterator[_Done]:
    """Chunks in the order of the source."""
    tasks = _tasks(source, held, max_length)
    if workers == 1:
        _start(model)
        yield from map(_work, tasks)
        return
    # spawn, for mlx and the tokenizer's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _start, (model,)) as pool:
        yield from pool.imap(_work, tasks)


def _tasks(source: str | Path, held: Sequence[bool], max_length: int) -> Iterator[_Task]:
    rows, at = iter(read_rows(source)), 0
    while chunk := list(islice(rows, _CHUNK)):
        names = ["valid" if v else "train" for v in held[at : at + len(chunk)]]
        yield _Task(chunk, names or ["train"] * len(chunk), max_length)
        at += len(chunk)


_encoders: dict[str, Encoder] = {}
_current = ""


def _start(model: str) -> None:
    global _current
    _current = model
    _encoders.setdefault(model, Encoder(_tokenizer(model)))


def _tokenizer(model: str) -> Any:
    from forty2.model.loading import load_tokenizer

    return load_tokenizer(model)


def _work(task: _Task) -> _Done:
    records = [(origin, parse(raw, origin)) for origin, raw in task.rows]
    for origin, record in records:
        if not isinstance(record, Chat | Text):
            raise DataError(f"{origin}: only conversations and texts are prepared")
    encode_sft_record = [record for _, record in records if isinstance(record, Chat | Text)]
    kept: dict[str, list[Row]] = {}
    shortened = 0
    dropped: list[str] = []
    rows = _encoders[_current].encode_sft(encode_sft_record)
    for row, name in zip(rows, task.splits, strict=True):
        if row.weight != 1:
            raise DataError(f"{row.origin}: has a weight, which prepared data cannot keep")
        fitted = fit_rows([row], task.max_length)
        shortened += len(fitted.shortened)
        dropped += fitted.dropped
        kept.setdefault(name, []).extend(fitted.rows)
    return _Done(len(rows), {n: _part(part) for n, part in kept.items()}, shortened, dropped)


def _part(rows: Sequence[Row]) -> _Part:
    return _Part(
        np.fromiter(chain.from_iterable(row.ids for row in rows), np.uint32),
        np.fromiter(chain.from_iterable(row.mask for row in rows), np.uint8),
        [len(row.ids) for row in rows],
        [row.origin for row in rows],
    )
