"""Checks of the answers as a whole: cut off, in several languages, or all with one verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from unicodedata import normalize

from forty2.data.checks.findings import CheckedRow, Fault, RowFaults, SplitName
from forty2.data.records import Pair, Rated, Text

_LONG = 200
"""Characters; an answer of this length or more is expected to end with a full stop."""
_HABIT_ANSWERS, _HABIT_SHARE = 10, 0.5
"""If there are at least 10 long answers and more than half of them end without a full stop, the set
is written that way."""
_LANGUAGE_ANSWERS = 2000
"""Most answers whose language is detected; the rest of a large set is assumed to be similar."""
_LANGUAGE_CHARACTERS = 40
"""Characters; the language of a shorter answer is not detected reliably."""
_ENDED = re.compile(r"""[.!?:;…。！？"'”’»)\]}>*`|~]\s*$""")


class TruncationCheck:
    """Finds long answers that break off, unless the set is written without full stops."""

    def __init__(self) -> None:
        self._answers = self._unended = 0
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        if len(row.answer) < _LONG:
            return
        self._answers += 1
        if not _ENDED.search(row.answer) and not isinstance(row.record, Text):
            self._unended += 1
            message = "its answer breaks off without an end"
            self._found.add("truncated", "warning", message, row.index)

    def faults(self) -> Iterator[Fault]:
        habit = self._unended > _HABIT_SHARE * self._answers
        if not (habit and self._answers >= _HABIT_ANSWERS):
            yield from self._found.faults()


class SidesCheck:
    """Finds pairs whose sides differ in nothing that chat templates and tokenizers keep."""

    def __init__(self) -> None:
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        if not isinstance(row.record, Pair):
            return
        chosen, rejected = row.answer.strip(), row.rejected.strip()
        if chosen == rejected:
            message = "chosen and rejected differ in blanks at their ends alone"
            self._found.add("equal", "error", message, row.index)
        elif normalize("NFC", chosen) == normalize("NFC", rejected):
            message = (
                "chosen and rejected differ in the encoding of accents alone (Unicode's NFC, NFD)"
            )
            self._found.add("equal", "error", message, row.index)

    def faults(self) -> Iterator[Fault]:
        return self._found.faults()


class LanguageCheck:
    """Finds sets whose answers are in several languages."""

    def __init__(self) -> None:
        self._languages: Counter[str] = Counter()

    def add(self, row: CheckedRow) -> None:
        if self._languages.total() < _LANGUAGE_ANSWERS and len(row.answer) >= _LANGUAGE_CHARACTERS:
            import py3langid

            self._languages[str(py3langid.classify(row.answer)[0])] += 1

    def faults(self) -> Iterator[Fault]:
        total = self._languages.total()
        often = [(name, n) for name, n in self._languages.most_common() if n >= 0.03 * total]
        if total >= 50 and len(often) > 1:
            shares = ", ".join(f"{name} {n / total:.0%}" for name, n in often)
            yield Fault("language", "warning", f"answers are in {shares}", total)


class VerdictCheck:
    """Finds rated responses that all have one verdict: nothing can be learned from them."""

    def __init__(self) -> None:
        self._verdicts: dict[SplitName, Counter[bool]] = {"train": Counter(), "valid": Counter()}

    def add(self, row: CheckedRow) -> None:
        if isinstance(row.record, Rated):
            self._verdicts[row.split][row.record.desirable] += 1

    def faults(self) -> Iterator[Fault]:
        for split, verdicts in self._verdicts.items():
            if len(verdicts) == 1:
                ((desirable, count),) = verdicts.items()
                name = "training" if split == "train" else "validation"
                message = f"every {name} answer has the verdict {str(desirable).lower()}"
                yield Fault("verdicts", "error", message, count)
