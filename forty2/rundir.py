"""A run directory: everything that a run writes, in files that are never seen half-written.

RUN/recipe.yaml            the resolved recipe, every default spelled out
RUN/run.json               provenance: versions, device, hashes, when and how it was started
RUN/metrics.jsonl          one line per step and evaluation
RUN/data.json              hashes of the rows of each phase
RUN/data/NAME/             built-in data sets as they were built for this run
RUN/phase1_sft/            the adapter after the phase, in stock mlx-lm format, phase.json, checksums
RUN/work/PHASE/stepN/      the two newest checkpoints of an unfinished phase, with their checksums
RUN/benchmarks/            results after the base, each phase and fusing, with a checksum in each
RUN/report.md, report.html

What is written is for its owner alone, unless it takes the place of what others could read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from forty2.errors import RunError

VERSION = 2
"""Of a run directory's format. 1: finished phases without checksums, one `best` a phase."""
SUMS = "SHA256SUMS"
_RESULTS = ("phase*", "work/*", "benchmarks/*", "metrics.jsonl")
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(?P<old>\.old)?")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to fill that a reader sees whole or not at all: the old one until the end."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with _refusals(path):
        make_folder(path.parent)
        sweep(path.parent, path.name)
        mode = _mode(path, 0o600)
        try:
            with open(aside, "xb", opener=owners) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.chmod(mode)
            aside.replace(path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with writing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON. NaN and infinities are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON: {error}") from error


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes its name, replacing an older one, only when it is whole.

    An older one is never seen in part: it is there, or moved away whole.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = aside.with_name(f"{aside.name}.old")
    with _refusals(folder):
        make_folder(folder.parent)
        sweep(folder.parent, folder.name)
        mode = _mode(folder, 0o700)
        try:  # from before the folder is there: a signal may come between any two lines
            aside.mkdir(mode=0o700)
            yield aside
            for path in (*aside.rglob("*"), aside):
                path.chmod(mode if path.is_dir() else mode & 0o666)
                _sync(path)
            if folder.exists():
                folder.replace(old)
            try:
                aside.replace(folder)
            except BaseException:
                if old.exists():
                    old.replace(folder)
                raise
            _sync(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone."""
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def owners(path: str, flags: int) -> int:
    """An opener: a new file is for its owner alone, and a link in its place is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what ended processes left half-written in a folder, for one name or for all.

    What was moved away for something new that never came goes back to its place.
    """
    for path in list(folder.iterdir()):
        found = _ASIDE.fullmatch(path.name)
        if not found or name not in (None, found["name"]) or _is_at_work(int(found["process"])):
            continue
        if found["old"] and not (folder / found["name"]).exists():
            path.replace(folder / found["name"])
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_room(needs: Mapping[Path, int]) -> None:
    """Refuse what would not fit: bytes to be written by the path that they go to.

    Raises:
        RunError: a disk has less than what all its paths need.
    """
    disks: dict[int, int] = {}
    for path, size in needs.items():
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        device = there.stat().st_dev
        disks[device] = disks.get(device, 0) + size
        free = shutil.disk_usage(there).free
        if disks[device] > free:
            raise RunError(
                f"{path}: about {disks[device] / 1e9:.2f} GB will be needed here and "
                f"{free / 1e9:.2f} GB are free; make room, then go on with --resume"
            )


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files into it, as `sha256sum --check` reads them."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(_names(folder))]
    write_text(folder / SUMS, "".join(lines))


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words with its path; None if nothing is."""
    try:
        *lines, end = (folder / SUMS).read_bytes().decode().split("\n")
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        if any(not name or Path(name).name != name for name in sums):
            raise ValueError
        present = _names(folder)
        for name in sorted(present | sums.keys()):
            if name not in present:
                return f"{folder / name} is missing"
            if name not in sums:
                return f"{folder / name} does not belong there"
            if _sha256(folder / name) != sums[name]:
                return f"{folder / name} is damaged"
    except FileNotFoundError:
        return f"{folder / SUMS} is missing"
    except (OSError, ValueError):
        return f"{folder / SUMS} is damaged"
    return f"{folder / SUMS} is damaged" if end or not sums else None


def _names(folder: Path) -> set[str]:
    """Of the files that are sealed; a file browser puts hidden ones beside them."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {SUMS}


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` with the checksum of all the rest as the last key."""
    write_json(path, {**value, "sha256": _digest(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without the checksum.

    Raises:
        RunError: it is missing or damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.pop("sha256", None) != _digest(value):
        raise RunError(f"{path}: damaged; delete it, then go on with --resume: it is made anew")
    return value


class RunDir:
    """An open run directory, locked against a second writer until closed."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(
        cls, path: Path, recipe_yaml: str, provenance: Mapping[str, Any], *, resume: bool,
        reread: Callable[[Path], str] = Path.read_text,
    ) -> RunDir:  # fmt: skip
        """Start a run in a new or empty folder, or go on with the one that is there.

        Args:
            reread: the recipe that a run was started from, as this release would write it.

        Raises:
            RunError: the folder holds a run and `resume` is off, another process has it, or the
                run there was started from another recipe or model, by a release that this one
                cannot follow, or holds links that lead out of it.
        """
        with _refusals(path):
            return cls._open(path, recipe_yaml, provenance, resume, reread)

    @classmethod
    def _open(
        cls, path: Path, recipe_yaml: str, provenance: Mapping[str, Any], resume: bool,
        reread: Callable[[Path], str],
    ) -> RunDir:  # fmt: skip
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: is a file; name another --run-dir")
        if (
            not (path / "run.json").exists()
            and path.is_dir()
            and any(map(_is_foreign, path.iterdir()))
        ):
            raise RunError(f"{path}: is not empty and holds no run; name another --run-dir")
        make_folder(path)
        refuse_links(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        lock = os.fdopen(owners(str(path / "run.lock"), flags), "a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise RunError(f"{path}: in use by {owner}") from error
        run = cls(path, lock)
        try:
            existing = (path / "run.json").exists() and run._has_results()
            if existing and not resume:
                raise RunError(
                    f"{path}: holds a run already; go on with --resume, or name another --run-dir"
                )
            lock.truncate(0)
            lock.write(f"process {os.getpid()} since {now()}")
            lock.flush()
            sweep(path)
            if existing:
                run._check_same(recipe_yaml, provenance, reread)
            else:
                run._clear()
                write_text(path / "recipe.yaml", recipe_yaml)
                write_json(path / "run.json", {"version": VERSION, "started": now(), **provenance})
        except BaseException:
            lock.close()
            raise
        return run

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _has_results(self) -> bool:
        """Whether anything was trained or measured: a run whose recipe or data was refused has not."""
        return any(path for kind in _RESULTS for path in self.path.glob(kind))

    def _clear(self) -> None:
        """Remove what a run without results found out about its data before it was refused."""
        shutil.rmtree(self.path / "data", ignore_errors=True)
        for name in ("data.json", "contamination.json"):
            (self.path / name).unlink(missing_ok=True)

    def _check_same(
        self, recipe_yaml: str, provenance: Mapping[str, Any], reread: Callable[[Path], str]
    ) -> None:
        record = read_json(self.path / "run.json")
        version = record.get("version") if isinstance(record, dict) else None
        if version not in (1, VERSION):
            raise RunError(
                f"{self.path}: written by another release (run format {version}, this one reads 1 "
                f"to {VERSION}); go on with that release, or name another --run-dir"
            )
        was, now_is = record.get("model_sha256"), provenance.get("model_sha256")
        if was != now_is:
            raise RunError(
                f"{self.path}: was started from other weights than {provenance.get('model_path')} "
                f"holds now (sha256 {was}, now {now_is}); put those back, or name another --run-dir"
            )
        started_with = reread(self.path / "recipe.yaml")
        if started_with != recipe_yaml:
            old, new = started_with.splitlines(), recipe_yaml.splitlines()
            changed = next(
                (n for n in new if n not in old), next((o for o in old if o not in new), "")
            )
            raise RunError(
                f"{self.path}: was started from another recipe (first difference: "
                f"{changed.strip()!r}); resume with {self.path / 'recipe.yaml'}, or name another "
                "--run-dir"
            )
        if version == 1:
            self._upgrade()
            write_json(self.path / "run.json", {**record, "version": VERSION})

    def _upgrade(self) -> None:
        """Bring a run of format 1 to this one."""
        for unsealed in self.path.glob("work/*/last"):
            raise RunError(
                f"{unsealed}: a checkpoint without checksums, by a release from before they were; "
                f"go on with that release, or delete {unsealed.parent}: the phase starts anew"
            )
        for best in self.path.glob("work/*/best"):
            # The newest checkpoint's, or a later one that will be found again.
            states = map(read_json, best.parent.glob("step*/state.json"))
            newest = max(states, key=lambda state: state["step"], default={"best": None})
            if newest["best"] is not None:
                best.replace(best.with_name(f"best{newest['best']['step']}"))
        for done in self.path.glob("phase*/phase.json"):
            seal(done.parent)
        for result in self.path.glob("benchmarks/*.json"):
            write_sealed(result, read_json(result))

    def check_there(self) -> None:
        """Make sure that what is written still goes to this run.

        Raises:
            RunError: the folder was removed, moved or replaced.
        """
        try:
            same = os.path.samestat(
                os.fstat(self._lock.fileno()), (self.path / "run.lock").stat(follow_symlinks=False)
            )
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise RunError(
                f"{self.path}: was removed, moved or replaced while the run was under way; put it "
                "back, then go on with --resume"
            )

    # --- metrics ---

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one whole line to the metrics, in one write."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with _refusals(self.metrics_path):
            self.check_there()
            with open(self.metrics_path, "ab", buffering=0, opener=owners) as file:
                if file.write(line.encode()) < len(line.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of the metrics so far.

        Raises:
            RunError: one of them is damaged.
        """
        if not self.metrics_path.exists():
            return []
        records = []
        for number, line in enumerate(self.metrics_path.read_bytes().split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                record["phase"], record["step"] + 1
            except (ValueError, TypeError, KeyError) as error:
                raise RunError(
                    f"{self.metrics_path}:{number}: damaged; delete this line, then go on with "
                    "--resume"
                ) from error
            records.append(record)
        return records

    def forget_metrics_after(self, phase: str, step: int) -> None:
        """Drop what a phase logged beyond a checkpoint that it now goes on from."""
        kept = [r for r in self.metrics() if r["phase"] != phase or r["step"] <= step]
        text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in kept)
        # A file that is replaced is lost to whoever follows it.
        if not self.metrics_path.exists() or self.metrics_path.read_text("utf-8") != text:
            write_text(self.metrics_path, text)


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_foreign(path: Path) -> bool:
    """Whether an entry of a folder without run.json is not what a run that was just begun left."""
    return path.name not in ("run.lock", "recipe.yaml") and not path.name.startswith(".")


def _mode(path: Path, new: int) -> int:
    """The permissions of what is to be replaced; `new` where nothing is."""
    return new if path.is_symlink() or not path.exists() else path.stat().st_mode & 0o777


def refuse_links(run: Path) -> None:
    """Refuse a run in which something is a link to a place outside: what is there is not the run's.

    Raises:
        RunError: naming the link.
    """
    inside = run.resolve()
    for path in run.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise RunError(
                f"{path}: is a link that leads out of the run, which is not followed; put what it "
                "stands for in its place, or name another --run-dir"
            )


def _is_at_work(process: int) -> bool:
    if process == os.getpid():
        return False  # one writer a name: what is there is from an ended one of the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


_REMEDIES = {
    number: f"; {remedy}, then go on with --resume"
    for remedy, numbers in {
        "make it writable": (errno.EACCES, errno.EPERM, errno.EROFS),
        "put the folder back": (errno.ENOENT, errno.ESTALE),
    }.items()
    for number in numbers
}


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what the system says while something is written into one line with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path}: cannot be written: the disk is full; make room, then go on with --resume"
            ) from error
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise RunError(f"{path}: cannot be written: {error.strerror or error}{remedy}") from error
    except RuntimeError as error:
        if not str(error).startswith(("[write]", "[save_safetensors]")):  # mlx's, without a reason
            raise
        raise RunError(
            f"{path}: cannot be written: {error}; make room on the disk, then go on with --resume"
        ) from error


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file or the entries of a folder on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
