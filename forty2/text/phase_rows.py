"""Reading of a phase's files: each row is parsed once, then linted, searched and encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from forty2.data.checks.contamination import ContaminationFinder, Hit
from forty2.data.checks.findings import Finding, SplitName
from forty2.data.checks.lint import Linter, readable_rows
from forty2.data.eval_proposals import system_of
from forty2.data.formats import parse
from forty2.data.ignored import IgnoredKeys
from forty2.data.records import Record
from forty2.data.row_values import KeyUse, RowValues
from forty2.data.sources import no_rows, read_rows
from forty2.data.strata import Cell
from forty2.errors import DataError
from forty2.files import JsonObject
from forty2.text.encoder import Encoder
from forty2.text.replaying import Replay, Replayed, add_replayed
from forty2.text.row_kinds import RowKind
from forty2.text.rows import AnyRow, FittedRows, fit_rows

_CHUNK = 512
"""Records that are encoded together; no more are in memory at once."""
_NO_KEYS = KeyUse()
_NO_REPLAY = Replay()


class PhaseRows(NamedTuple):
    """A phase's encoded rows, and the benchmark items found in its training rows."""

    train: FittedRows
    valid: FittedRows | None
    hits: list[Hit]
    """Sorted by origin, then by item."""
    ignored: str
    """Keys of the training rows that nothing reads, with the number of their rows; "": none."""
    system: str = ""
    """System prompt of more than half of the training rows; "": there is none."""
    lint_warnings: Sequence[Finding] = ()
    """Warnings of the lint; empty without a linter."""
    hold_out: FittedRows | None = None
    """Rows of both files that are held out by their keys; None: none are."""
    difficulty: Sequence[float] | None = None
    """How hard each training row is, by a key; None: rows are not ordered by one."""
    strata: Sequence[Cell] | None = None
    """Stratum of each training row; None: they are not divided."""
    replayed: tuple[Replayed, ...] = ()
    """Rows of earlier data at the end of the training rows, by their source."""


def read_phase_rows(
    kind: RowKind,
    source: str | Path,
    valid: str | Path | None,
    encoder: Encoder,
    max_length: int,
    *,
    linter: Linter | None = None,
    contamination: ContaminationFinder | None = None,
    use: KeyUse = _NO_KEYS,
    replay: Replay = _NO_REPLAY,
) -> PhaseRows:
    """Read a phase's training and validation rows and those that it replays, each file once.

    Args:
        kind: kind of rows that the phase's objective learns from.
        source: training rows, as `read_rows` takes them.
        valid: validation rows; None: there are none.
        max_length: most tokens of a row, prompt and response together.
        linter: a new linter, which gets every row of both files; None: rows are not checked, and the
            first bad one stops the reading.
        contamination: finds a benchmark's items in the training rows; None: they are not searched.
        use: keys of the rows that are read, and for what.
        replay: earlier data; its rows are checked and searched as the phase's own training rows.

    Raises:
        DataError: the linter finds errors; else a row is damaged, of another kind or cannot be
            encoded, or lacks a key; else no row fits into `max_length`.
    """
    reading = _Reading(kind, encoder, max_length, linter, contamination, use)
    train = reading.read(source, "train")
    earlier = [
        reading.read(one.source, "train", is_left_out=one.is_left_out) for one in replay.sources
    ]
    held_out = reading.read(valid, "valid") if valid is not None else None
    warnings = linter.refuse_errors(str(source)) if linter is not None else []
    if reading.problem is not None:
        raise reading.problem
    if use.hold_out and not reading.hold_out.rows:
        raise reading.values.nothing_held_out(str(source))
    reading.values.check_held_out(str(source))
    if use.hold_out and not (train.rows or train.dropped):
        raise DataError(f"{source}: hold_out leaves no row to train on; hold out fewer values")
    if held_out is not None and use.hold_out and not (held_out.rows or held_out.dropped):
        held_out = None  # they are all in the other set
    reading.values.check(str(source))
    hits, replayed = reading.hits, tuple[Replayed, ...]()
    if replay.sources:
        train, replayed = add_replayed(train, earlier, replay)
        drawn = {row.origin for row in train.rows}
        unused = {row.origin for fitted in earlier for row in fitted.rows} - drawn
        hits = [hit for hit in hits if hit.row not in unused]
    train = _completed(kind, source, train, max_length)
    origins = [row.origin for row in train.rows] if use.keys else []
    return PhaseRows(
        train,
        None if held_out is None else _completed(kind, str(valid), held_out, max_length),
        sorted(hits),
        str(reading.ignored),
        reading.usual_system(),
        warnings,
        _completed(kind, source, reading.hold_out, max_length) if use.hold_out else None,
        reading.values.difficulty(origins),
        reading.values.strata(origins),
        replayed,
    )


class _Reading:
    """Reads the files of one phase.

    With a linter, a row that cannot be encoded does not stop the reading: the linter's findings say
    more, and need all rows.
    """

    def __init__(
        self,
        kind: RowKind,
        encoder: Encoder,
        max_length: int,
        linter: Linter | None,
        contamination: ContaminationFinder | None,
        use: KeyUse,
    ) -> None:
        self._kind, self._encoder, self._max_length = kind, encoder, max_length
        self._linter, self._contamination = linter, contamination
        self.problem: DataError | None = None
        """Error about the first row that is of another kind or cannot be encoded."""
        self.hits: list[Hit] = []
        self.ignored = IgnoredKeys(use.keys)
        self.values = RowValues(use)
        self.hold_out = FittedRows([], [], [])
        """Rows of all files that are held out by their keys."""
        self._held_out: set[str] = set()
        """Origins of these rows in the records that are not encoded yet."""
        self._systems: Counter[str] = Counter()

    def usual_system(self) -> str:
        """Return the system prompt of more than half of the training rows; "": there is none."""
        for system, rows in self._systems.most_common(1):
            return system if 2 * rows > self._systems.total() else ""
        return ""

    def read(
        self,
        source: str | Path,
        split: SplitName,
        is_left_out: Callable[[JsonObject], bool] | None = None,
    ) -> FittedRows:
        """Read one file; rows after a problem are only linted.

        Args:
            is_left_out: function that tells the rows of earlier data that are not read; None: these are
                the phase's own rows.
        """
        rows: list[AnyRow] = []
        shortened: list[str] = []
        dropped: list[str] = []
        records = self._records(source, split, is_left_out)
        empty = True
        while chunk := list(islice(records, _CHUNK)):
            empty = False
            if self.problem is None:
                if self._held_out:
                    held_out = [one for one in chunk if one.origin in self._held_out]
                    chunk = [one for one in chunk if one.origin not in self._held_out]
                    self._held_out.clear()
                    parts = zip(self.hold_out, self._encoded(held_out), strict=True)
                    self.hold_out = FittedRows(*([*old, *new] for old, new in parts))
                fitted = self._encoded(chunk)
                rows += fitted.rows
                shortened += fitted.shortened
                dropped += fitted.dropped
        if empty:
            self._note(no_rows(source))
        return FittedRows(rows, shortened, dropped)

    def _records(
        self,
        source: str | Path,
        split: SplitName,
        is_left_out: Callable[[JsonObject], bool] | None,
    ) -> Iterator[Record]:
        """Yield the records of a file, linted and searched."""
        linter = self._linter
        rows = read_rows(source) if linter is None else readable_rows(source, linter.add_unreadable)
        for origin, row in rows:
            if is_left_out is not None and is_left_out(row):
                continue
            record = self._record(row, origin)
            if record is None:
                continue
            held_out = self.values.is_held_out(row)
            if held_out:
                self._held_out.add(origin)
            trained = split == "train" and not held_out
            if linter is not None:
                linter.add(record, "train" if trained else "valid")
            if split == "train" and is_left_out is None:
                self.ignored.add(record)
            if trained:
                self._systems[system_of(record)] += 1
                if self._contamination is not None:
                    self.hits += self._contamination.find(record)
                try:
                    self.values.add(row, origin)
                except DataError as error:
                    self._note(error)
            yield record

    def _record(self, row: JsonObject, origin: str) -> Record | None:
        """Parse a row; None: it is not a record, and the linter has taken it in as unreadable."""
        try:
            return self._kind.parse(row, origin)
        except DataError as error:
            if self._linter is None:
                raise
            try:
                record = parse(row, origin)
            except DataError as reason:
                self._linter.add_unreadable(str(reason))
                return None
            self._note(error)  # a sound row, but of another kind
            return record

    def _encoded(self, records: list[Record]) -> FittedRows:
        try:
            return fit_rows(self._kind.encode(self._encoder, records), self._max_length)
        except DataError as error:
            self._note(error)
            return FittedRows([], [], [])

    def _note(self, problem: DataError) -> None:
        if self._linter is None:
            raise problem
        self.problem = self.problem or problem


def _completed(
    kind: RowKind, source: str | Path, fitted: FittedRows, max_length: int
) -> FittedRows:
    if not fitted.rows:
        raise DataError(f"{source}: no row's response fits into max_length {max_length}")
    return fitted._replace(rows=kind.complete(fitted.rows, max_length))
