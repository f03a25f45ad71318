"""The step and the loop: exact accumulation, exact checkpointing, resuming, stopping on NaN."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.training import ALL, PAIRS, RNG, ROWS, adapted, dpo, ids, preference, run, sft

from forty2.errors import TrainingError
from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.model.adapter import adapter_weights
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.text.rows import PairRow, RatedRow, Row
from forty2.training.batched_loss import (
    ConversationLoss,
    PairLoss,
    RatedLoss,
    micro_batches,
    reference_key,
    reference_logps,
)
from forty2.training.batches import Order, pair_batch
from forty2.training.loop import (
    Stepper,
    evaluate,
    learning_rate,
    make_optimizer,
    order_of,
    total_steps,
)
from forty2.training.objectives.kto import KtoPhase
from forty2.training.objectives.phase import Best
from forty2.training.objectives.sft import SftPhase


def gradients(model: Any, objective: Any, batches: list[Any]) -> dict[str, np.ndarray]:
    """Of the mean loss, through the stepper's own accumulation."""
    caught: dict[str, np.ndarray] = {}
    phase = objective.phase if isinstance(objective, PairLoss) else sft()
    optimizer: Any = make_optimizer(phase)
    optimizer.update = lambda _, g: caught.update(
        {name: np.asarray(value) for name, value in tree_flatten(g)}
    )
    object.__setattr__(phase, "clip_norm", None)
    Stepper(model, optimizer, objective, phase).step(batches, 1e-3)
    return caught


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_accumulated_batches_equal_the_large_batch(kind: str, tmp_path: Path) -> None:
    model = adapted()
    objective = (
        ConversationLoss(ROWS, Shortcuts(split_head=True))
        if kind == "sft"
        else preference(model, dpo(), tmp_path)
    )
    if kind == "dpo":  # away from its reference, so that losses differ by row
        model.model.layers[1].self_attn.q_proj.lora_b += 0.2
    whole = gradients(model, objective, [objective.batch(range(12))])
    parts = [objective.batch(part) for part in ([0, 1], [2], range(3, 9), [9, 10, 11])]
    accumulated = gradients(model, objective, parts)
    assert whole
    for name, value in whole.items():
        np.testing.assert_allclose(accumulated[name], value, rtol=2e-4, atol=1e-6)


def test_shapes_that_would_be_compiled_are_counted() -> None:
    model = adapted()
    objective = ConversationLoss(
        [Row(ids(n), [True] * n, str(n)) for n in (9, 9, 9, 20)], Shortcuts(split_head=True)
    )
    stepper = Stepper(model, make_optimizer(sft()), objective, sft())
    one, same, wide = ([objective.batch([n])] for n in (0, 1, 3))
    for batches, count in ((one, 1), (same, 1), (wide, 2), (one + same, 3), (same + one, 3)):
        stepper.step([*batches], 1e-3)
        assert len(stepper.shapes) == count


def test_memory_does_not_grow_with_the_batch() -> None:
    rows = [Row(ids(100), [True] * 100, str(n)) for n in range(40)]
    peaks = []
    for count in (5, 40):
        model = adapted()
        objective = ConversationLoss(rows, Shortcuts(split_head=True))
        stepper = Stepper(model, make_optimizer(sft()), objective, sft())
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        stepper.step(list(micro_batches(objective, range(count))), 1e-3)
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < 1.3 * peaks[0]


def test_gradients_agree_with_finite_differences(tmp_path: Path) -> None:
    model = adapted()
    objective = preference(model, dpo(), tmp_path)
    layer = model.model.layers[2].self_attn.q_proj
    layer.lora_b += 0.1
    batch = objective.batch(range(12))
    got = gradients(model, objective, [batch])["model.layers.2.self_attn.q_proj.lora_b"]

    def loss() -> float:
        return float(objective.loss(model, objective.arrays(batch)).total) / batch.weight

    start = np.asarray(layer.lora_b)
    for at in [(0, 0), (1, 7), (3, 31)]:
        values = []
        for sign in (1, -1):
            moved = start.copy()
            moved[at] += sign * 0.02
            layer.lora_b = mx.array(moved)
            values.append(loss())
        layer.lora_b = mx.array(start)
        assert (values[0] - values[1]) / 0.04 == pytest.approx(got[at], rel=0.02, abs=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient_even_switched_on_twice(dropout: float) -> None:
    model = adapted(dropout)
    model.train()
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    batch = [objective.batch(range(12))]
    results = []
    for times in (0, 1, 2):
        checkpoint_gradients(model, False)
        for _ in range(times):
            checkpoint_gradients(model, True)
        mx.random.seed(7)
        results.append(gradients(model, objective, batch))
    if dropout == 0:
        for name, value in results[0].items():
            np.testing.assert_allclose(results[1][name], value, rtol=1e-4, atol=1e-6)
    for name, value in results[1].items():
        np.testing.assert_array_equal(results[2][name], value)


def test_checkpointed_dropout_draws_the_same_mask_both_times() -> None:
    """With dropout the loss is a function of the masks; its gradient must be of that function."""
    model = adapted(0.3)
    model.train()
    checkpoint_gradients(model, True)
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    batch = objective.batch(range(12))
    mx.random.seed(7)
    got = gradients(model, objective, [batch])["model.layers.2.self_attn.q_proj.lora_b"]
    layer = model.model.layers[2].self_attn.q_proj
    start = np.asarray(layer.lora_b)

    def loss(value: np.ndarray) -> float:
        layer.lora_b = mx.array(value)
        mx.random.seed(7)
        return float(objective.loss(model, objective.arrays(batch)).total) / batch.weight

    for at in [(0, 0), (2, 11), (3, 31)]:
        up, down = start.copy(), start.copy()
        up[at] += 0.02
        down[at] -= 0.02
        assert (loss(up) - loss(down)) / 0.04 == pytest.approx(got[at], rel=0.03, abs=2e-5)


def test_the_first_preference_loss_is_ln_2_and_another_reference_is_refused(tmp_path: Path) -> None:
    model = adapted()
    objective = preference(model, dpo(), tmp_path)
    batch = objective.batch(range(12))
    objective.check_start(model, batch, tolerance=1e-4)
    assert evaluate(model, objective)["loss"] == pytest.approx(np.log(2), abs=1e-5)
    model.model.layers[1].self_attn.q_proj.lora_b += 0.3
    with pytest.raises(
        TrainingError, match=r"not 0.693147: the stored reference is not this policy"
    ):
        objective.check_start(model, batch, tolerance=1e-4)


def test_the_start_is_checked_in_16_bits_by_what_tokens_differ(tmp_path: Path) -> None:
    """Rounding adds up over a response to more than any tolerance of the loss."""
    model = adapted()
    phase = dpo(beta=5.0)
    objective = preference(model, phase, tmp_path)
    batch = objective.batch(range(12))
    noise = np.random.default_rng(1)
    exact = objective.reference
    for spread, refused in ((0.05, False), (0.5, True)):
        objective.reference = {
            i: logps + noise.normal(0, spread, logps.shape).astype(np.float32)
            for i, logps in (exact or {}).items()
        }
        with pytest.raises(TrainingError, match=r"not 0\.693147"):
            objective.check_start(model, batch, tolerance=5e-2)
        with (
            pytest.raises(TrainingError, match=r"tokens differ by 0\.\d+ nats from the reference")
            if refused
            else nullcontext()
        ):
            objective.check_start(model, batch, tolerance=None)


def test_reference_is_stored_reused_and_recomputed_when_damaged(tmp_path: Path) -> None:
    model, store = adapted(), tmp_path / "reference.npz"
    first = reference_logps(model, PAIRS, ALL, store)

    class Untouchable(nn.Module):
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("the stored reference was not used")

    untouchable: Any = Untouchable  # mlx's constructor has no types
    again = reference_logps(untouchable(), PAIRS, ALL, store)
    for n in ALL:
        np.testing.assert_array_equal(first[n], again[n])
    store.write_bytes(store.read_bytes()[:-40])
    mended = reference_logps(model, PAIRS, ALL, store)
    for n in ALL:
        np.testing.assert_array_equal(first[n], mended[n])


def test_reference_key_depends_on_weights_adapter_and_rows() -> None:
    adapter = adapter_weights(adapted())
    key = reference_key("base", adapter, PAIRS)
    name = next(iter(adapter))
    assert key == reference_key("base", dict(adapter), list(PAIRS))
    assert key != reference_key("other", adapter, PAIRS)
    assert key != reference_key("base", {**adapter, name: adapter[name] + 1e-3}, PAIRS)
    assert key != reference_key("base", adapter, PAIRS[1:])


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "lion", "sgd", "adafactor"])
def test_every_optimizer_lowers_the_loss(optimizer: str, tmp_path: Path) -> None:
    model = adapted(moved=False)
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    before = evaluate(model, objective)["loss"]
    rate = {"sgd": 0.5, "lion": 3e-3}.get(optimizer, 2e-2)
    phase = sft(optimizer=optimizer, steps=20, lr=rate)
    run(model, objective, phase, tmp_path, [])
    assert evaluate(model, objective)["loss"] < before - 0.1


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_a_resumed_phase_ends_as_one_that_never_stopped(kind: str, tmp_path: Path) -> None:
    def fresh() -> tuple[Any, Any, Any]:
        model = adapted(0.2)
        if kind == "sft":
            return (
                model,
                ConversationLoss(ROWS, Shortcuts(split_head=True)),
                sft(steps=8, save_every_steps=3, schedule="cosine"),
            )
        best: Any = {
            "steps": 8,
            "save_every_steps": 3,
            "best": Best(metric="margin", direction="max"),
        }
        if kind == "dpo":
            phase = dpo(**best)
            return model, preference(model, phase, tmp_path), phase
        rated = KtoPhase(objective="kto", data="x", lr=1e-2, beta=0.1, **best)
        rows = [RatedRow(*pair[:3], n % 2 > 0, pair.origin) for n, pair in enumerate(PAIRS)]
        logps = reference_logps(model, rows, ALL, tmp_path / "reference.npz")
        return model, RatedLoss(rows, logps, rated, supported_shortcuts(model)), rated

    model, objective, phase = fresh()
    whole: list[Any] = []
    run(model, objective, phase, tmp_path / "whole", whole, valid=objective)
    wanted = adapter_weights(model)

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 5:
            raise Stop

    model, objective, phase = fresh()
    log: list[Any] = []
    with pytest.raises(Stop):
        run(model, objective, phase, tmp_path / "parts", log, valid=objective, progress=stop)
    model, objective, phase = fresh()
    rewound: list[int] = []
    log = [record for record in log if record["step"] <= 3]
    run(model, objective, phase, tmp_path / "parts", log, valid=objective, rewind=rewound.append)
    assert rewound == [3]
    for name, value in adapter_weights(model).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(wanted[name]))
    timeless = [
        [
            {k: v for k, v in r.items() if k not in ("tokens_per_s", "peak_memory_gb")}
            for r in records
        ]
        for records in (whole, log)
    ]
    assert timeless[0] == timeless[1]


def test_the_best_adapter_is_kept_when_asked_for(tmp_path: Path) -> None:
    model = adapted(moved=False)
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    phase = sft(
        steps=12,
        lr=0.3,
        eval_every_steps=1,
        clip_norm=None,
        optimizer="sgd",
        best=Best(metric="loss", direction="min"),
    )
    log: list[Any] = []
    trained = run(model, objective, phase, tmp_path, log, valid=objective)
    losses = {r["step"]: r["valid_loss"] for r in log if "valid_loss" in r}
    assert trained.kept_step == min(losses, key=lambda step: losses[step])
    assert evaluate(model, objective)["loss"] == pytest.approx(min(losses.values()), abs=1e-5)


def test_the_learning_rate_rises_then_falls() -> None:
    phase = sft(steps=10, lr=1.0e-3, warmup_steps=4, schedule="linear")
    rates = [learning_rate(phase, step, 10) for step in range(1, 11)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4] == pytest.approx(1e-3)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.2e-3
    assert learning_rate(sft(lr=1e-3), 6, 6) == 1e-3


def test_clipping_bounds_the_step() -> None:
    model = adapted()
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    moved = []
    for norm in (None, 1e-3):
        phase = sft(optimizer="sgd", clip_norm=norm, lr=0.5)
        before = {k: np.asarray(v) for k, v in adapter_weights(model).items()}
        Stepper(model, make_optimizer(phase), objective, phase).step(
            [objective.batch(range(12))], 0.5
        )
        moved.append(
            np.sqrt(
                sum(
                    ((np.asarray(v) - before[k]) ** 2).sum()
                    for k, v in adapter_weights(model).items()
                )
            )
        )
    assert moved[1] == pytest.approx(0.5 * 1e-3, rel=1e-2)
    assert moved[0] > 10 * moved[1]


@pytest.mark.parametrize("size", [1, 3, 5, 64])
def test_every_row_comes_once_an_epoch_and_the_order_is_a_function_of_seed_and_step(
    size: int,
) -> None:
    lengths = [int(n) for n in RNG.integers(3, 400, 57)]
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


def test_epochs_and_steps() -> None:
    lengths = [30] * 100

    def steps(phase: SftPhase) -> int:
        return total_steps(phase, order_of(phase, lengths, [1.0] * 100, seed=1))

    assert steps(sft(steps=7)) == 7
    assert steps(sft(steps=None, epochs=1.5, batch_size=4, accumulate=2)) == 19
    assert steps(sft(steps=None, epochs=1.5, batch_tokens=120, accumulate=2)) == 19


def test_pair_batches_line_up_inputs_and_targets() -> None:
    batch = pair_batch([PairRow([5, 6, 7], [8, 9], [10], "f:1")], [0])
    assert batch.prefixes[0, :2].tolist() == [5, 6]
    assert batch.inputs[0, :2].tolist() == [7, 8]
    assert batch.targets[0, :2].tolist() == [8, 9]
    assert batch.inputs[1, 0] == 7
    assert batch.targets[1, 0] == 10
    assert batch.mask.sum(axis=1).tolist() == [2, 1]
