"""Every row comes as often as it should, and batches are what a phase wants of them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forty2.data.records import Chat
from forty2.model.loading import LoadedModel
from forty2.text.encoder import Encoder
from forty2.text.rows import PairRow, Row
from forty2.training.batches import Order, pair_batch, rows_of_epoch, sft_batch
from forty2.training.objectives.dpo import DpoPhase
from forty2.training.objectives.sft import SftPhase
from forty2.training.schedule import plan_phase

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


def epoch(order: Order, number: int) -> list[int]:
    first = number * order.batches_per_epoch
    return [i for n in range(order.batches_per_epoch) for i in order.batch(first + n)]


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_has_every_row_once(lengths: list[int], size: int, seed: int) -> None:
    order = Order(lengths, size, seed)
    for number in (0, 1):
        assert sorted(epoch(order, number)) == list(range(len(lengths)))


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=60), st.integers(0, 3))
@example([2.0, 2.0, 2.0], 0)
def test_an_epoch_has_each_row_as_often_as_its_weight(weights: list[float], seed: int) -> None:
    order = Order([10] * len(weights), 4, seed, weights)
    scale = rows_of_epoch(weights) / sum(weights)
    for number in range(3):
        counts = Counter(epoch(order, number))
        assert sum(counts.values()) == rows_of_epoch(weights)
        for row, weight in enumerate(weights):
            assert abs(counts[row] - weight * scale) < 1 + 1e-6


@given(LENGTHS, st.integers(1, 2000), st.integers(0, 3))
def test_batches_by_tokens_have_every_row_once_and_are_never_empty(
    lengths: list[int], tokens: int, seed: int
) -> None:
    order = Order(lengths, 1, seed, tokens=tokens)
    for number in (0, 1):
        assert sorted(epoch(order, number)) == list(range(len(lengths)))
        first = number * order.batches_per_epoch
        assert all(order.batch(first + n) for n in range(order.batches_per_epoch))


def test_a_pool_of_few_long_rows_still_has_a_row_for_each_of_its_batches() -> None:
    order = Order([1] * 21 + [5], 1, 0, [3.0] * 22, tokens=1)
    for epoch in range(4):
        start = epoch * order.batches_per_epoch
        batches = [order.batch(start + n) for n in range(order.batches_per_epoch)]
        assert all(batches) and sorted(itertools.chain(*batches)) == sorted([*range(22)] * 3)


def test_batches_by_tokens_hold_about_so_many() -> None:
    lengths = [int(n) for n in np.random.default_rng(2).exponential(80, 3000) + 4]
    order = Order(lengths, 1, 0, tokens=1000)
    batches = [order.batch(n) for n in range(order.batches_per_epoch)]
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    assert 900 < np.mean(tokens) <= 1000 and np.std(tokens) < 150
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert 1 - sum(lengths) / padded < 0.05


@pytest.mark.parametrize("rows", [70, 1000])
@pytest.mark.parametrize("length", [10, 10**12])  # sums that floats do not hold to a token, too
def test_batches_by_tokens_of_rows_alike_hold_equally_many(length: int, rows: int) -> None:
    order = Order([length] * rows, 1, 0, tokens=10 * length)
    assert {len(order.batch(n)) for n in range(order.batches_per_epoch)} == {10}


def test_any_part_of_an_epoch_of_one_row_is_that_row() -> None:
    order = Order([10], 4, 0)
    assert [order.batches_of(epochs).batches for epochs in (0.1, 0.7, 1, 2.2, 2.8)] == [
        1,
        1,
        1,
        2,
        3,
    ]


def test_over_many_epochs_a_weight_is_met_on_average() -> None:
    weights = [0.25, 1.0, 1.0, 2.5, 1.0, 0.25]
    order = Order([10] * 6, 2, 1, weights)
    counts = Counter(row for number in range(400) for row in epoch(order, number))
    for row, weight in enumerate(weights):
        assert counts[row] / 400 == pytest.approx(weight, abs=0.08)


def test_a_weight_comes_from_the_row(starter: LoadedModel) -> None:
    encoder = Encoder(starter.tokenizer)
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    assert encoder.encode_sft_record(Chat(messages=turns, meta={"weight": 2.5}))[0].weight == 2.5
    assert encoder.encode_sft_record(Chat(messages=turns))[0].weight == 1


def test_rows_of_like_length_share_a_batch() -> None:
    """A long-tailed set pads under 5%."""
    lengths = [int(20 + 400 * (i / 2000) ** 4) for i in range(2000)]
    order = Order(lengths, 8, 0)
    padded = sum(
        len(b) * max(lengths[i] for i in b)
        for b in (order.batch(n) for n in range(order.batches_per_epoch))
    )
    assert padded / sum(lengths) < 1.05


@pytest.mark.parametrize("tokens", [None, 800])
def test_batches_of_pairs_are_random_draws_and_those_of_conversations_alike(
    tokens: int | None,
) -> None:
    """A preference phase learned less from batches of like length."""
    lengths = np.random.default_rng(5).integers(20, 180, 1600)

    def spread(phase: DpoPhase | SftPhase) -> float:
        """Of the batches' mean lengths: 1 if each is a random draw, √8 if each is of one length."""
        order = plan_phase(phase, lengths.tolist(), [1.0] * 1600, seed=3).order
        means = [lengths[order.batch(n)].mean() for n in range(order.batches_per_epoch)]
        return float(np.std(means) / lengths.std() * 8**0.5)

    common: Any = {"data": "rows", "steps": 1, "lr": 1e-3, "batch_size": 8, "batch_tokens": tokens}
    assert 0.85 < spread(DpoPhase(objective="dpo", beta=0.1, **common)) < 1.2
    assert spread(SftPhase(objective="sft", **common)) > 2.5


@pytest.mark.parametrize("size", [1, 3, 5, 64])
def test_every_row_comes_once_an_epoch_and_the_order_is_a_function_of_seed_and_step(
    size: int,
) -> None:
    lengths = [int(n) for n in np.random.default_rng(3).integers(3, 400, 57)]
    order, other = Order(lengths, size, seed=4), Order(lengths, size, seed=4)
    for epoch in range(3):
        indices = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
        rows = [row for index in indices for row in order.batch(index)]
        assert sorted(rows) == list(range(57))
    assert order.batch(2) == other.batch(2)
    assert order.rows_seen(2) == sorted({*order.batch(0), *order.batch(1)})


def test_buckets_waste_little() -> None:
    lengths = [int(n) for n in np.random.default_rng(5).exponential(80, 2000) + 4]
    order = Order(lengths, 8, seed=0)
    real = padded = 0
    for index in range(order.batches_per_epoch):
        batch = [lengths[row] for row in order.batch(index)]
        real += sum(batch)
        padded += max(batch) * len(batch)
    assert 1 - real / padded < 0.06


@pytest.mark.parametrize(("gpu", "width"), [(False, 2), (True, 8)])
def test_what_is_padded_is_padded_alike(
    gpu: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forty2.inference.padding.on_gpu", lambda: gpu)
    batch = pair_batch([PairRow([5, 6, 7], [8, 9], [10], "f:1")], [0])
    assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == (2, width)


def test_pair_batches_line_up_inputs_and_targets() -> None:
    batch = pair_batch([PairRow([5, 6, 7], [8, 9], [10], "f:1")], [0])
    assert batch.prefixes[0, :2].tolist() == [5, 6]
    assert batch.inputs[0, :2].tolist() == [7, 8]
    assert batch.targets[0, :2].tolist() == [8, 9]
    assert batch.inputs[1, 0] == 7
    assert batch.targets[1, 0] == 10
    assert batch.mask.sum(axis=1).tolist() == [2, 1]
    assert batch.origins == ("f:1",)


@pytest.mark.parametrize("gpu", [False, True])
def test_packed_rows_keep_their_segments_beside_rows_of_one(
    gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forty2.inference.padding.on_gpu", lambda: gpu)
    packed = Row([5, 6, 7, 8], [False, True, False, True], "f:1", [0, 0, 1, 1])
    alone = Row([5, 6], [False, True], "f:2")
    batch = sft_batch([packed, alone], [4, 2])
    assert batch.ids.shape == (2, 9 if gpu else 4)  # the model sees all tokens but the last
    assert batch.segments is not None and batch.segments.shape == batch.ids.shape
    assert batch.segments[:, :4].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert not batch.segments[:, 4:].any()
    assert (batch.rows.tolist(), batch.origins) == ([4, 2], ("f:1", "f:2"))
    assert sft_batch([alone], [2]).segments is None
