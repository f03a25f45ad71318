"""Items of a benchmark under way, kept on disk as they come, so that a stopped run goes on."""

from __future__ import annotations

import fcntl
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from forty2.errors import BenchmarkError
from forty2.files import owner_only, write_json
from forty2.model.adapter import adapter_dir
from forty2.model.loading import LoadedModel


class PartialResults:
    """Items as they are measured, on disk at once, so that a stopped measurement can go on.

    They stand beside the result's file, under its name with `.part` behind: a line that says what
    is measured, then a line of JSON for each item with its key. `finish` replaces it by the result.
    """

    def __init__(self, out: Path | None, file: IO[bytes] | None, items: dict[str, Any]) -> None:
        self._out = out
        self._file = file
        self._items = items

    @classmethod
    def nothing(cls) -> PartialResults:
        """Items that are kept in memory alone."""
        return cls(None, None, {})

    @classmethod
    def open(cls, out: Path | None, settings: Mapping[str, Any], *, resume: bool) -> PartialResults:
        """Start, or go on with what is there; to be used in a `with`.

        Args:
            out: the result's file; None: nothing is kept.
            settings: what is measured, as JSON; must be what it was before to go on.

        Raises:
            BenchmarkError: items are there and `resume` is off, another process writes them, or
                they are of another measurement.
        """
        if out is None:
            return cls.nothing()
        check_out(out)
        part = partial_path(out)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            file = open(part, "a+b", opener=owner_only)  # noqa: SIM115 (close() ends it)
        except OSError as error:
            raise BenchmarkError(f"{part}: cannot be written: {error.strerror}") from error
        kept = cls(out, file, {})
        try:
            kept._begin(file, json.loads(json.dumps(settings)), resume)
        except BaseException:
            file.close()
            raise
        return kept

    def _begin(self, file: IO[bytes], settings: dict[str, Any], resume: bool) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BenchmarkError(f"{file.name}: another process is writing it") from error
        file.seek(0)
        head, *lines = file.read().split(b"\n")[:-1] or [b""]  # what was cut off is no item
        if not lines:
            file.truncate(0)
            self._write(settings)
            return
        if not resume:
            raise BenchmarkError(
                f"{file.name}: {len(lines)} items of a measurement that stopped; go on with "
                "--resume, or remove it"
            )
        try:
            before: dict[str, Any] = dict(json.loads(head))
            self._items = dict(json.loads(line) for line in lines)
        except (ValueError, TypeError) as error:
            raise BenchmarkError(f"{file.name}: damaged ({error}); remove it") from error
        for key in {**settings, **before}:
            if before.get(key) != settings.get(key):
                raise BenchmarkError(
                    f"{file.name}: was measured with another {key} ({before.get(key)!r}, now "
                    f"{settings.get(key)!r}); resume as it was started, or remove it"
                )
        file.truncate(sum(len(line) + 1 for line in (head, *lines)))

    def __enter__(self) -> PartialResults:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __getitem__(self, key: str) -> dict[str, Any]:
        return cast(dict[str, Any], self._items[key])

    def add(self, key: str, item: Mapping[str, Any]) -> None:
        """Keep an item; it is on disk when this returns."""
        self._items[key] = dict(item)
        self._write([key, item])

    def finish(
        self, result: dict[str, Any], write: Callable[[Path, dict[str, Any]], None] = write_json
    ) -> None:
        """Write the result, which holds every item, and forget what was kept for it."""
        if self._out is not None and self._file is not None:
            write(self._out, result)
            partial_path(self._out).unlink(missing_ok=True)

    def _write(self, value: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
            self._file.flush()


def partial_path(out: Path) -> Path:
    """Where the items of a result under way are."""
    return out.with_name(f"{out.name}.part")


def check_out(out: Path) -> None:
    """Refuse a result's file that could not be written, before anything is measured for it."""
    try:
        if out.is_dir():
            raise BenchmarkError(f"{out}: is a folder; name a file to write")
        there = next(folder for folder in out.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=there):  # tried, as rights alone do not tell
            pass
    except OSError as error:
        raise BenchmarkError(
            f"{out}: cannot be written: {error.strerror}; name a file in a folder of yours"
        ) from error


def weights(loaded: LoadedModel, adapter: str | Path | None) -> list[list[Any]]:
    """Name, size and time of the files that a model and its adapter were loaded from.

    To tell, before going on with a measurement, whether they are still those it began with.
    """
    folders = [loaded.path] if adapter is None else [loaded.path, adapter_dir(adapter)]
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt")  # a scale and a template, too
    files = [f for folder in folders for f in sorted(folder.iterdir()) if f.suffix in kinds]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
