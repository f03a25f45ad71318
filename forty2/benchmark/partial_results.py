"""Items of a measurement under way, stored as they are scored, so that a stopped one can resume."""

from __future__ import annotations

import fcntl
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from forty2.errors import BenchmarkError
from forty2.files import JsonObject, owner_only, refuse_no_file, write_json
from forty2.model.adapter import adapter_dir
from forty2.model.loading import LoadedModel


class PartialResults:
    """The scored items of a measurement, by key, each on disk as soon as it is added.

    The file is the result's name with `.part` after it: its first line holds the settings, and each
    further line an item's key and JSON. `finish` writes the result and removes the file.
    """

    def __init__(self, out: Path | None, file: IO[bytes] | None, items: JsonObject) -> None:
        self._out = out
        self._file = file
        self._items = items
        self._prefix = ""

    @classmethod
    def in_memory(cls) -> PartialResults:
        """Make a store of items in memory only."""
        return cls(None, None, {})

    @classmethod
    def open(cls, out: Path | None, settings: JsonObject, *, resume: bool) -> PartialResults:
        """Start a measurement, or go on with a stopped one; to be used in a `with`.

        Args:
            out: the result's file; None: items are held in memory only.
            settings: settings of the measurement, as JSON; it resumes only with the same ones.

        Raises:
            BenchmarkError: there are items and `resume` is off, another process writes them, or
                they belong to another measurement.
        """
        if out is None:
            return cls.in_memory()
        check_out(out)
        part = partial_path(out)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            file = open(part, "a+b", opener=owner_only)  # noqa: SIM115 (close() ends it)
        except OSError as error:
            raise BenchmarkError(f"{part}: cannot be written: {error.strerror}") from error
        partial = cls(out, file, {})
        try:
            partial._begin(file, json.loads(json.dumps(settings)), resume)
        except BaseException:
            file.close()
            raise
        return partial

    def _begin(self, file: IO[bytes], settings: JsonObject, resume: bool) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BenchmarkError(f"{file.name}: another process is writing it") from error
        file.seek(0)
        head, *lines = file.read().split(b"\n")[:-1] or [b""]  # an incomplete last line is ignored
        if not lines:
            file.truncate(0)
            self._write(settings)
            return
        if not resume:
            raise BenchmarkError(
                f"{file.name}: {len(lines)} items of a measurement that stopped; go on with "
                "`resume=True`, or remove it"
            )
        try:
            before: JsonObject = dict(json.loads(head))
            self._items = dict(json.loads(line) for line in lines)
        except (ValueError, TypeError) as error:
            raise BenchmarkError(f"{file.name}: damaged ({error}); remove it") from error
        for key, value in settings.items():
            if before.get(key) != value:
                raise BenchmarkError(
                    f"{file.name}: was measured with another {key} ({before.get(key)!r}, now "
                    f"{value!r}); resume as it was started, or remove it"
                )
        file.truncate(sum(len(line) + 1 for line in (head, *lines)))

    def under(self, prefix: str) -> PartialResults:
        """Return a view of the same items in which every key has a prefix."""
        view = PartialResults(self._out, self._file, self._items)
        view._prefix = prefix
        return view

    def __enter__(self) -> PartialResults:
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None and self._file is not None:
            if not self._items:  # nothing to go on with
                partial_path(self._out).unlink(missing_ok=True)
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._items

    def __getitem__(self, key: str) -> JsonObject:
        return cast(JsonObject, self._items[self._prefix + key])

    def add(self, key: str, item: JsonObject) -> None:
        """Store an item; it is on disk when this returns."""
        self._items[self._prefix + key] = dict(item)
        self._write([self._prefix + key, item])

    def finish(
        self, result: JsonObject, write: Callable[[Path, JsonObject], None] = write_json
    ) -> None:
        """Write the result, which holds every item, and remove the items stored for it."""
        if self._out is not None and self._file is not None:
            write(self._out, result)
            partial_path(self._out).unlink(missing_ok=True)

    def _write(self, value: object) -> None:
        if self._file is not None:
            self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
            self._file.flush()


def partial_path(out: Path) -> Path:
    """Return the file that holds the items of a result under way."""
    return out.with_name(f"{out.name}.part")


def check_out(out: Path) -> None:
    """Refuse a result's file that could not be written, before anything is measured for it.

    Raises:
        BenchmarkError: the system does not let it be written.
        RunError: it is a folder, a device or a pipe.
    """
    try:
        refuse_no_file(out)
        folder = next(folder for folder in out.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):  # only trying tells whether it can be written
            pass
    except OSError as error:
        raise BenchmarkError(
            f"{out}: cannot be written: {error.strerror}; name a file in a folder of yours"
        ) from error


def weights(loaded: LoadedModel, adapter: str | Path | None) -> list[list[str | int]]:
    """List name, size and time of the files that a model and its adapter were loaded from.

    By them a resumed measurement checks that it has the model that it began with.
    """
    folders = [loaded.path] if adapter is None else [loaded.path, adapter_dir(adapter)]
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt")  # settings and templates, too
    files = [f for folder in folders for f in sorted(folder.iterdir()) if f.suffix in kinds]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
