"""Replayed rows make up their shares of a phase's rows, and no own row is left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forty2.errors import DataError
from forty2.text.replaying import Replay, ReplaySource, Unit, add_replayed
from forty2.text.rows import AnyRow, FittedRows, PairRow, RatedRow, Row, row_length


def conversations(
    name: str, n: int, length: int = 4, weights: Sequence[float] = (1.0,)
) -> list[Row]:
    return [
        Row([1] * length, [True] * length, f"{name}:{i}", weight=weights[i % len(weights)])
        for i in range(n)
    ]


def fitted(rows: Sequence[AnyRow]) -> FittedRows:
    return FittedRows(list(rows), [], [])


def replay(*shares: float, by: Unit = "rows", seed: int = 1) -> Replay:
    names = "abc"[: len(shares)]
    sources = (ReplaySource(n, f"{n}.jsonl", share) for n, share in zip(names, shares, strict=True))
    return Replay(tuple(sources), by, seed)


@given(st.integers(20, 300), st.integers(1, 400), st.integers(5, 80), st.integers(0, 9))
def test_shares_are_of_all_rows_and_every_own_row_stays(
    own: int, other: int, percent: int, seed: int
) -> None:
    parts = fitted(conversations("own", own)), fitted(conversations("a", other))
    share = percent / 100
    rows, (found,) = add_replayed(parts[0], [parts[1]], replay(share, seed=seed))
    assert rows.rows[:own] == parts[0].rows
    weight = sum(row.weight for row in rows.rows[own:])
    assert abs(weight / (own + weight) - share) <= 1 / own
    assert found.of_rows == pytest.approx(weight / (own + weight))
    origins = [row.origin for row in rows.rows]
    assert len(set(origins)) == len(origins)  # again by weight, never as a copy
    assert found.rows == len(origins) - own <= found.available == other
    assert found.uses == pytest.approx(weight / found.rows)
    assert add_replayed(parts[0], [parts[1]], replay(share, seed=seed))[0] == rows


def test_shares_of_several_sources_by_tokens() -> None:
    """γ of MyPT's later recipe: 50% its own, 35% α, 15% β."""
    own = fitted(conversations("own", 400, length=10))
    others = [fitted(conversations("a", 900, length=5)), fitted(conversations("b", 900, length=40))]
    rows, (a, b) = add_replayed(own, others, replay(0.35, 0.15, by="tokens"))
    assert (a.of_tokens, b.of_tokens) == pytest.approx((0.35, 0.15), abs=0.002)
    assert (a.rows, b.rows) == (560, 30)  # of 8,000 tokens
    assert sum(row_length(row) for row in rows.rows) == 8000
    assert "560 of the 900 rows of a: 56.6% of the rows and 35.0% of the tokens" in str(a)


def test_weights_count_in_the_shares() -> None:
    own = fitted(conversations("own", 100, weights=(2.0,)))
    other = fitted(conversations("a", 300, weights=(0.5, 1.5)))
    rows, (found,) = add_replayed(own, [other], replay(0.2))
    assert found.of_rows == pytest.approx(0.2, abs=0.01)
    assert sum(row.weight for row in rows.rows[100:]) == pytest.approx(50, abs=1)


def test_pairs_and_ratings_are_replayed_as_well() -> None:
    pairs = [PairRow([1], [2, 3], [4], f"p:{i}") for i in range(40)]
    ratings = [RatedRow([1], [2], [], True, f"r:{i}") for i in range(40)]
    for rows in (pairs, ratings):
        mixed, _ = add_replayed(fitted(rows[:30]), [fitted(rows[30:])], replay(0.25))
        assert len(mixed.rows) == 40


def test_what_cannot_be_drawn_is_one_line() -> None:
    own = fitted(conversations("own", 5))
    with pytest.raises(DataError, match=r"^a\.jsonl: no row to replay fits"):
        add_replayed(own, [fitted([])], replay(0.2))
    with pytest.raises(DataError, match=r"^a\.jsonl: 0\.05 of so few rows is none"):
        add_replayed(own, [fitted(conversations("a", 9))], replay(0.05))
