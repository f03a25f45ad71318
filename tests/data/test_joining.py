"""Groups are those that joins make, in whatever order they are joined."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forty2.data.joining import Joining


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7))))
def test_the_order_of_joins_changes_nothing(pairs: list[tuple[int, int]]) -> None:
    one, other = Joining(8), Joining(8)
    for a, b in pairs:
        one.join(a, b)
    for a, b in reversed(pairs):
        other.join(b, a)
    assert one.groups() == other.groups()
    assert sorted(place for group in one.groups() for place in group) == list(range(8))
    assert one.groups() == sorted(one.groups()) and all(g == sorted(g) for g in one.groups())
    number = {place: n for n, group in enumerate(one.groups()) for place in group}
    assert all(number[a] == number[b] for a, b in pairs)


def test_what_is_joined_through_others_is_one_group() -> None:
    joining = Joining(5)
    joining.join(4, 2)
    joining.join(0, 4)
    assert joining.groups() == [[0, 2, 4], [1], [3]]
