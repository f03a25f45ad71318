"""Prepared conversations: tokenized once, stored as memory-mapped arrays, and read without delay.

FOLDER/train|valid/tokens.bin  uint32, the ids of every row, one row after another
                   mask.bin    uint8, 1 where supervised
                   rows.idx    uint64, (start, length) of each row
                   packs.idx   uint64, (first row, rows) of each pack, where rows are packed
                   origins.txt where each row came from, a line each
FOLDER/manifest.json           counts, tokenizer, sha256

A row is never split. Packed rows share one sequence but do not attend to each other: each row is a
segment of its own, and attention stays within it. `preparing` writes such folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from forty2.data.sources import MANIFEST
from forty2.errors import DataError
from forty2.files import read_json
from forty2.text.encoder import TrainOn
from forty2.text.rows import Row
from forty2.text.tokenizer import Tokenizer

VERSION = 1


class Prepared(Sequence[Row]):
    """The rows (or packs) of one split, read from disk when they are needed.

    Raises:
        DataError: a file is missing or damaged.
    """

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
        """Tokens of each sequence."""
        self.packed = bool((count > 1).any())
        """Whether some sequence holds several rows."""
        self.weights = [1.0] * len(self._packs)
        """Number of times that each sequence comes in an epoch."""
        self._folder = folder

    @property
    def supervised(self) -> list[int]:
        """Supervised tokens of each sequence."""
        upto = np.concatenate([[0], np.cumsum(self._mask, dtype=np.int64)])
        ends = np.concatenate([[0], np.cumsum(self._rows[:, 1])])
        first, count = self._packs.T
        found: list[int] = (upto[ends[first + count]] - upto[ends[first]]).tolist()
        return found

    def __len__(self) -> int:
        return len(self._packs)

    def sha256(self) -> str:
        """Hash the contents of all rows; the files are read, not mapped, so this takes no memory."""
        digest = hashlib.sha256()
        for name in ("tokens.bin", "mask.bin", "rows.idx", "packs.idx"):
            if (self._folder / name).exists():
                with (self._folder / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
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


def is_prepared(source: str | Path) -> bool:
    """Return whether a source is a folder that `prepare` wrote."""
    return (Path(source) / "train" / "rows.idx").is_file()


def is_packed(rows: object) -> bool:
    """Return whether rows are prepared sequences, some of which hold several rows."""
    return isinstance(rows, Prepared) and rows.packed


def open_prepared(
    source: str | Path, tokenizer_key: str, max_length: int, train_on: TrainOn = "all"
) -> dict[str, Prepared]:
    """Open the splits of a prepared folder, by name: train, and valid if there is one.

    Raises:
        DataError: it is damaged, or was made with another tokenizer or for longer rows.
    """
    folder = Path(source)
    manifest = read_json(folder / MANIFEST)
    if manifest.get("version") != VERSION:
        raise DataError(f"{folder}: was prepared by another release; prepare it again")
    if manifest.get("tokenizer") != tokenizer_key:
        raise DataError(f"{folder}: was prepared with another tokenizer; prepare it again")
    if manifest.get("train_on", "all") != train_on:
        raise DataError(
            f"{folder}: was prepared with train_on {manifest.get('train_on', 'all')}, the phase has "
            f"{train_on}; prepare it again with `train_on={train_on}`"
        )
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


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """Hash everything that token ids depend on: vocabulary, special tokens, chat template."""
    digest = hashlib.sha256()
    for token, i in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token}\0{i}\n".encode("utf-8", "surrogatepass"))
    # A template that writes the date is the same on every day: the manifest holds the day.
    template = getattr(tokenizer, "undated_template", tokenizer.chat_template)
    digest.update(str(template).encode())
    return digest.hexdigest()
