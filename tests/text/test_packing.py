"""Packs take every row once and whole, and leave little room unused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forty2.text.packing import packed


@given(st.lists(st.integers(1, 64), min_size=1, max_size=300))
def test_packing_takes_every_row_once_and_whole(lengths: list[int]) -> None:
    packs = list(packed(lengths, 64))
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    rooms = [sum(lengths[i] for i in pack) for pack in packs]
    assert max(rooms) <= 64 and max(map(len, packs)) <= 255
    assert sum(room <= 32 for room in rooms) <= 1 or max(map(len, packs)) == 255
