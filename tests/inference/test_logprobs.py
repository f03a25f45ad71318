"""Log-probabilities agree with float64, whatever the padding, the batch and the shortcuts."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from support.models import ARCHITECTURES, tiny_model

from forty2.inference import logprobs
from forty2.inference.generation import supports_batches
from forty2.inference.logprobs import (
    PairArrays,
    Shortcuts,
    can_share_prompts,
    compute_pair_block_input,
    logsumexp,
    response_logps,
    supervised_logps,
    supported_shortcuts,
    token_logps,
)
from forty2.inference.padding import positions
from forty2.model.kv_cache import can_pack
from forty2.model.surgery import can_split, head, sample_ids, scores_agree
from forty2.text.rows import PairRow
from forty2.training.batches import pair_batch

RNG = np.random.default_rng(1)


def ids(length: int) -> list[int]:
    return [int(i) for i in RNG.integers(1, 300, length)]


ROWS = [PairRow(ids(1 + n), ids(1 + n % 4), ids(6), f"rows:{n}") for n in range(9)]


def reference(model: Any, row: PairRow, response: list[int]) -> float:
    """Plain stock logits of the whole row, one row at a time, normalised in float64."""
    whole = row.prompt + response
    logits = np.asarray(model(mx.array([whole[:-1]])).astype(mx.float32))[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    start = len(row.prompt) - 1
    return float(sum(logps[start + n, token] for n, token in enumerate(response)))


ALL_SHORTCUTS = [Shortcuts(share, split) for share in (False, True) for split in (False, True)]


def pair_arrays(rows: list[PairRow]) -> PairArrays:
    batch = pair_batch(rows, range(len(rows)))
    return PairArrays(*map(mx.array, (*batch[:4], positions(batch.mask))))


def summed(model: Any, rows: list[PairRow], by: Shortcuts) -> np.ndarray:
    return np.asarray(response_logps(model, pair_arrays(rows), by).sum(axis=-1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_stock_logits_in_float64(architecture: str) -> None:
    model = tiny_model(architecture)
    wanted = [reference(model, r, r.chosen) for r in ROWS]
    wanted += [reference(model, r, r.rejected) for r in ROWS]
    assert supported_shortcuts(model).split_head
    for by in ALL_SHORTCUTS:
        if supported_shortcuts(model).shared_prompts or not by.shared_prompts:
            np.testing.assert_allclose(summed(model, ROWS, by), wanted, atol=1e-4)


def test_which_models_share_prompts() -> None:
    """gemma2's attention takes no mask of its own per row: it must fall back, not fail."""
    sharing = {name: can_share_prompts(tiny_model(name)) for name in ARCHITECTURES}
    assert sharing == {
        "llama": True,
        "sliding": True,
        "qwen2": True,
        "phi3": True,
        "gemma2": False,
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_16_bits_allow_what_32_do(architecture: str) -> None:
    """Sums in another order differ by tenths of a nat there, and a wrong mask by far more."""
    model = tiny_model(architecture)
    tries = (can_share_prompts, can_pack, can_split, supports_batches)
    allowed = [found(model) for found in tries]
    model.update(tree_map(lambda v: v.astype(mx.bfloat16), model.parameters()))
    assert [found(model) for found in tries] == allowed
    ids = sample_ids(model, 1, 6)
    whole, noise = model(ids), mx.random.normal(model(ids).shape)
    assert scores_agree(model, whole, whole + 0.02 * mx.sqrt(mx.var(whole)) * noise)
    halves = mx.concatenate([model(ids[:, :3]), model(ids[:, 3:])], axis=1)
    assert not scores_agree(model, whole, halves)  # as if rows packed together saw each other


@pytest.mark.parametrize("by", ALL_SHORTCUTS)
def test_neither_order_nor_company_nor_padding_changes_a_row(by: Shortcuts) -> None:
    model = tiny_model()
    together = summed(model, ROWS, by)
    backwards = summed(model, ROWS[::-1], by)
    np.testing.assert_allclose(together[:9], backwards[:9][::-1], atol=1e-4)
    longest = PairRow(ids(90), ids(70), ids(3), "long")
    padded = summed(model, [ROWS[0], longest], by)
    alone = summed(model, [ROWS[0]], by)
    np.testing.assert_allclose(padded[[0, 2]], alone, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_through_a_shared_prompt_are_those_of_whole_rows(architecture: str) -> None:
    model = tiny_model(architecture)

    def loss(weight: mx.array, by: Shortcuts) -> mx.array:
        model.model.layers[0].self_attn.o_proj.weight = weight
        # unequal shares of the tokens, so that a gradient given to the wrong one shows
        logps = response_logps(model, pair_arrays(ROWS), by)
        return (logps * mx.arange(logps.size).reshape(logps.shape)).mean()

    weight = model.model.layers[0].self_attn.o_proj.weight
    model.train()
    plain, *others = (
        np.asarray(mx.grad(functools.partial(loss, by=by))(weight))
        for by in ALL_SHORTCUTS
        if supported_shortcuts(model).shared_prompts or not by.shared_prompts
    )
    assert np.abs(plain).max() > 1e-3
    for other in others:
        np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_small_chunks_of_the_head_change_nothing(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    model.train()
    states = mx.array(RNG.normal(0, 1, (2, 9, 32)).astype(np.float32))
    targets = mx.array(RNG.integers(0, 300, (2, 9)))
    where = mx.array([0, 3, 17, 5, -1, -1])
    weights = mx.array(RNG.normal(0, 1, 6).astype(np.float32))

    def fused(states: mx.array) -> mx.array:
        return (supervised_logps(model, states, targets, where) * weights).sum()

    def plain(states: mx.array) -> mx.array:
        logps = token_logps(head(model, states), targets).reshape(-1)[mx.maximum(where, 0)]
        return (mx.where(where >= 0, logps, 0.0) * weights).sum()

    wanted, slope = mx.value_and_grad(plain)(states)
    for elements in (1, 1 << 10, 1 << 24):
        monkeypatch.setattr(logprobs, "HEAD_CPU", elements)
        for function in (fused, mx.compile(fused)):
            got, gradient = mx.value_and_grad(function)(states)
            assert float(got) == pytest.approx(float(wanted), rel=1e-5)
            np.testing.assert_allclose(np.asarray(gradient), np.asarray(slope), atol=1e-5)


@pytest.mark.parametrize(("elements", "positions"), [(3 * 300 + 299, 3), (299, 1)])
def test_chunks_hold_as_many_logits_as_fit_and_one_position_at_least(
    monkeypatch: pytest.MonkeyPatch, elements: int, positions: int
) -> None:
    monkeypatch.setattr(logprobs, "head_elements", lambda: elements)
    model = tiny_model()  # of 300 tokens
    assert logprobs.head_chunk(model, mx.zeros((4, model.args.hidden_size))) == positions


def test_the_head_s_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head over a large vocabulary never holds the logits of all rows, forwards or backwards."""
    monkeypatch.setattr(logprobs, "HEAD_CPU", 1 << 20)
    model = tiny_model(vocab_size=20_000)
    model.freeze()
    model.train()
    targets = mx.array(RNG.integers(0, 20_000, (1, 2000)))

    def peak(rows: int) -> float:
        states = mx.array(RNG.normal(0, 1, (1, rows, 32)).astype(np.float32))
        where = mx.arange(rows)
        mx.eval(states, where)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        loss = mx.value_and_grad(
            lambda s: supervised_logps(model, s, targets[:, :rows], where).sum()
        )
        mx.eval(loss(states))
        return mx.get_peak_memory() - before

    assert peak(2000) < 1.2 * peak(500)
    assert peak(2000) < 2000 * 20_000 * 4 / 3


def test_log_sum_exp_does_not_drift_over_a_large_vocabulary() -> None:
    """Promise 3: right to 0.005 on a 500-token answer; one level of fp32 sums is not."""
    logits = RNG.normal(0, 3, (500, 49_152)).astype(np.float32)
    wide = logits.astype(np.float64)
    wanted = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
    got = np.asarray(logsumexp(mx.array(logits))).astype(np.float64)
    assert abs((got - wanted).sum()) < 0.005
    assert np.abs(got - wanted).max() < 5e-6


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 1000])
def test_log_sum_exp_of_any_vocabulary_and_its_gradient(vocabulary: int) -> None:
    logits = mx.array(RNG.normal(0, 4, (3, vocabulary)).astype(np.float32))
    np.testing.assert_allclose(
        np.asarray(logsumexp(logits)), np.asarray(mx.logsumexp(logits, axis=-1)), rtol=1e-5
    )
    gradient = mx.grad(lambda x: logsumexp(x).sum())(logits)
    np.testing.assert_allclose(
        np.asarray(gradient), np.asarray(mx.softmax(logits, axis=-1)), rtol=1e-5, atol=1e-6
    )


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits = mx.array(RNG.normal(0, 3, (1, 40, 5000))).astype(mx.bfloat16)
    targets = mx.array(RNG.integers(0, 5000, (1, 40)))
    got = token_logps(logits, targets)
    assert got.dtype == mx.float32
    wide = np.asarray(logits.astype(mx.float32))[0].astype(np.float64)
    lse = np.log(np.exp(wide).sum(-1))
    wanted = wide[np.arange(40), np.asarray(targets)[0]] - lse
    np.testing.assert_allclose(np.asarray(got)[0], wanted, atol=1e-4)


def test_a_batch_of_pairs_becomes_the_arrays_of_its_fields() -> None:
    batch = pair_batch(ROWS[:3], range(3))
    arrays = logprobs.pair_arrays(batch)
    fields = (batch.prefixes, batch.prefix_lengths, batch.inputs, batch.targets)
    for array, field in zip(arrays, (*fields, positions(batch.mask)), strict=True):
        np.testing.assert_array_equal(np.asarray(array), field)


def test_with_stored_states_the_frozen_blocks_are_not_run() -> None:
    """Nor are the ids below them read again: other ids with the same states score the same."""
    model = tiny_model()
    other = [PairRow(ids(len(r.prompt)), r.chosen, r.rejected, r.origin) for r in ROWS]
    pairs, others = pair_arrays(ROWS), pair_arrays(other)
    states = compute_pair_block_input(model, pairs, 1)
    by = Shortcuts(shared_prompts=True, split_head=True)
    wanted = response_logps(model, pairs, by)
    assert mx.allclose(response_logps(model, others, by, states), wanted, atol=1e-5)
    assert not mx.allclose(response_logps(model, others, by), wanted, atol=1e-2)


def test_positions_far_apart_in_size_each_have_their_own_softmax() -> None:
    probabilities, log_totals = logprobs.softmax(mx.array([[900.0, 900.0], [-900.0, -900.0]]))
    np.testing.assert_allclose(np.asarray(probabilities), 0.5)
    np.testing.assert_allclose(np.asarray(log_totals)[:, 0], [900.0, -900.0], atol=0.7)


def test_a_plain_model_takes_both_shortcuts() -> None:
    assert supported_shortcuts(tiny_model()) == (True, True)
