"""Packing: choice of the rows that share a sequence, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_POOL = 4096
"""Rows that are packed together."""
_MOST_SEGMENTS = 255
"""Most rows in a pack."""


def packed(lengths: Sequence[int], capacity: int) -> Iterator[list[int]]:
    """Yield for each sequence the indices of its rows: best fit, longest first, pool after pool.

    Every row comes once and whole.

    Args:
        lengths: tokens of each row, none above `capacity`.
        capacity: most tokens of a sequence.
    """
    for start in range(0, len(lengths), _POOL):
        pool = range(start, min(start + _POOL, len(lengths)))
        packs: list[list[int]] = []
        by_room: dict[int, list[list[int]]] = {}
        """Packs by the tokens that still fit into them."""
        for i in sorted(pool, key=lambda i: -lengths[i]):
            room = next((r for r in range(lengths[i], capacity + 1) if by_room.get(r)), None)
            if room is None:
                pack: list[int] = []
                packs.append(pack)
                room = capacity
            else:
                pack = by_room[room].pop()
            pack.append(i)
            if len(pack) < _MOST_SEGMENTS:
                by_room.setdefault(room - lengths[i], []).append(pack)
        yield from (sorted(pack) for pack in packs)
