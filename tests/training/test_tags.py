"""Rows of tags train alone, and as in a whole table; weights of tokens count exactly, however rows lie."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.processes import OneOfTwo
from support.tagged_models import (
    ADAPTER,
    ADDED,
    CLOSE,
    KINDS,
    PACKED,
    PAIRS,
    ROWS,
    tagged,
    whole_tables,
)
from support.training import dpo, sft
from support.training import run as train

from forty2.inference import logprobs, padding
from forty2.inference.logprobs import NO_SHORTCUTS, Shortcuts, supported_shortcuts
from forty2.model.adapter import adapter_weights
from forty2.model.surgery import frozen_depth
from forty2.model.tag_rows import tag_weights
from forty2.model.tags import find_tables
from forty2.text.rows import Row
from forty2.training.batched_loss import BatchedLoss, ConversationLoss, PairLoss, batched_loss
from forty2.training.evaluation import evaluate
from forty2.training.frozen_states import states_to_store
from forty2.training.optimizers import make_optimizer
from forty2.training.processes import ALONE, Group
from forty2.training.reference import reference_logps
from forty2.training.step import Stepper

BOTH = Shortcuts(shared_prompts=True, split_head=True)


def gradients(
    model: Any, objective: BatchedLoss, parts: list[range], group: Group = ALONE
) -> dict[str, np.ndarray]:
    """Compute those of the mean loss, through the stepper's own accumulation."""
    caught: dict[str, np.ndarray] = {}
    phase = sft(clip_norm=None)
    optimizer: Any = make_optimizer(phase)
    optimizer.update = lambda _, tree: caught.update(
        {name: np.asarray(value) for name, value in tree_flatten(tree)}
    )
    model.train()
    batches = [objective.batch(part) for part in parts]
    Stepper(model, optimizer, objective, phase, group).step(batches, 1e-3)
    return caught


def of_whole_tables(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cut the tags' rows out of the gradients of whole tables."""
    return {
        name.replace(".weight", ".tag_rows"): value[ADDED.first : ADDED.end]
        if name.endswith(".weight")
        else value
        for name, value in found.items()
    }


def pair_loss(model: Any, shortcuts: Shortcuts, folder: Path) -> PairLoss:
    reference = reference_logps(model, PAIRS, range(len(PAIRS)), folder / "reference.npz")
    for layer in model.layers[1:]:  # away from its reference
        layer.self_attn.q_proj.lora_b += 0.2
    return PairLoss(PAIRS, reference, dpo(), shortcuts)


def check(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("chunk", [1, 1 << 22], ids=["chunks", "one chunk"])
@pytest.mark.parametrize(("architecture", "tied"), KINDS)
def test_rows_of_tags_have_the_gradient_of_the_whole_table(
    architecture: str, tied: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(
        whole_tables(architecture, tied=tied), ConversationLoss(ROWS, NO_SHORTCUTS), [range(8)]
    )
    monkeypatch.setattr(logprobs, "HEAD_CPU", 320 * 7 if chunk == 1 else chunk)
    model = tagged(architecture, tied=tied)
    split_head = ConversationLoss(ROWS, Shortcuts(split_head=True))
    check(gradients(model, split_head, [range(3), range(3, 8)]), of_whole_tables(whole))


def test_packed_rows_have_the_gradient_of_the_whole_table() -> None:
    for tied in (True, False):
        rows = [*ROWS[:2], PACKED]
        whole = gradients(whole_tables(tied=tied), ConversationLoss(rows, NO_SHORTCUTS), [range(3)])
        packed = ConversationLoss(rows, Shortcuts(split_head=True))
        check(gradients(tagged(tied=tied), packed, [range(3)]), of_whole_tables(whole))


@pytest.mark.parametrize("tied", [True, False])
def test_pairs_with_shared_prompts_have_the_gradient_of_the_whole_table(
    tied: bool, tmp_path: Path
) -> None:
    model = whole_tables(tied=tied)
    whole = gradients(model, pair_loss(model, NO_SHORTCUTS, tmp_path / "1"), [range(6)])
    model = tagged(tied=tied)
    assert supported_shortcuts(model) == BOTH
    check(
        gradients(model, pair_loss(model, BOTH, tmp_path / "2"), [range(2), range(2, 6)]),
        of_whole_tables(whole),
    )


@pytest.mark.parametrize("tied", [True, False])
def test_two_processes_have_the_gradient_of_one(tied: bool) -> None:
    def objective() -> ConversationLoss:
        return ConversationLoss(ROWS, Shortcuts(split_head=True))

    alone = gradients(tagged(tied=tied), objective(), [range(8)])
    other = OneOfTwo(1)
    gradients(tagged(tied=tied), objective(), [range(5, 8)], other)
    check(gradients(tagged(tied=tied), objective(), [range(5)], OneOfTwo(0, other.sent)), alone)


def test_states_behind_frozen_blocks_are_not_stored_while_tags_train() -> None:
    """The blocks' inputs change with the rows of tags, and so does what the blocks put out."""
    model, phase = tagged(), sft(epochs=9, steps=None)
    assert frozen_depth(model) == 0
    stored = states_to_store(model, phase, ROWS, range(8), passes=9, shortcuts=BOTH)
    assert stored is None


def test_no_gradient_of_a_whole_table_is_computed() -> None:
    found = gradients(tagged(), ConversationLoss(ROWS, Shortcuts(split_head=True)), [range(8)])
    assert {value.shape for name, value in found.items() if "embed" in name} == {(2, 32)}


@pytest.mark.parametrize("steps", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_old_rows_are_bit_identical_and_new_ones_learn(steps: int) -> None:
    model, phase = tagged(tied=False), sft(lr=1e-2, weight_decay=0.1)
    before = [np.asarray(table.weight) for table in find_tables(model)]
    rows = {name: np.asarray(value) for name, value in tag_weights(model).items()}
    objective = ConversationLoss(ROWS[:2], Shortcuts(split_head=True))
    stepper = Stepper(model, make_optimizer(phase), objective, phase)
    batch = objective.batch(range(2))
    losses = [stepper.step([batch], 1e-2).loss for _ in range(steps)]
    for table, old in zip(find_tables(model), before, strict=True):
        np.testing.assert_array_equal(table.weight, old)
    for name, value in tag_weights(model).items():
        assert (np.asarray(value) != rows[name]).all()
    assert losses[-1] < losses[0] - 0.5


def test_a_phase_killed_at_any_step_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    phase = sft(steps=3, tags_lr=0.05, save_every_steps=1)
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    whole = tagged(dropout=0.1)
    train(whole, objective, phase, tmp_path / "whole", spec=ADAPTER)
    for killed_after in (1, 2):

        class Killed(ConversationLoss):
            steps = 0

            def batch(self, indices: Any, last: int = killed_after) -> Any:
                self.steps += self.steps <= last
                if self.steps > last:
                    raise KeyboardInterrupt
                return super().batch(indices)

        work = tmp_path / f"killed{killed_after}"
        with pytest.raises(KeyboardInterrupt):
            killed = Killed(ROWS, Shortcuts(split_head=True))
            train(tagged(dropout=0.1), killed, phase, work, spec=ADAPTER)
        model = tagged(dropout=0.1)
        train(model, objective, phase, work, spec=ADAPTER)
        for name, value in adapter_weights(whole).items():
            np.testing.assert_array_equal(adapter_weights(model)[name], value, err_msg=name)


def test_tags_have_a_learning_rate_of_their_own() -> None:
    def step(**rates: float) -> dict[str, np.ndarray]:
        model, phase = tagged(), sft(optimizer="sgd", clip_norm=None, **rates)
        before = {name: np.asarray(value) for name, value in adapter_weights(model).items()}
        objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
        stepper = Stepper(model, make_optimizer(phase), objective, phase)
        stepper.step([objective.batch(range(8))], rates["lr"] / 2)  # half-way through a warm-up
        now = adapter_weights(model)
        return {name: np.asarray(now[name]) - value for name, value in before.items()}

    plain, own = step(lr=1e-2), step(lr=1e-2, tags_lr=5e-2)
    for name, change in plain.items():
        factor = 5 if "tag_rows" in name else 1
        np.testing.assert_allclose(own[name], factor * change, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="mlx compiles for the CPU with a C++ compiler")
@pytest.mark.parametrize("tied", [True, False])
def test_a_compiled_step_is_the_plain_one(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Metal, where every step is compiled."""

    def trained(device: mx.Device) -> list[np.ndarray]:
        model, phase = tagged(tied=tied, dropout=0.1), sft(tags_lr=5e-2)
        model.train()
        objective = ConversationLoss(ROWS, Shortcuts(split_head=True), token_weights={CLOSE: 2.0})
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda: device)
            stepper = Stepper(model, make_optimizer(phase), objective, phase)
        for step, limit in enumerate((math.inf, 0.1, math.inf)):  # the second is skipped
            mx.random.seed(step)
            stepper.step([objective.batch(range(8)), objective.batch(range(4))], 1e-2, limit)
        return [np.asarray(value) for value in adapter_weights(model).values()]

    plain, compiled = trained(mx.Device(mx.cpu)), trained(mx.Device(mx.gpu))
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_rows_without_a_tag_train_the_head_and_stop_nothing(tmp_path: Path) -> None:
    """The embedding of an untied model then has no gradient, which is no fault."""
    plain = [row._replace(ids=[5, *row.ids[1:-1], 6]) for row in ROWS]
    model = tagged(tied=False)
    embedding = np.asarray(model.model.embed_tokens.tag_rows)
    objective = ConversationLoss(plain, Shortcuts(split_head=True))
    train(model, objective, sft(steps=3), tmp_path, spec=ADAPTER)
    np.testing.assert_array_equal(model.model.embed_tokens.tag_rows, embedding)


def test_logits_are_not_kept_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "HEAD_CPU", 20_032 * 50)
    rows = [Row([258, *range(1, 100)], [False] + [True] * 99, str(n)) for n in range(6)]
    peaks = []
    for frozen in (logprobs.head_is_frozen, lambda model: False):
        monkeypatch.setattr(logprobs, "head_is_frozen", frozen)
        model = tagged(vocab_size=20_000)
        objective = ConversationLoss(rows, Shortcuts(split_head=True))
        stepper = Stepper(model, make_optimizer(sft()), objective, sft())
        model.train()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        stepper.step([objective.batch(range(6))], 1e-3)
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[0] < 0.5 * peaks[1]


# --- weights of tokens ---

WEIGHTS = {CLOSE: 2.5, 7: 0.5, ROWS[0].ids[4]: 4.0}


def weighted(rows: list[Row]) -> ConversationLoss:
    return ConversationLoss(rows, Shortcuts(split_head=True), token_weights=WEIGHTS)


def by_hand(model: Any, rows: list[Row]) -> float:
    """Compute Σ w · nll / Σ w over the supervised tokens, one row and token at a time."""
    loss = total = 0.0
    for row in rows:
        logits = np.asarray(model(mx.array([row.ids])), np.float64)[0]
        logps = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for n, (token, on) in enumerate(zip(row.ids, row.mask, strict=True)):
            if on:
                weight = WEIGHTS.get(token, 1.0)
                loss, total = loss - weight * logps[n - 1, token], total + weight
    return float(loss / total)


def apart(row: Row) -> list[Row]:
    """Take a packed row apart."""
    parts = (slice(6), slice(6, 12))
    return [row._replace(ids=row.ids[s], mask=row.mask[s], segments=None) for s in parts]


def test_the_loss_is_the_weighted_mean_over_all_tokens() -> None:
    model = tagged()
    wanted = by_hand(model, ROWS)
    assert evaluate(model, weighted(ROWS))["loss"] == pytest.approx(wanted, abs=1e-5)
    assert wanted != pytest.approx(evaluate(model, ConversationLoss(ROWS))["loss"], abs=0.01)
    of_phase = batched_loss(sft(), ROWS, None, token_weights=WEIGHTS)
    assert evaluate(model, of_phase)["loss"] == pytest.approx(wanted, abs=1e-5)


def test_the_first_token_that_can_be_supervised_is_weighted_too() -> None:
    model, rows = tagged(), [Row([5, CLOSE, 9], [False, True, True], "text.txt:1")]
    wanted = by_hand(model, rows)
    assert evaluate(model, weighted(rows))["loss"] == pytest.approx(wanted, abs=1e-5)


def test_padded_positions_have_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where their number is padded, whatever token stands first."""
    monkeypatch.setattr(padding, "on_gpu", lambda: True)
    ids = [5, CLOSE, *[9] * 16]
    loss = weighted([Row(ids, [False] + [True] * 17, "text.txt:1")])
    batch = loss.batch([0])
    assert batch.weight == WEIGHTS[CLOSE] + 16 and loss.arrays(batch)[1].size > 17


def test_weights_are_summed_in_64_bits() -> None:
    third = float(np.float32(1 / 3))
    rows = [Row([7] * 300, [False] + [True] * 299, "text.txt:1")]
    loss = ConversationLoss(rows, token_weights={7: third})
    assert loss.batch([0]).weight == pytest.approx(299 * third, rel=1e-12)


@pytest.mark.parametrize("split_head", [True, False])
def test_packing_changes_no_weight(split_head: bool) -> None:
    model, rows = tagged(), [*ROWS[:2], PACKED]
    loss = ConversationLoss(rows, Shortcuts(split_head=split_head), token_weights=WEIGHTS)
    wanted = by_hand(model, [*ROWS[:2], *apart(PACKED)])
    assert evaluate(model, loss)["loss"] == pytest.approx(wanted, abs=1e-5)


def test_accumulated_batches_and_two_processes_have_the_gradient_of_one_batch() -> None:
    whole = gradients(tagged(), weighted(ROWS), [range(8)])
    check(gradients(tagged(), weighted(ROWS), [range(1), range(1, 3), range(3, 8)]), whole)
    other = OneOfTwo(1)
    gradients(tagged(), weighted(ROWS), [range(5, 8)], other)
    check(gradients(tagged(), weighted(ROWS), [range(5)], OneOfTwo(0, other.sent)), whole)


def test_a_process_without_a_batch_keeps_the_weight_of_the_others() -> None:
    """Weights are no whole numbers, and are summed as none."""
    other = OneOfTwo(1)
    alone = gradients(tagged(), weighted(ROWS), [range(3)])
    gradients(tagged(), weighted(ROWS), [range(3)], other)
    check(gradients(tagged(), weighted(ROWS), [], OneOfTwo(0, other.sent)), alone)


def test_equal_weights_are_none() -> None:
    rows = ROWS[:3]
    every = {token: 2.0 for row in rows for token in row.ids}
    doubled = ConversationLoss(rows, Shortcuts(split_head=True), token_weights=every)
    check(
        gradients(tagged(), doubled, [range(3)]),
        gradients(tagged(), ConversationLoss(rows, Shortcuts(split_head=True)), [range(3)]),
    )
