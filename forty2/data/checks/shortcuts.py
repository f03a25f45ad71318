"""Whether one feature of the texts tells chosen from rejected, or desirable from undesirable."""

from __future__ import annotations

from collections import Counter, deque

from forty2.data.records import Pair, Rated
from forty2.data.views import words_of

_MOST_PAIRS, _FEWEST_PAIRS = 20_000, 30


class Sides:
    """What tells chosen from rejected, counted over pairs of one type."""

    def __init__(self) -> None:
        self.pairs = 0
        self._longer = 0
        self._shorter = 0
        self._unmet: deque[tuple[bool, str]] = deque(maxlen=_MOST_PAIRS)
        self._balance: Counter[str] = Counter()
        """Per feature: pairs where only the chosen has it less those where only the rejected has."""

    def add(self, record: Pair | Rated) -> None:
        """Take in a pair, or a rated response, which makes a pair with one of the other verdict."""
        if isinstance(record, Pair):
            self._add(record.chosen, record.rejected)
        elif not self._unmet or self._unmet[0][0] == record.desirable:
            self._unmet.append((record.desirable, record.response))
        else:
            _, response = self._unmet.popleft()
            sides = (record.response, response) if record.desirable else (response, record.response)
            self._add(*sides)

    def _add(self, chosen: str, rejected: str) -> None:
        if self.pairs == _MOST_PAIRS:
            return
        self.pairs += 1
        self._longer += len(chosen) > len(rejected)
        self._shorter += len(chosen) < len(rejected)
        has, lacks = _features(chosen), _features(rejected)
        self._balance.update(has - lacks)
        self._balance.subtract(lacks - has)

    def best(self) -> tuple[str, float]:
        """The most telling feature and how often guessing by it is right; ties count half."""
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
