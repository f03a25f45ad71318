"""What is wrong with training data, before a night is spent on it.

Errors would spoil a run or its measurement; warnings want a look. Rows pass through one at a time
and leave little but hashes behind, so a file larger than memory can be linted.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from forty2.data.checks.contamination import Benchmark, contaminated
from forty2.data.checks.near_duplicates import NEAR, NearDuplicates, equal
from forty2.data.checks.shortcuts import Sides
from forty2.data.formats import parse, to_row
from forty2.data.records import Chat, Message, Pair, Rated, Record, Text
from forty2.data.sources import read_rows
from forty2.data.views import (
    answer_of,
    other_of,
    prompt_of,
    spoken_of,
    texts_of,
    whole_of,
    words_of,
)
from forty2.errors import DataError

SHORTCUT = 0.9
"""A single feature that tells chosen from rejected more often than this is reported."""
_LANGUAGE_ROWS = 2000
_UNREADABLE = "not readable: "

_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]"
)
_SPECIAL = re.compile(r"<\|[\w-]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</s>")
_ENDED = re.compile(r"""[.!?:;…。！？"'”’»)\]}>*`|~]\s*$""")
_PERSONAL = {
    "an e-mail address": re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]*[a-z]{2}\b", re.I),
    "a telephone number": re.compile(
        r"(?<![\w.])\+\d{1,3}[ -]?(?:\(\d{1,4}\)[ -]?)?\d(?:[ -]?\d){6,11}\b"
    ),
    "an IBAN": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "a card number": re.compile(r"\b\d(?:[ -]?\d){12,18}\b"),
    "an IP address": re.compile(
        r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b"
    ),
}
_NOT_PERSONAL = re.compile(r"example\.|@(?:\w+\.)?test\b|127\.0\.0\.1|0\.0\.0\.0|192\.168\.")

Level = Literal["error", "warning"]
Split = Literal["train", "valid"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault and where it is."""

    check: str
    level: Level
    message: str
    count: int
    origins: tuple[str, ...]
    """The first few."""


def lint(
    train: str | Path,
    valid: str | Path | None = None,
    *,
    benchmarks: Sequence[Benchmark] = (),
    specials: Collection[str] = (),
    fits: Callable[[Record], str | None] | None = None,
) -> list[Finding]:
    """Everything found in a training source and the validation source beside it.

    Args:
        benchmarks: from `benchmark_of`; rows that overlap with them are errors.
        specials: the tokenizer's special tokens; default: the spellings in common use.
        fits: says what is wrong with a record's length, or None.

    Raises:
        DataError: a source cannot be read at all.
    """
    linter = Linter(benchmarks, specials, fits)
    linter.read(train, "train")
    if valid is not None:
        linter.read(valid, "valid")
    return linter.findings()


def refuse_faults(train: str, valid: str | None, specials: Collection[str]) -> None:
    """Stop at data with errors.

    Raises:
        DataError: names the first faults, how to see them all, and how to train all the same.
    """
    errors = [f for f in lint(train, valid, specials=specials) if f.level == "error"]
    if not errors:
        return
    if errors[0].check == "row" and errors[0].count == 1:
        raise DataError(errors[0].message.removeprefix(_UNREADABLE))
    told = "; ".join(
        f"{f.count:,} × {f.message}" + (f" ({f.origins[0]})" if f.origins else "")
        for f in errors[:3]
    )
    more = f"; and {len(errors) - 3} more kinds" if len(errors) > 3 else ""
    raise DataError(
        f"{told}{more}. See `forty2 data lint {train}`; to train on it as it is, set the phase's "
        "`lint: false`"
    )


def fixed(source: str | Path, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The rows that can be kept: readable ones, once each, without control characters.

    Args:
        counts: takes in how many rows were kept, and how many dropped or mended, by reason.

    Raises:
        DataError: there is none.
    """
    counts.update(dict.fromkeys(("kept", "unreadable", "duplicate", "mended"), 0))
    seen: set[int] = set()
    for origin, row in _readable(source, lambda _: _add(counts, "unreadable")):
        clean = _without_control(row)
        try:
            record = parse(clean, origin)
        except DataError:
            _add(counts, "unreadable")
            continue
        key = hash(whole_of(record))
        if key in seen:
            _add(counts, "duplicate")
            continue
        seen.add(key)
        _add(counts, "kept")
        counts["mended"] += clean != row
        yield to_row(record)
    if not seen:
        raise DataError(f"{source}: holds no row that can be kept")


class Linter:
    """Collects what is needed to judge rows that pass by once."""

    def __init__(
        self,
        benchmarks: Sequence[Benchmark] = (),
        specials: Collection[str] = (),
        fits: Callable[[Record], str | None] | None = None,
    ) -> None:
        self._benchmarks = benchmarks
        self._special = (
            re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
            if specials
            else _SPECIAL
        )
        self._fits = fits
        self._found: dict[tuple[str, Level, str], list[int]] = defaultdict(list)
        self._unreadable: list[str] = []
        self._origins = _Origins()
        self._valid_from: int | None = None
        self._rows, self._prompts, self._answers = array("q"), array("q"), array("q")
        self._folded, self._rejected = array("q"), array("q")
        self._words = array("l")
        self._rated = array("b")
        self._verdicts: dict[Split, Counter[bool]] = {"train": Counter(), "valid": Counter()}
        self._entities: dict[Split, dict[str, int]] = {"train": {}, "valid": {}}
        self._templates: dict[Split, dict[str, int]] = {"train": {}, "valid": {}}
        self._near = NearDuplicates()
        self._kinds: dict[str, Sides] = defaultdict(Sides)
        self._languages: Counter[str] = Counter()
        self._unended = [0, 0]

    def read(self, source: str | Path, split: Split) -> None:
        """Take in all rows of a source; what is no record is a finding, not an exception."""
        if split == "valid":
            self._valid_from = len(self._rows)
        for origin, row in _readable(source, self._unreadable.append):
            try:
                record = parse(row, origin)
            except DataError as error:
                self._unreadable.append(str(error))
            else:
                self.add(record, split)

    def add(self, record: Record, split: Split) -> None:
        """Take in one record."""
        index = self._origins.add(record.origin)
        prompt, answer, other = prompt_of(record), answer_of(record), other_of(record)
        self._rows.append(hash(whole_of(record)))
        self._prompts.append(hash(prompt))
        self._folded.append(hash(" ".join(words_of(prompt))) if prompt else hash(record.origin))
        self._answers.append(hash(answer))
        self._rejected.append(hash(other))
        self._words.append(len(answer.split()))
        self._rated.append(isinstance(record, Rated))
        if isinstance(record, Rated):
            self._verdicts[split][record.desirable] += 1
        for name, store in (("entity", self._entities), ("template", self._templates)):
            if isinstance(record.meta.get(name), str):
                store[split].setdefault(record.meta[name].casefold(), index)
        self._near.add(" ".join([*spoken_of(record), answer, other]))
        self._text(record, index)
        if isinstance(record, Pair | Rated):
            self._kinds[str(record.meta.get("pair_type", ""))].add(record)
        if split == "train" and (against := contaminated(record, self._benchmarks)):
            self._note("benchmark", "error", f"overlaps with {against}; take it out", index)
        if self._fits is not None and (problem := self._fits(record)):
            self._note("length", "error" if "response" in problem else "warning", problem, index)

    def findings(self) -> list[Finding]:
        """All findings, errors first."""
        found = [
            Finding(check, level, message, len(rows), self._origins.first(rows))
            for (check, level, message), rows in self._found.items()
        ]
        if self._unreadable:
            message = f"{_UNREADABLE}{self._unreadable[0]}"
            where = tuple(line.split(": ")[0] for line in self._unreadable[:5])
            found.append(Finding("row", "error", message, len(self._unreadable), where))
        if not len(self._rows):
            found.append(Finding("row", "error", "no readable row at all", 0, ()))
        else:
            found += [*self._repeated(), *self._contradicting(), *self._leaking()]
            found += [*self._similar(), *self._shortcuts(), *self._mixed(), *self._cut()]
            found += self._one_sided()
        return sorted(found, key=lambda f: (f.level, f.check != "row", f.check))

    # --- of one row ---

    def _note(self, check: str, level: Level, message: str, index: int) -> None:
        rows = self._found[check, level, message]
        if rows[-1:] != [index]:
            rows.append(index)

    def _text(self, record: Record, index: int) -> None:
        for text in texts_of(record):
            if _CONTROL.search(text):
                self._note("control", "error", "holds control or invisible characters", index)
            if token := self._special.search(text):
                message = f"spells the special token {token[0]}"
                self._note("special", "error", message, index)
            for what, pattern in _PERSONAL.items():
                match = pattern.search(text)
                if match and not _NOT_PERSONAL.search(match[0]) and _plausible(what, match[0]):
                    self._note("personal", "warning", f"holds {what}", index)
        if isinstance(record, Chat) and (problem := _disorder(record.messages)):
            self._note("roles", "error", problem, index)
        answer = answer_of(record)
        if len(answer) >= 200:
            self._unended[0] += 1
            if not _ENDED.search(answer) and not isinstance(record, Text):
                self._unended[1] += 1
                self._note("truncated", "warning", "its answer breaks off without an end", index)
        if self._languages.total() < _LANGUAGE_ROWS and len(answer) >= 40:
            self._languages[_language(answer)] += 1

    # --- of rows together ---

    def _splits(self) -> npt.NDArray[np.bool_]:
        """True where a row is for validation."""
        valid = np.zeros(len(self._rows), np.bool_)
        if self._valid_from is not None:
            valid[self._valid_from :] = True
        return valid

    def _repeated(self) -> Iterator[Finding]:
        valid = self._splits()
        for split, members in (("training", ~valid), ("validation", valid)):
            where = np.flatnonzero(members)
            groups = list(equal(np.asarray(self._rows)[where]))
            if groups:
                again = np.sort(where[np.concatenate([group[1:] for group in groups])])
                message = f"repeats an earlier {split} row; weight rows with `weight` instead"
                yield self._finding("duplicate", "error", message, again)

    def _contradicting(self) -> Iterator[Finding]:
        """One prompt, answers that exclude each other."""
        prompts, answers = np.asarray(self._prompts), np.asarray(self._answers)
        short, rejected = np.asarray(self._words) <= 5, np.asarray(self._rejected)
        rated = np.asarray(self._rated, np.bool_)  # of those, several may be liked
        swapped: list[int] = []
        differing: list[int] = []
        varied: list[int] = []
        for group in equal(prompts):
            if prompts[group[0]] == hash(""):
                continue
            liked = set(answers[group].tolist())
            if liked & set(rejected[group].tolist()) - {hash("")}:
                swapped += group.tolist()
            elif len(liked) > 1 and (rejected[group] == hash("")).all() and not rated[group].any():
                (differing if short[group].all() else varied).extend(group.tolist())
        if swapped:
            message = "one row's preferred answer is another's rejected one"
            yield self._finding("contradiction", "error", message, swapped)
        if differing:
            message = "one prompt has different short answers"
            yield self._finding("contradiction", "error", message, differing)
        if varied:
            message = "one prompt has several long answers"
            yield self._finding("contradiction", "warning", message, varied)

    def _leaking(self) -> Iterator[Finding]:
        """What validation has seen in training."""
        valid = self._splits()
        if not valid.any():
            return
        rows, folded = np.asarray(self._rows), np.asarray(self._folded)
        seen = valid & np.isin(folded, folded[~valid])
        if seen.any():
            copies = int(np.isin(rows[valid], rows[~valid]).sum())
            note = f" ({copies} of them whole rows: weighted before the split?)" if copies else ""
            message = f"validation prompt is in training too{note}; split by prompt"
            yield self._finding("overlap", "error", message, np.flatnonzero(seen))
        level: Level
        for what, store, level in (
            ("entity", self._entities, "error"),
            ("template", self._templates, "warning"),
        ):
            both = [store["valid"][name] for name in store["valid"] if name in store["train"]]
            if both:
                message = f"validation {what} is in training too"
                yield self._finding("overlap", level, message, both)

    def _similar(self) -> Iterator[Finding]:
        """Near duplicates, in training and across the split."""
        near: set[int] = set()
        across: set[int] = set()
        valid, rows = self._splits(), np.asarray(self._rows)
        for group in self._near.groups():
            first, others = group[0], group[1:]
            others = others[rows[others] != rows[first]]
            near.update(others.tolist())
            if not valid[first]:
                across.update(others[valid[others]].tolist())
        if across:
            message = "validation row is nearly a training row"
            yield self._finding("near", "warning", message, sorted(across))
        if near - across:
            message = f"nearly repeats an earlier row (similarity at least {NEAR})"
            yield self._finding("near", "warning", message, sorted(near - across))

    def _shortcuts(self) -> Iterator[Finding]:
        for kind, sides in sorted(self._kinds.items()):
            feature, accuracy = sides.best()
            if accuracy > SHORTCUT:
                of = f" of {kind} pairs" if kind else ""
                message = f"{feature} alone tells {accuracy:.0%}{of} apart"
                yield Finding("shortcut", "error", message, sides.pairs, ())

    def _one_sided(self) -> Iterator[Finding]:
        """Verdicts that are all alike, with nothing to tell them from."""
        for split, verdicts in self._verdicts.items():
            if len(verdicts) == 1:
                ((desirable, count),) = verdicts.items()
                of = "training" if split == "train" else "validation"
                message = f"every {of} answer has the verdict {str(desirable).lower()}"
                yield Finding("verdicts", "error", message, count, ())

    def _mixed(self) -> Iterator[Finding]:
        total = self._languages.total()
        often = [(name, n) for name, n in self._languages.most_common() if n >= 0.03 * total]
        if total >= 50 and len(often) > 1:
            shares = ", ".join(f"{name} {n / total:.0%}" for name, n in often)
            yield Finding("language", "warning", f"answers are in {shares}", total, ())

    def _cut(self) -> Iterator[Finding]:
        """Where most answers end without a full stop it is their style: no finding then."""
        whole, unended = self._unended
        if whole and unended / whole > 0.5:
            for key in [key for key in self._found if key[0] == "truncated"]:
                del self._found[key]
        return iter(())

    def _finding(self, check: str, level: Level, message: str, rows: Any) -> Finding:
        return Finding(check, level, message, len(rows), self._origins.first(rows))


class _Origins:
    """Origins in little room: the text before the last number once per file, then numbers."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._prefixes: list[str] = []
        self._numbers = array("q")

    def add(self, origin: str) -> int:
        digits = len(origin) - len(origin.rstrip("0123456789"))
        prefix = origin[: len(origin) - digits]
        if not self._prefixes or self._prefixes[-1] != prefix:
            self._starts.append(len(self._numbers))
            self._prefixes.append(prefix)
        self._numbers.append(int(origin[len(prefix) :] or -1))
        return len(self._numbers) - 1

    def first(self, rows: Iterable[int], most: int = 5) -> tuple[str, ...]:
        return tuple(self._at(int(i)) for i, _ in zip(rows, range(most), strict=False))

    def _at(self, index: int) -> str:
        prefix = self._prefixes[bisect_right(self._starts, index) - 1]
        return f"{prefix}{self._numbers[index] if self._numbers[index] >= 0 else ''}"


# --- texts ----------------------------------------------------------------------------------------


def _readable(
    source: str | Path, complain: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a source; complaints where there should be one.

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


def _disorder(messages: Sequence[Message]) -> str | None:
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        return "a system message stands after the first turn"
    spoken = [role for role in roles if role in ("user", "assistant")]
    if spoken[:1] == ["assistant"]:
        return "the assistant speaks first"
    tools = "tool" in roles
    if any(a == b for a, b in pairwise(spoken)) and not tools:
        return "two turns of one role follow each other"
    return None


def _language(text: str) -> str:
    import py3langid

    return str(py3langid.classify(text)[0])


def _plausible(what: str, found: str) -> bool:
    """Whether a number has a card's check digit (Luhn); other things are plausible as they are."""
    if what != "a card number":
        return True
    digits = [int(c) for c in found if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return len(digits) >= 13 and (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def _without_control(value: Any) -> Any:
    if isinstance(value, str):
        return _CONTROL.sub("", value)
    if isinstance(value, dict):
        return {key: _without_control(part) for key, part in value.items()}
    return [_without_control(part) for part in value] if isinstance(value, list) else value


def _add(counts: dict[str, int], key: str) -> None:
    counts[key] += 1
