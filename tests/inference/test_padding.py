"""Groups of similar length keep to their limit, and padded shapes are few."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forty2.inference.padding import batch_tokens, group_by_length, pad, padded_width, positions


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=80),
    st.integers(1, 2000),
    st.integers(1, 2),
)
def test_a_group_stays_within_its_tokens_unless_it_is_one_row(
    lengths: list[tuple[int, int]], tokens: int, parts: int
) -> None:
    widths = np.array(lengths)[:, :parts]
    groups = group_by_length(widths, tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert widths[group].max(axis=0).sum() * len(group) <= tokens or len(group) == 1


def test_groups_are_as_large_as_they_may_be_longest_first() -> None:
    assert group_by_length([3, 9, 5, 4], 10) == [[1], [2, 3], [0]]
    assert [len(group) for group in group_by_length([10] * 6, 30)] == [3, 3]
    assert group_by_length([], 10) == []


def test_rows_with_responses_of_one_length_share_a_group() -> None:
    """The prompts are alike, and other responses would pad by a token."""
    groups = group_by_length([[4, 2], [4, 3], [4, 2], [4, 3]], 14)
    assert sorted(map(sorted, groups)) == [[0, 2], [1, 3]]


def test_a_machine_computes_as_many_tokens_at_once_as_suit_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert batch_tokens() == 512
    assert [len(group) for group in group_by_length([128] * 8)] == [4, 4]
    monkeypatch.setattr("forty2.inference.padding.on_gpu", lambda: True)
    assert batch_tokens() == 4096
    assert [len(group) for group in group_by_length([128] * 64)] == [32, 32]


def test_groups_of_pairs_pad_little() -> None:
    """Prompts and responses of different lengths: no order brings neighbours close in both."""
    lengths = np.random.default_rng(3).integers([20, 60], [400, 200], (400, 2))
    padded = sum(lengths[g].max(axis=0).sum() * len(g) for g in group_by_length(lengths, 2000))
    assert 1 - lengths.sum() / padded < 0.12


def test_compiled_steps_have_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled step of another number of supervised tokens is another compilation."""
    counts = range(1, 2000)

    def padded_lengths() -> list[int]:
        return [len(positions(np.arange(2000) < count)) for count in counts]

    assert padded_lengths() == list(counts)
    monkeypatch.setattr("forty2.inference.padding.on_gpu", lambda: True)
    some = positions(np.array([False, True, True, False, True]))
    assert some.tolist() == [1, 2, 4, -1, -1, -1, -1, -1] and some.dtype == np.int32
    found = padded_lengths()
    assert len(set(found)) <= 8 * 8
    assert all(0 <= w - n < max(8, n / 8 + 8) for w, n in zip(found, counts, strict=True))


def test_rows_are_padded_with_zeros_on_the_right() -> None:
    assert pad([[1, 2, 3], [4]]).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert pad([[5]], 3).tolist() == [[5, 0, 0]]


def test_a_width_is_a_multiple_of_the_bucket_where_steps_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [padded_width(n) for n in (0, 1, 9)] == [1, 1, 9]
    monkeypatch.setattr("forty2.inference.padding.on_gpu", lambda: True)
    assert [padded_width(n) for n in (0, 1, 8, 9)] == [1, 8, 8, 16]
