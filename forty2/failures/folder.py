"""The folder of a failure loop: the test set, replies, verdicts, and the half that stays untouched.

    testset.jsonl   one item a line, both halves
    testset.json    counts, what was dropped and why, and the sha256 of each half
    replies.jsonl   a model's replies to the half `find`
    verdicts.jsonl  pass, fail or unscored, for each reply
    find.json       pass rates and how the replies were made and judged

Whoever reads a half gets that half alone, and both are first compared with their sha256: a later
step cannot see the other half by accident, nor go on with a changed one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from forty2.data.records import Message
from forty2.errors import DataError, RunError
from forty2.files import JsonObject, atomic_write, read_json, refuse_no_folder

TESTSET, ABOUT = "testset.jsonl", "testset.json"
REPLIES, VERDICTS, FOUND = "replies.jsonl", "verdicts.jsonl", "find.json"

_QUOTED = 60
"""Characters of a setting in a message."""

Half = Literal["find", "untouched"]
HALVES: tuple[Half, Half] = ("find", "untouched")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a test set, and how a reply to it is checked."""

    id: str
    """Hash of messages, verifier and reference."""
    stratum: str
    messages: tuple[Message, ...]
    """The prompt; its last turn is the user's."""
    verifier: JsonObject | None
    """Kind and arguments of the check; None: a judge has to decide."""
    reference: str | None
    """A right answer, for a judge and for a teacher."""
    half: Half
    group: int
    """Items of one group nearly repeat each other; they are all in one half."""
    source: str

    def line(self) -> bytes:
        """Return the item as a line of the test set."""
        return json_line(
            {
                "id": self.id,
                "stratum": self.stratum,
                "messages": list(self.messages),
                "verifier": self.verifier,
                "reference": self.reference,
                "half": self.half,
                "group": self.group,
                "source": self.source,
            }
        )


class StoredReply(NamedTuple):
    """A model's reply to an item."""

    id: str
    reply: str
    stopped: bool
    """Whether the model ended it; False: it was cut at the limit of tokens."""
    tokens: int


class StoredVerdict(NamedTuple):
    """What was decided about a reply."""

    id: str
    verdict: Literal["pass", "fail", "unscored"]
    by: Literal["verifier", "judge"]
    score: float | None
    """Mean score of the judge, 1 to 10; None: a verifier decided, or nobody could."""
    reason: str


Stored = TypeVar("Stored", StoredReply, StoredVerdict)


def json_line(value: Mapping[str, object]) -> bytes:
    """Write an object as one line of JSON Lines."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def item_id(messages: Sequence[Message], verifier: object, reference: str | None) -> str:
    """Hash what an item asks and how it is checked: 16 hex digits, the same on every machine."""
    content = json.dumps([list(messages), verifier, reference], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def halves_sha256(items: Iterable[Item]) -> dict[str, str]:
    """Hash the lines of each half, in their order."""
    digests = {half: hashlib.sha256() for half in HALVES}
    for item in items:
        digests[item.half].update(item.line())
    return {half: digest.hexdigest() for half, digest in digests.items()}


def write_testset(folder: Path, items: Sequence[Item], about: JsonObject) -> None:
    """Write the items, then what is said of them, which makes the test set complete."""
    with atomic_write(folder / TESTSET) as file:
        for item in items:
            file.write(item.line())
    with atomic_write(folder / ABOUT) as file:
        text = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False)
        file.write(f"{text}\n".encode())


def read_half(folder: str | Path, half: Half) -> list[Item]:
    """Read one half of a test set, after a check that neither half has changed.

    Raises:
        RunError: there is no test set, or a half is not the one that was made.
    """
    folder = Path(folder)
    about = about_testset(folder)
    digests = {name: hashlib.sha256() for name in HALVES}
    found: list[Item] = []
    for number, line in _lines(folder / TESTSET):
        # the line's own key decides; the lines of the other half are hashed and left
        row = _object(line, folder / TESTSET, number)
        named: Half = row.get("half", "")
        if named not in digests:
            raise RunError(f"{folder / TESTSET}:{number}: half must be {' or '.join(HALVES)}")
        digests[named].update(line)
        if named == half:
            found.append(_item(row, folder / TESTSET, number))
    for name, digest in digests.items():
        if about["sha256"].get(name) != digest.hexdigest():
            raise RunError(
                f"{folder / TESTSET}: the half {name!r} is not the one that {ABOUT} names; make the "
                "test set again with forty2 failures testset"
            )
    return found


def read_replies(folder: str | Path) -> dict[str, StoredReply]:
    """Read the replies of a folder, by the id of their items.

    Raises:
        RunError: there are none, or a line is damaged.
    """
    return {row.id: row for row in _records(Path(folder) / REPLIES, StoredReply)}


def read_verdicts(folder: str | Path) -> dict[str, StoredVerdict]:
    """Read the verdicts of a folder, by the id of their items.

    Raises:
        RunError: there are none, or a line is damaged.
    """
    return {row.id: row for row in _records(Path(folder) / VERDICTS, StoredVerdict)}


def read_if_same(path: Path, settings: JsonObject, done: str) -> JsonObject:
    """Read the result of a step, if it was made with these settings.

    Args:
        done: what the step did, as in "was found with another model".

    Raises:
        RunError: it was made with others, or is damaged.
    """
    before = dict(read_json(path))
    for key, value in settings.items():
        if before.get(key) != value:
            raise RunError(
                f"{path}: was {done} with another {key} ({_quoted(before.get(key))}, now "
                f"{_quoted(value)}); copy the test set to another folder, or remove this file and "
                "start again"
            )
    return before


def _quoted(value: object) -> str:
    """Write a setting for a message, shortened."""
    text = repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def about_testset(folder: str | Path) -> JsonObject:
    """Return what is recorded of a test set.

    Raises:
        RunError: there is no complete test set in the folder.
    """
    path = Path(folder) / ABOUT
    if not path.exists():
        raise RunError(
            f"{path}: no such file; make a test set with forty2 failures testset --out {folder}"
        )
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("sha256"), dict):
        raise RunError(f"{path}: holds no test set's record; make the test set again")
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def _object(line: bytes, path: Path, number: int) -> JsonObject:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RunError(f"{path}:{number}: damaged ({error}); make it again") from error
    if not isinstance(row, dict):
        raise RunError(f"{path}:{number}: is no object; make it again")
    return row


def _item(row: JsonObject, path: Path, number: int) -> Item:
    try:
        return Item(**{**row, "messages": tuple(row["messages"])})
    except (TypeError, KeyError) as error:
        raise RunError(f"{path}:{number}: is no item of a test set ({error})") from error


def _records(path: Path, kind: type[Stored]) -> Iterator[Stored]:
    if not path.exists():
        raise RunError(f"{path}: no such file; make it with forty2 failures find {path.parent}")
    for number, line in _lines(path):
        row = _object(line, path, number)
        try:
            yield kind(**row)
        except TypeError as error:
            raise RunError(f"{path}:{number}: damaged ({error}); make it again") from error


def refuse_if_made(folder: Path) -> None:
    """Refuse to put a new test set in the place of one that replies belong to, or into `/` or `.`.

    Raises:
        DataError: there is one.
        RunError: it is no folder to write into.
    """
    refuse_no_folder(folder)
    for name in (ABOUT, REPLIES, f"{REPLIES}.part"):
        if (folder / name).exists():
            raise DataError(f"{folder / name}: exists already; name another `out`, or remove it")
