"""Folders of data: which of their files are for training, and which for validation.

A file belongs to a split by a word of its name: `train.jsonl`, `train-00000-of-00002.parquet`,
`mine_test_v2.csv`. A folder that `datasets` saved names its files itself, and a folder of several such
has one for each split.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from forty2.errors import DataError, RunError
from forty2.files import read_json

_SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Names of each split's files and folders."""
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_WORD = re.compile(r"[a-z]+")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files of `datasets` in a folder with one split, and in one with a folder for each."""
_ABOUT = {"manifest.json", "dataset_info.json", "dataset_infos.json", _SAVED, _SAVED_SPLITS}
"""Files that describe the data and hold none."""


def files_of(folder: Path, split: str, kinds: Collection[str]) -> list[Path]:
    """Find a folder's files of a split: train, valid or test.

    Training takes the files of that split, or else all that belong to no split.

    Args:
        kinds: suffixes of data files.

    Raises:
        DataError: it holds no file for training.
    """
    if (folder / _SAVED_SPLITS).is_file():
        for name in _SPLITS[split]:
            if (folder / name).is_dir():
                return _saved_files(folder / name)
        if split != "train":
            return []
        names = sorted(p.name for p in folder.iterdir() if p.is_dir())
        there = (
            f"name one of its folders: {', '.join(names)}"
            if names
            else "nor any other; save it again"
        )
        raise DataError(f"{folder}: has no split train; {there}")
    if (folder / _SAVED).is_file():
        return _saved_files(folder) if split == "train" else []
    listed = _listed(folder, kinds)
    if not listed and (folder / "data").is_dir():  # a repository of the hub
        listed = _listed(folder / "data", kinds)
    splits = [split_of(path) for path in listed]
    own = [path for path, found in zip(listed, splits, strict=True) if found == split]
    if own or split != "train":
        return own
    others = [path for path, found in zip(listed, splits, strict=True) if found is None]
    if others:
        return others
    if not listed:
        inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        hint = f"; name one of its folders: {', '.join(inner[:5])}" if inner else ""
        raise DataError(f"{folder}: holds no data file ({', '.join(kinds)}){hint}")
    names = [path.name for path in listed]
    raise DataError(
        f"{folder}: holds no file for training, only {', '.join(names[:5])}; name a file"
    )


def split_of(path: Path) -> str | None:
    """Return the split that a file belongs to by the first word of its name that is one; None: none."""
    words = _WORD.findall(path.name.lower())
    return next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), None)


def kind_of(path: Path) -> str:
    """Return the suffix that says how a file is read, in lower case, without .gz."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


def _listed(folder: Path, kinds: Collection[str]) -> list[Path]:
    files = (p for p in folder.iterdir() if p.is_file() and not _describes(p.name))
    return sorted(p for p in files if kind_of(p) in kinds)


def _describes(name: str) -> bool:
    """Return whether a file describes the data, or is hidden, and holds no rows."""
    return name in _ABOUT or name.startswith(".") or name.endswith(".manifest.json")


def _saved_files(folder: Path) -> list[Path]:
    """Find the files of a data set that `datasets` saved, in their order."""
    try:
        state = read_json(folder / _SAVED)
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise DataError(
                f"{folder}: is a selection of a data set's rows; save it again after "
                "flatten_indices()"
            )
        return [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (RunError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _SAVED}: does not name the data set's files") from error
