"""Tables with columns of any name: which one is the question, which one the answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from forty2.data.formats import parse
from forty2.data.messages import short
from forty2.data.records import Chat, Pair, Rated, Record, Text
from forty2.data.row_keys import truth_of
from forty2.data.sources import no_rows, read_rows
from forty2.errors import DataError, first_names
from forty2.files import JsonObject

Kind = Literal["chats", "pairs", "thumbs"]
NEEDED: Mapping[Kind, tuple[str, ...]] = {
    "chats": ("prompt", "completion"),
    "pairs": ("prompt", "chosen", "rejected"),
    "thumbs": ("prompt", "completion", "label"),
}
"""Our names of the columns that a table of each kind must have."""
MEANING = {
    "prompt": "the question",
    "completion": "the answer",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "label": "the verdict (good or bad)",
    "system": "the system prompt",
}
"""Content of each of our columns, for questions to the user."""
_OTHER_NAMES = {
    "prompt": ("question", "frage", "ask", "query", "user", "instruction", "input", "message"),
    "completion": ("answer", "antwort", "reply", "response", "output", "assistant"),
    "chosen": ("better", "besser", "good", "gut", "preferred", "accepted", "best"),
    "rejected": ("worse", "schlecht", "bad", "dispreferred", "refused", "worst"),
    "label": ("thumb", "daumen", "vote", "verdict", "rating", "feedback", "liked", "helpful"),
    "system": ("system",),
}
"""Parts of names that other people give to these columns, the likeliest first."""
_GOOD = {"yes", "y", "good", "up", "+1", "👍", "like", "ja", "gut"}
_BAD = {"no", "n", "bad", "down", "-1", "👎", "dislike", "nein", "schlecht"}
VERDICTS = "yes or no, good or bad, up or down, like or dislike, ja or nein, gut or schlecht, +1 or -1, 👍 or 👎"
"""Verdicts in words that are read beside true and false, for a reader."""
_RECORDS: Mapping[Kind, tuple[type, ...]] = {
    "chats": (Chat, Text),
    "pairs": (Pair,),
    "thumbs": (Rated,),
}
_TRIED_ROWS = 20
"""Rows of a file that are tried before its columns count as unknown."""
_MOST_FAULTY = 0.1
"""Share of a file's rows that may be left out for a fault; with more, the file is not what it should be."""


class OtherKind(DataError):
    """A row is of another kind than was asked for."""


class UnknownColumns(DataError):
    """No row of a table has a shape that is read; its columns must be named."""

    def __init__(
        self, file: str, kind: Kind, rows: Sequence[JsonObject], mapping: Mapping[str, str]
    ) -> None:
        self.file = file
        self.kind = kind
        self.columns = [*rows[0]]
        self.guess = guess_columns(kind, rows)
        """Our name of each column that was recognised, by theirs."""
        strange = [name for name in mapping if named_in(name, self.columns) is None]
        known = f"there is no column {first_names(strange, 3)}; " if strange else ""
        questions = " and ".join(f"which is {MEANING[name]} ({name})" for name in NEEDED[kind])
        super().__init__(
            f"{file}: {known}the columns are {first_names(self.columns, 12)}; say {questions}: "
            f"`mapping` {written_mapping(self.guess, kind)}"
        )


def read_mapping(texts: Sequence[str]) -> dict[str, str]:
    """Read mappings as the command line takes them, `question=prompt,answer=completion`.

    Returns:
        Our name of each column, by theirs.

    Raises:
        DataError: one is written otherwise, or names something twice.
    """
    mapping: dict[str, str] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        theirs, equals, ours = (word.strip() for word in part.rpartition("="))
        ours = "completion" if ours == "response" else ours
        if not equals or not theirs or ours not in MEANING:
            turned = f"; did you mean {ours}={theirs}?" if theirs in MEANING else ""
            raise DataError(
                f"`mapping` {part}: write COLUMN=NAME, where NAME is one of "
                f"{', '.join(MEANING)}{turned}"
            )
        if theirs in mapping:
            raise DataError(f"`mapping` {part}: the column {theirs} is named twice; keep one")
        mapping[theirs] = ours
    return mapping


def written_mapping(mapping: Mapping[str, str], kind: Kind) -> str:
    """Write a mapping as `--map` takes it; a column that is not known is COLUMN."""
    found = {ours: theirs for theirs, ours in mapping.items()}
    parts = [f"{found.get(name, 'COLUMN')}={name}" for name in NEEDED[kind]]
    parts += [f"{found['system']}=system"] if "system" in found else []
    text = ",".join(parts)
    return f"'{text}'" if any(not (c.isalnum() or c in "=,_-") for c in text) else text


def guess_columns(kind: Kind, rows: Sequence[JsonObject]) -> dict[str, str]:
    """Guess what the columns of a table hold, by their names, else by their order.

    Returns:
        Our name of each column, by theirs; a name is missing where no column is left for it.
    """
    columns = [column for column in rows[0] if isinstance(rows[0][column], str | int | bool)]
    guess: dict[str, str] = {}
    for ours in (*NEEDED[kind], "system"):
        likely = (
            column
            for part in (ours, *_OTHER_NAMES[ours])
            for column in columns
            if part in column.casefold() and column not in guess
        )
        theirs = next(likely, None)
        if theirs is not None:
            guess[theirs] = ours
    for ours in NEEDED[kind]:
        if ours not in guess.values():
            left = (
                column for column in columns if column not in guess and _fits(ours, rows, column)
            )
            theirs = next(left, None)
            if theirs is not None:
                guess[theirs] = ours
    return guess


def named_in(name: str, columns: Collection[str]) -> str | None:
    """Return the column of this name, or the only one that differs in case alone; None: there is none."""
    if name in columns:
        return name
    alike = [column for column in columns if column.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


class KindRows(NamedTuple):
    """The rows of a file that are of the kind asked for."""

    records: list[Record]
    faults: list[DataError]
    """Why each of the others was left out."""


def read_kind(file: str | Path, kind: Kind, mapping: Mapping[str, str], used: set[str]) -> KindRows:
    """Read a file as conversations, pairs or rated responses; a few bad rows may be left out.

    Args:
        mapping: our name of each column that has another, by theirs.
        used: takes the columns of the mapping that the file has.

    Raises:
        UnknownColumns: no row has a shape that is read, with the columns of the table.
        DataError: more than a tenth of the rows are bad, or of another kind.
    """
    records: list[Record] = []
    tried: list[JsonObject] = []
    errors: list[DataError] = []
    for origin, row in read_rows(file):
        in_row = {theirs: column for theirs in mapping if (column := named_in(theirs, row))}
        used.update(in_row)
        own = {column: mapping.get(column, mapping[theirs]) for theirs, column in in_row.items()}
        renamed = _renamed(row, own, origin)
        try:
            if kind == "thumbs":
                _check_verdict(renamed, origin)
            record = parse(renamed, origin)
            if not isinstance(record, _RECORDS[kind]):
                raise OtherKind(f"{origin}: {_other_kind(record)}, not `{kind}`")
        except DataError as error:
            errors.append(error)
            known = isinstance(error, OtherKind) and kind == "chats"
            if not (known or set(NEEDED[kind]) <= renamed.keys() or not _is_flat(row)):
                tried.append(row)
            if not records and len(errors) == _TRIED_ROWS:
                break
        else:
            records.append(record)
    if tried and not records and len(tried) == len(errors):
        unknown = UnknownColumns(str(file), kind, tried, mapping)
        columns_left = len(unknown.columns) >= len(NEEDED[kind])
        if columns_left or not isinstance(errors[0], OtherKind):
            raise unknown
    if len(errors) > _MOST_FAULTY * (len(records) + len(errors)):
        if len(errors) == 1:
            raise errors[0]
        all_tried = not records and len(errors) == _TRIED_ROWS
        others = (
            f"none of the first {_TRIED_ROWS} rows can be read"
            if all_tried
            else f"the first of {len(errors):,} bad rows"
        )
        raise DataError(f"{errors[0]} ({others})")
    if not records:
        raise no_rows(file)
    return KindRows(records, errors)


def _renamed(row: JsonObject, mapping: Mapping[str, str], origin: str) -> JsonObject:
    """Give the columns of a row our names, and write a verdict in words as true or false."""
    renamed: JsonObject = {}
    for theirs, value in row.items():
        ours = mapping.get(theirs, theirs)
        if ours in renamed:
            raise DataError(f"{origin}: {theirs} and another column are both {ours}; keep one")
        renamed[ours] = value
    verdict = renamed.get("label")
    if isinstance(verdict, str) and verdict.strip().casefold() in _GOOD | _BAD:
        renamed["label"] = verdict.strip().casefold() in _GOOD
    return renamed


def _check_verdict(row: JsonObject, origin: str) -> None:
    """Refuse a verdict in other words than those that are read.

    Raises:
        DataError: it lists them.
    """
    if "label" in row and truth_of(row["label"]) is None:
        raise DataError(
            f"{origin}: label is {short(row['label'])}; write true or false, 1 or 0, {VERDICTS}"
        )


def _is_flat(row: JsonObject) -> bool:
    """Return whether a row has single values only, as those of a table have."""
    return bool(row) and not any(isinstance(value, list | dict) for value in row.values())


def _fits(ours: str, rows: Sequence[JsonObject], column: str) -> bool:
    """Return whether a column may hold verdicts: at most two values; or else texts: more than two."""
    values = {str(row.get(column)) for row in rows}
    return len(values) <= 2 if ours == "label" else len(values) > 2 or len(rows) <= 2


def _other_kind(record: Record) -> str:
    match record:
        case Pair():
            return "is a pair: give the file as `pairs`"
        case Rated():
            return "is a rated answer: give the file as `thumbs`"
        case _:
            return "is a conversation: give the file as `chats`"
