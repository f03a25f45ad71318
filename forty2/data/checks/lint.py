"""The lint: find faults in training data before a run spends a night on it.

Errors would spoil a run or its measurement; warnings deserve a look. Rows are read one at a time and
little but hashes of them is stored, so a file larger than memory can be linted. The checks are in
the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from forty2.data.checks.answers import LanguageCheck, SidesCheck, TruncationCheck, VerdictCheck
from forty2.data.checks.contamination import Benchmark
from forty2.data.checks.findings import Check, Finding, Origins, SplitName, checked_row
from forty2.data.checks.repetition import RepetitionCheck, SharedNamesCheck
from forty2.data.checks.shortcuts import ShortcutCheck
from forty2.data.checks.texts import (
    CONTROL,
    BenchmarkCheck,
    LengthCheck,
    RenderedCheck,
    RoleCheck,
    TextCheck,
    ThoughtCheck,
)
from forty2.data.formats import parse, to_row
from forty2.data.ignored import IgnoredKeys
from forty2.data.record_texts import answer_of, prompt_of, rejected_of
from forty2.data.records import Record
from forty2.data.sources import no_rows, read_rows
from forty2.errors import DataError
from forty2.files import JsonObject

_UNREADABLE = "not readable: "
_MOST_REASONS = 5
"""Reasons why rows are not readable that are reported apart."""


class Linter:
    """Takes in rows one at a time and finds what is wrong with them, alone and together.

    Args:
        benchmarks: from `benchmark_of`; training rows that overlap with them are errors.
        specials: the tokenizer's special tokens; default: the spellings in common use.
        fits: returns what is wrong with a record's length; None: nothing.
    """

    def __init__(
        self,
        benchmarks: Sequence[Benchmark] = (),
        specials: Collection[str] = (),
        fits: Callable[[Record], str | None] | None = None,
    ) -> None:
        self._unreadable: dict[str, list[str]] = {}
        """Origins of rows that are not records, by the reason."""
        self._origins = Origins()
        self._source: str | Path = ""
        """The first source that was read."""
        self.ignored = IgnoredKeys()
        """Keys of the rows taken in that nothing reads."""
        # Findings with the same check name are listed in this order.
        self._checks: list[Check] = [
            TextCheck(specials),
            RenderedCheck(),
            ThoughtCheck(),
            RoleCheck(),
            SidesCheck(),
            TruncationCheck(),
            LanguageCheck(),
            VerdictCheck(),
            RepetitionCheck(),
            SharedNamesCheck(),
            ShortcutCheck(),
        ]
        if benchmarks:
            self._checks.append(BenchmarkCheck(benchmarks))
        if fits is not None:
            self._checks.append(LengthCheck(fits))

    def read(self, source: str | Path, split: SplitName) -> None:
        """Take in all rows of a source.

        Raises:
            DataError: it cannot be read from the start. Anything that is not a row is a finding.
        """
        self._source = self._source or source
        for origin, row in readable_rows(source, self.add_unreadable):
            try:
                record = parse(row, origin)
            except DataError as error:
                self.add_unreadable(str(error))
            else:
                self.add(record, split)

    def add(self, record: Record, split: SplitName) -> None:
        """Take in one record."""
        self.ignored.add(record)
        row = checked_row(record, self._origins.add(record.origin), split)
        for check in self._checks:
            check.add(row)

    def add_unreadable(self, message: str) -> None:
        """Take in an error about a row that is not a record: one line that begins with its origin."""
        origin, _, reason = message.partition(": ")
        if len(self._unreadable) < _MOST_REASONS or reason in self._unreadable:
            self._unreadable.setdefault(reason, []).append(origin)
        else:
            self._unreadable.setdefault("other reasons", []).append(origin)

    def findings(self) -> list[Finding]:
        """Return all findings, errors first."""
        found = []
        for reason, origins in self._unreadable.items():
            message = f"{_UNREADABLE}{origins[0]}: {reason}"
            found.append(Finding("row", "error", message, len(origins), tuple(origins[:5])))
        if not len(self._origins):
            none = no_rows(self._source) if self._source and not found else None
            message = "no readable row at all" if none is None else str(none)
            found.append(Finding("row", "error", message, 0, ()))
            return found
        for check in self._checks:
            for fault in check.faults():
                where = tuple(self._origins[index] for index in fault.first)
                found.append(Finding(fault.check, fault.level, fault.message, fault.count, where))
        return sorted(found, key=lambda f: (f.level, f.check != "row", f.check))

    def refuse_errors(self, source: str) -> list[Finding]:
        """Return the warnings; raise if there are errors.

        Args:
            source: the training data, for the message.

        Raises:
            DataError: names the first faults, how to see them all, and how to train regardless.
        """
        findings = self.findings()
        errors = [finding for finding in findings if finding.level == "error"]
        if not errors:
            return findings
        if errors[0].check == "row" and errors[0].count == 1:
            raise DataError(errors[0].message.removeprefix(_UNREADABLE))
        faults = "; ".join(
            f"{f.count:,} × {f.message}" + (f" ({f.origins[0]})" if f.origins else "")
            for f in errors[:3]
        )
        more = f"; and {len(errors) - 3} more kinds" if len(errors) > 3 else ""
        raise DataError(
            f"{faults}{more}. See `forty2 data lint {source}`; to train on it anyway, set the "
            "phase's `lint: false`"
        )


def lint(
    train: str | Path,
    valid: str | Path | None = None,
    *,
    benchmarks: Sequence[Benchmark] = (),
    specials: Collection[str] = (),
    fits: Callable[[Record], str | None] | None = None,
) -> list[Finding]:
    """Find what is wrong with a training source and its validation source.

    Args:
        benchmarks, specials, fits: as for `Linter`.

    Raises:
        DataError: a source cannot be read at all.
    """
    linter = Linter(benchmarks, specials, fits)
    linter.read(train, "train")
    if valid is not None:
        linter.read(valid, "valid")
    return linter.findings()


def fixed(source: str | Path, counts: dict[str, int]) -> Iterator[JsonObject]:
    """Yield the readable rows of a source, once each, without control characters.

    Args:
        counts: filled with the number of rows kept, unreadable, duplicate and mended.

    Raises:
        DataError: no row is readable.
    """
    counts.update(dict.fromkeys(("kept", "unreadable", "duplicate", "mended"), 0))

    def count_unreadable(message: str) -> None:
        counts["unreadable"] += 1

    found: set[int] = set()
    for origin, row in readable_rows(source, count_unreadable):
        clean = {key: _without_control(value) for key, value in row.items()}
        try:
            record = parse(clean, origin)
        except DataError as error:
            count_unreadable(str(error))
            continue
        key = hash((prompt_of(record), answer_of(record), rejected_of(record)))
        if key in found:
            counts["duplicate"] += 1
            continue
        found.add(key)
        counts["kept"] += 1
        counts["mended"] += clean != row
        yield to_row(record)
    if not found:
        if not counts["unreadable"]:
            raise no_rows(source)
        raise DataError(f"{source}: holds no row that can be kept")


def readable_rows(
    source: str | Path, complain: Callable[[str], None]
) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for the rows of a source, and skip everything that is not a row.

    Args:
        complain: called with a one-line message about each thing skipped.

    Raises:
        DataError: it cannot be read from the start.
    """
    begun = False
    try:
        for found in read_rows(source, complain):
            begun = True
            yield found
    except DataError as error:
        if not begun:
            raise
        complain(str(error))


def _without_control(value: object) -> object:
    if isinstance(value, str):
        return CONTROL.sub("", value)
    if isinstance(value, dict):
        return {key: _without_control(part) for key, part in value.items()}
    return [_without_control(part) for part in value] if isinstance(value, list) else value
