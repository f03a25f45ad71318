"""Places in groups, where whatever is joined, directly or through others, is one group."""

from __future__ import annotations


class Joining:
    """The places 0 to count - 1, each in a group of its own at first (a disjoint-set forest)."""

    def __init__(self, count: int) -> None:
        self._first = list(range(count))

    def join(self, one: int, other: int) -> None:
        """Make one group of the two that these places are in."""
        low, high = sorted((self._root(one), self._root(other)))
        self._first[high] = low

    def groups(self) -> list[list[int]]:
        """Return the places of each group, ascending; the groups by their first places."""
        found: dict[int, list[int]] = {}
        for place in range(len(self._first)):
            found.setdefault(self._root(place), []).append(place)
        return list(found.values())

    def _root(self, place: int) -> int:
        while self._first[place] != place:
            self._first[place] = self._first[self._first[place]]
            place = self._first[place]
        return place
