"""Checks of rows against each other: duplicates, contradictions, validation rows in training."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from forty2.data.checks.findings import CheckedRow, Fault, Level, SplitName
from forty2.data.checks.near_duplicates import NEAR, NearDuplicates, equal
from forty2.data.record_texts import prompt_turns, words_of
from forty2.data.records import Rated

_SHORT = 5
"""Words; answers to the same prompt that are no longer than this must agree."""
_EMPTY = hash("")


class RepetitionCheck:
    """Compares rows by hashes of their texts; takes about 180 bytes a row."""

    def __init__(self) -> None:
        self._rows, self._prompts, self._answers = array("q"), array("q"), array("q")
        self._folded_prompts, self._rejected = array("q"), array("q")
        self._words = array("l")
        self._rated, self._valid = array("b"), array("b")
        self._near = NearDuplicates()

    def add(self, row: CheckedRow) -> None:
        self._rows.append(hash((row.prompt, row.answer, row.rejected)))
        # Chat templates remove blanks at the ends, so they tell nothing apart.
        self._prompts.append(hash(row.prompt.strip()))
        folded = " ".join(words_of(row.prompt)) if row.prompt else row.record.origin
        self._folded_prompts.append(hash(folded))
        self._answers.append(hash(row.answer.strip()))
        self._rejected.append(hash(row.rejected.strip()))
        self._words.append(len(row.answer.split()))
        self._rated.append(isinstance(row.record, Rated))
        self._valid.append(row.split == "valid")
        self._near.add(" ".join([*prompt_turns(row.record), row.answer, row.rejected]))

    def faults(self) -> Iterator[Fault]:
        yield from self._repeated()
        yield from self._contradicting()
        yield from self._in_both_splits()
        yield from self._similar()

    def _in_validation(self) -> npt.NDArray[np.bool_]:
        """Return a mask (rows,), true for validation rows."""
        return np.asarray(self._valid, np.bool_)

    def _repeated(self) -> Iterator[Fault]:
        """Yield rows that are in one split twice."""
        valid = self._in_validation()
        for split, members in (("training", ~valid), ("validation", valid)):
            where = np.flatnonzero(members)
            groups = list(equal(np.asarray(self._rows)[where]))
            if groups:
                again = np.sort(where[np.concatenate([group[1:] for group in groups])])
                message = f"repeats an earlier {split} row; weight rows with `weight` instead"
                yield Fault.in_rows("duplicate", "error", message, again)

    def _contradicting(self) -> Iterator[Fault]:
        """Yield rows with the same prompt and answers that exclude each other."""
        prompts, answers = np.asarray(self._prompts), np.asarray(self._answers)
        short, rejected = np.asarray(self._words) <= _SHORT, np.asarray(self._rejected)
        rated = np.asarray(self._rated, np.bool_)  # several responses may be desirable
        swapped: list[int] = []
        both: list[int] = []
        differing: list[int] = []
        varied: list[int] = []
        for group in equal(prompts):
            if prompts[group[0]] == _EMPTY:
                continue
            preferred = set(answers[group].tolist())
            if preferred & set(rejected[group].tolist()) - {_EMPTY}:
                (both if rated[group].any() else swapped).extend(group.tolist())
            elif (
                len(preferred) > 1 and (rejected[group] == _EMPTY).all() and not rated[group].any()
            ):
                (differing if short[group].all() else varied).extend(group.tolist())
        kinds: list[tuple[list[int], Level, str]] = [
            (swapped, "error", "one row's preferred answer is another's rejected one"),
            (both, "error", "one answer to a prompt is both desirable and undesirable"),
            (differing, "error", "one prompt has different short answers"),
            (varied, "warning", "one prompt has several long answers"),
        ]
        for rows, level, message in kinds:
            if rows:
                yield Fault.in_rows("contradiction", level, message, rows)

    def _in_both_splits(self) -> Iterator[Fault]:
        """Yield validation rows whose prompt is trained on."""
        valid = self._in_validation()
        rows, folded = np.asarray(self._rows), np.asarray(self._folded_prompts)
        shared = valid & np.isin(folded, folded[~valid])
        if shared.any():
            copies = int(np.isin(rows[valid], rows[~valid]).sum())
            note = f" ({copies} of them whole rows: weighted before the split?)" if copies else ""
            message = f"validation prompt is in training too{note}; split by prompt"
            yield Fault.in_rows("overlap", "error", message, np.flatnonzero(shared))

    def _similar(self) -> Iterator[Fault]:
        """Yield near duplicates, within a split and across the two."""
        near: set[int] = set()
        across: set[int] = set()
        valid, rows = self._in_validation(), np.asarray(self._rows)
        for group in self._near.groups():
            first, others = group[0], group[1:]
            others = others[rows[others] != rows[first]]
            near.update(others.tolist())
            if not valid[first]:
                across.update(others[valid[others]].tolist())
        if across:
            message = "validation row is nearly a training row"
            yield Fault.in_rows("near", "warning", message, sorted(across))
        if near - across:
            message = f"nearly repeats an earlier row (similarity at least {NEAR})"
            yield Fault.in_rows("near", "warning", message, sorted(near - across))


class SharedNamesCheck:
    """Finds validation rows that share an `entity` or `template` with training rows."""

    def __init__(self) -> None:
        self._first: dict[str, dict[SplitName, dict[str, int]]] = {
            key: {"train": {}, "valid": {}} for key in ("entity", "template")
        }
        """First row with each name, by key and split."""

    def add(self, row: CheckedRow) -> None:
        for key, names in self._first.items():
            name = row.record.meta.get(key)
            if isinstance(name, str):
                names[row.split].setdefault(name.casefold(), row.index)

    def faults(self) -> Iterator[Fault]:
        for key, names in self._first.items():
            both = [names["valid"][name] for name in names["valid"] if name in names["train"]]
            if both:
                level: Level = "error" if key == "entity" else "warning"
                message = f"validation {key} is in training too"
                yield Fault.in_rows("overlap", level, message, both)
