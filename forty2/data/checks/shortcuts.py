"""Check for shortcuts: one feature of the texts that predicts chosen against rejected."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator

from forty2.data.checks.findings import CheckedRow, Fault
from forty2.data.record_texts import text_of, words_of
from forty2.data.records import Pair, Rated

SHORTCUT = 0.9
"""Accuracy above which a single feature that predicts chosen against rejected is reported."""
_MOST_PAIRS, _FEWEST_PAIRS = 20_000, 30


class ShortcutCheck:
    """Finds features that predict the preferred side, for each type of pair."""

    def __init__(self) -> None:
        self._types: dict[str, Features] = defaultdict(Features)

    def add(self, row: CheckedRow) -> None:
        if isinstance(row.record, Pair | Rated):
            self._types[str(row.record.meta.get("pair_type", ""))].add(row.record)

    def faults(self) -> Iterator[Fault]:
        for name, features in sorted(self._types.items()):
            feature, accuracy = features.best()
            if accuracy > SHORTCUT:
                pairs = f"{name} pairs" if name else "pairs"
                message = (
                    f"{feature} alone predicts the preferred side of {accuracy:.0%} of {pairs}"
                )
                yield Fault("shortcut", "error", message, features.pairs)


class Features:
    """Counts of the features of both sides, over pairs of one type."""

    def __init__(self) -> None:
        self.pairs = 0
        self._longer = 0
        self._shorter = 0
        self._unmatched: deque[tuple[bool, str]] = deque(maxlen=_MOST_PAIRS)
        """Verdict and text of rated responses that have no partner with the other verdict yet."""
        self._balance: Counter[str] = Counter()
        """For each feature, pairs where only the chosen has it minus pairs where only the rejected has."""

    def add(self, record: Pair | Rated) -> None:
        """Take in a pair, or a rated response, which is paired with one of the other verdict."""
        if isinstance(record, Pair):
            self._add(text_of(record.chosen), text_of(record.rejected))
            return
        response = text_of(record.response)
        if not self._unmatched or self._unmatched[0][0] == record.desirable:
            self._unmatched.append((record.desirable, response))
        else:
            _, other = self._unmatched.popleft()
            self._add(*((response, other) if record.desirable else (other, response)))

    def _add(self, chosen: str, rejected: str) -> None:
        if self.pairs == _MOST_PAIRS:
            return
        self.pairs += 1
        self._longer += len(chosen) > len(rejected)
        self._shorter += len(chosen) < len(rejected)
        in_chosen, in_rejected = _features(chosen), _features(rejected)
        self._balance.update(in_chosen - in_rejected)
        self._balance.subtract(in_rejected - in_chosen)

    def best(self) -> tuple[str, float]:
        """Return the feature that predicts best, and its accuracy, 0 to 1; pairs without it count half."""
        if self.pairs < _FEWEST_PAIRS:
            return "", 0.0
        length = abs(self._longer - self._shorter)
        name, balance = max(
            self._balance.items(), key=lambda item: (abs(item[1]), item[0]), default=("", 0)
        )
        if length >= abs(balance):
            return "length", 0.5 + length / self.pairs / 2
        return name, 0.5 + abs(balance) / self.pairs / 2


def _features(text: str) -> set[str]:
    words = words_of(text)
    found = {f"the word {word!r}" for word in words}
    found |= {f"the opening {' '.join(words[:n])!r}" for n in (1, 2, 3) if len(words) >= n}
    found.add(f"the first character {text.lstrip()[:1]!r}")
    found.add(f"the last character {text.rstrip()[-1:]!r}")
    found |= {f"the character {c!r}" for c in text if not c.isalnum()}
    return found
