"""The step: exact accumulation, exact gradient checkpointing, clipping, steps that are skipped."""

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
from support.training import ROWS, adapted, dpo, ids, poisoned, preference, sft, values

from forty2.inference.logprobs import Shortcuts
from forty2.model.adapter import adapter_weights
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.recipe.schema import PhaseAttention
from forty2.text.rows import Row
from forty2.training.batched_loss import ConversationLoss, PairLoss, micro_batches
from forty2.training.optimizers import make_optimizer
from forty2.training.processes import ALONE, Group
from forty2.training.step import Stepper


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


@pytest.mark.parametrize("value", [math.nan, math.inf, 9.0])
def test_a_step_beyond_the_limit_changes_nothing(value: float) -> None:
    model, objective = adapted(), poisoned(2, value)
    phase = sft(optimizer="adamw")
    optimizer = make_optimizer(phase)
    model.train()
    stepper = Stepper(model, optimizer, objective, phase)
    batch = [objective.batch(range(12))]
    stepper.step(batch, 1e-2)
    moments = optimizer.state["model"]["layers"][1]["self_attn"]["q_proj"]["lora_a"]
    before = [*values(model), np.asarray(moments["m"]), np.asarray(optimizer.state["step"])]
    stepper.step(batch, 1e-2, limit=20.0)
    after = [*values(model), np.asarray(moments["m"]), np.asarray(optimizer.state["step"])]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    stepper.step(batch, 1e-2, limit=20.0)
    assert int(optimizer.state["step"]) == 2


@pytest.mark.skipif(not shutil.which("c++"), reason="mlx compiles for the CPU with a C++ compiler")
def test_a_compiled_step_is_the_plain_one_even_when_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Metal, where every step is compiled."""
    phases = PhaseAttention(block=1, oscillators=4, steps=2)

    def losses(device: mx.Device) -> list[Any]:
        model, objective, phase = (
            adapted(0.1, phase_attention=phases),
            ConversationLoss(ROWS, Shortcuts(split_head=True)),
            sft(),
        )
        model.train()
        optimizer = make_optimizer(phase)
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda: device)
            stepper = Stepper(model, optimizer, objective, phase)
        results = []
        for step, limit in enumerate((math.inf, math.inf, 0.1, math.inf)):
            mx.random.seed(step)
            taken = stepper.step([objective.batch(range(12))], 1e-2, limit)
            order = taken.metrics["order_parameter"]
            results.append((taken.loss, taken.norm, order, int(optimizer.state["step"])))
        return [*results, *values(model)]

    plain, compiled = losses(mx.Device(mx.cpu)), losses(mx.Device(mx.gpu))
    assert [step for *_, step in plain[:4]] == [1, 2, 2, 3]
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_clipping_never_scales_a_gradient_up() -> None:
    """A limit that the gradient is far below changes no bit of the step."""
    ends = []
    for norm in (None, 1e3):
        model = adapted()
        phase = sft(optimizer="sgd", clip_norm=norm)
        objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
        batch = [objective.batch(range(12))]
        taken = Stepper(model, make_optimizer(phase), objective, phase).step(batch, 0.5)
        assert 0 < taken.norm < 100
        ends.append(values(model))
    for free, limited in zip(*ends, strict=True):
        np.testing.assert_array_equal(free, limited)


def test_a_gradient_near_zero_keeps_its_direction() -> None:
    ends = []
    for norm in (None, 1.0):
        model = adapted()
        phase = sft(optimizer="sgd", clip_norm=norm)
        objective = poisoned(1, 1e-9)
        model.train()
        batch = [objective.batch(range(12))]
        taken = Stepper(model, make_optimizer(phase), objective, phase).step(batch, 1e6)
        assert 0 < taken.norm < 1e-6
        ends.append(values(model))
    for free, limited in zip(*ends, strict=True):
        np.testing.assert_array_equal(free, limited)


def test_a_step_measures_all_its_batches_together() -> None:
    model, phase = adapted(), sft()
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    batches = [objective.batch(part) for part in (range(5), range(5, 12))]
    sums = [float(objective.loss(model, objective.arrays(batch)).total) for batch in batches]
    tokens = sum(sum(row.mask[1:]) for row in ROWS)
    stepper = Stepper(model, make_optimizer(phase), objective, phase)
    taken = stepper.step(batches, 1e-3)
    assert taken.metrics == pytest.approx({"loss": sum(sums) / tokens}, rel=1e-6)
    assert taken.loss == pytest.approx(sum(sums) / tokens, rel=1e-6)
    assert taken.tokens == sum(len(row.ids) for row in ROWS)
    assert {*taken.squares} == {*adapter_weights(model)}
    assert sum(map(float, taken.squares.values())) == pytest.approx(taken.norm**2, rel=1e-5)


def test_a_loss_at_the_limit_is_not_beyond_it() -> None:
    model, phase = adapted(), sft()
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    optimizer = make_optimizer(phase)
    stepper, batch = Stepper(model, optimizer, objective, phase), [objective.batch(range(12))]
    loss = stepper.step(batch, 0.0).loss
    stepper.step(batch, 0.0, limit=loss)
    assert int(optimizer.state["step"]) == 2


@pytest.mark.parametrize("share", [(range(5), range(5, 12)), (range(12), None)])
def test_two_processes_take_the_step_that_one_would(share: tuple[range, range | None]) -> None:
    """A process that has no batch of the step adds zeros."""
    phase = sft(optimizer="sgd")

    def stepper(group: Group) -> tuple[Any, ConversationLoss, Stepper]:
        model = adapted()
        objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
        return model, objective, Stepper(model, make_optimizer(phase), objective, phase, group)

    model, objective, one = stepper(ALONE)
    alone = one.step([objective.batch(part) for part in share if part], 0.5)
    second = OneOfTwo()
    _, objective, other = stepper(second)
    rest = [objective.batch(p) for p in share[1:] if p]
    other._sum_over_processes(other._sum_batches(rest, 1.0))
    assert {leaf.dtype for leaf in second.sent[4].values()} == {mx.float32}
    first_model, objective, first = stepper(OneOfTwo(received=second.sent))
    together = first.step([objective.batch(share[0])], 0.5)
    assert together.metrics == pytest.approx(alone.metrics, rel=1e-6)
    assert together[1:4] == pytest.approx(alone[1:4], rel=1e-6)
    for whole, summed in zip(values(model), values(first_model), strict=True):
        np.testing.assert_allclose(summed, whole, rtol=1e-5, atol=1e-7)


def test_on_a_gpu_both_halves_are_compiled_with_the_state_that_they_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[Any, Any, Any]] = []

    def compiled(function: Any, *, inputs: Any, outputs: Any) -> Any:
        calls.append((function, inputs, outputs))
        return function

    monkeypatch.setattr("forty2.training.step.on_gpu", lambda: True)
    monkeypatch.setattr(mx, "compile", compiled)
    model, phase = adapted(), sft()
    optimizer = make_optimizer(phase)
    Stepper(model, optimizer, ConversationLoss(ROWS), phase)
    assert [function.__name__ for function, _, _ in calls] == ["add_gradients", "update"]
    for _, inputs, outputs in calls:
        assert inputs is outputs
        assert inputs[1] is optimizer.state and inputs[2] is mx.random.state
        assert len(tree_flatten(inputs[0])) == len(tree_flatten(model.state)) > 0
