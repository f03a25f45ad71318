"""Whether one feature of the texts tells chosen from rejected."""

from __future__ import annotations

from collections import Counter

from forty2.data.records import Pair
from forty2.data.views import words_of

_MOST_PAIRS, _FEWEST_PAIRS = 20_000, 30


class Sides:
    """What tells chosen from rejected, counted over pairs of one type."""

    def __init__(self) -> None:
        self.pairs = 0
        self._longer = 0
        self._shorter = 0
        self._balance: Counter[str] = Counter()
        """Per feature: pairs where only the chosen has it less those where only the rejected has."""

    def add(self, pair: Pair) -> None:
        if self.pairs == _MOST_PAIRS:
            return
        self.pairs += 1
        self._longer += len(pair.chosen) > len(pair.rejected)
        self._shorter += len(pair.chosen) < len(pair.rejected)
        chosen, rejected = _features(pair.chosen), _features(pair.rejected)
        self._balance.update(chosen - rejected)
        self._balance.subtract(rejected - chosen)

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
