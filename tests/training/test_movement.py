"""A phase whose first steps do not move a trainable tensor stops, and no other does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.models import tiny_model
from support.training import ALL, PAIRS, ROWS, SPEC, ListLog, adapted, dpo, run, sft

from forty2.errors import TrainingError
from forty2.inference import logprobs
from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.model.adapter import adapter_weights, attach_adapter
from forty2.text.rows import RatedRow
from forty2.training import loop
from forty2.training.batched_loss import BatchedLoss, ConversationLoss, PairLoss, RatedLoss
from forty2.training.movement import MovementCheck
from forty2.training.objectives.kto import KtoPhase
from forty2.training.reference import reference_logps
from forty2.training.step import StepResult

OBJECTIVES = ["sft", "dpo", "kto"]


def model_with(architecture: str = "llama", keys: Any = None, kind: Any = "lora") -> Any:
    model = tiny_model(architecture, tie_word_embeddings=False)
    attach_adapter(model, replace(SPEC, keys=keys, type=kind), seed=1)
    return model


def objective_of(kind: str, model: Any, folder: Path) -> tuple[BatchedLoss, Any]:
    """A loss and a phase of four steps."""
    by = supported_shortcuts(model)
    if kind == "sft":
        return ConversationLoss(ROWS, by), sft(steps=4)
    if kind == "dpo":
        logps = reference_logps(model, PAIRS, ALL, folder / "reference.npz")
        return PairLoss(PAIRS, logps, dpo(), by), dpo(steps=4)
    rows = [RatedRow(*pair[:3], n % 2 > 0, pair.origin) for n, pair in enumerate(PAIRS)]
    logps = reference_logps(model, rows, ALL, folder / "reference.npz")
    phase = KtoPhase(objective="kto", data="x", steps=4, lr=1e-2, beta=0.1)
    return RatedLoss(rows, logps, phase, by), phase


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each step that was judged, whether all had moved after it."""
    judged: list[bool] = []

    class Watched(MovementCheck):
        def judge(self, result: StepResult, *, full_rate: bool) -> str | None:
            fault = super().judge(result, full_rate=full_rate)
            judged.append(self.done)
            return fault

    monkeypatch.setattr(loop, "MovementCheck", Watched)
    return judged


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_trained_head_and_embedding_pass_at_the_second_step(
    kind: str, adapter: str, watched: list[bool], tmp_path: Path
) -> None:
    model = model_with(keys=["self_attn.q_proj", "lm_head", "model.embed_tokens"], kind=adapter)
    before = {name: np.asarray(value) for name, value in adapter_weights(model).items()}
    objective, phase = objective_of(kind, model, tmp_path)
    run(model, objective, phase, tmp_path / "work")
    assert watched == [False, True]
    for name, value in adapter_weights(model).items():
        assert (np.asarray(value) != before[name]).any(), name


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_head_that_a_shortcut_leaves_out_stops_the_phase(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logprobs, "head_is_frozen", lambda model: True)
    for keys in (["self_attn.q_proj", "lm_head"], ["lm_head"]):
        model = model_with(keys=keys)
        objective, phase = objective_of(kind, model, tmp_path)
        with pytest.raises(TrainingError, match=r"p, step 1: no gradient reaches lm_head\.lora_b"):
            run(model, objective, phase, tmp_path / "work")


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_factor_has_a_step_more_where_the_other_is_zero(
    kind: str, watched: list[bool], tmp_path: Path
) -> None:
    model = model_with(keys=["self_attn.q_proj", "model.embed_tokens"])
    layer = model.model.embed_tokens  # as PEFT begins: A is zero, B is not
    layer.lora_a, layer.lora_b = layer.lora_a * 0, layer.lora_b + 0.1
    objective, phase = objective_of(kind, model, tmp_path)
    run(model, objective, phase, tmp_path / "work")
    assert watched == [False, True]


def test_a_first_factor_that_is_not_reached_stops_the_second_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = model_with(keys=["self_attn.q_proj"])
    layer = model.model.layers[2].self_attn.q_proj

    class Cut(type(layer)):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> mx.array:
            product = (x @ mx.stop_gradient(self.lora_a)) @ self.lora_b
            output: mx.array = self.linear(x) + self.scale * product
            return output

    layer.__class__ = Cut
    objective, phase = objective_of("sft", model, tmp_path)
    name = r"model\.layers\.2\.self_attn\.q_proj\.lora_a"
    with pytest.raises(TrainingError, match=f"p, step 2: no gradient reaches {name}, so"):
        run(model, objective, phase, tmp_path / "work")
    # Nothing was saved, so the phase stops again when it is resumed.
    model.model.layers[2].self_attn.q_proj.__class__ = Cut
    with pytest.raises(TrainingError, match="p, step"):
        run(model, objective, phase, tmp_path / "work")


def test_weight_decay_does_not_pass_for_a_gradient(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logprobs, "head_is_frozen", lambda model: True)
    model = model_with(keys=["self_attn.q_proj", "lm_head"])
    model.lm_head.lora_b += 1.0
    objective, phase = objective_of("sft", model, tmp_path)
    with pytest.raises(TrainingError, match=r"no gradient reaches lm_head\.lora_a"):
        run(model, objective, replace(phase, weight_decay=0.1), tmp_path / "work")


def test_a_step_that_rounding_undoes_stops_the_phase_once_the_rate_is_full(tmp_path: Path) -> None:
    model = model_with(keys=["self_attn.q_proj"], kind="dora")
    objective, phase = objective_of("sft", model, tmp_path)
    tiny = replace(phase, lr=1e-14, schedule="constant")
    with pytest.raises(TrainingError, match=r"p, step 1: the step is too small to change .*\.m"):
        run(model, objective, tiny, tmp_path / "a")
    with pytest.raises(TrainingError, match=r"p, step 3: the step is too small to change .*\.m"):
        run(model, objective, replace(tiny, warmup_steps=2), tmp_path / "b")


def test_a_warm_up_from_nearly_nothing_is_waited_for(
    watched: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = iter([0.0, 1e-14, 1e-14, 1e-2, 1e-2, 1e-2])
    monkeypatch.setattr(loop, "learning_rate", lambda *_: next(rates))
    model = model_with(keys=["self_attn.q_proj"], kind="dora")
    run(model, ConversationLoss(ROWS, Shortcuts()), sft(steps=6, warmup_steps=3), tmp_path)
    assert watched == [False, False, True]


@pytest.mark.parametrize("changes", [{"accumulate": 3, "batch_size": 2}, {"grad_checkpoint": True}])
def test_accumulated_and_checkpointed_steps_pass(
    changes: Any, watched: list[bool], tmp_path: Path
) -> None:
    model = model_with(keys=["self_attn.q_proj", "lm_head"])
    objective, phase = objective_of("sft", model, tmp_path)
    run(model, objective, replace(phase, **changes), tmp_path / "work")
    assert watched == [False, True]


def test_a_resumed_phase_is_judged_anew(watched: list[bool], tmp_path: Path) -> None:
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        run(
            adapted(moved=False),
            objective,
            sft(save_every_steps=1),
            tmp_path,
            progress=stop,
        )
    run(adapted(moved=False), objective, sft(save_every_steps=1), tmp_path)
    assert watched == [False, True, True]  # with B away from zero, one step is enough


def test_experts_that_no_token_reached_pass_with_those_that_were_reached(tmp_path: Path) -> None:
    model = model_with("mixtral", ["block_sparse_moe.switch_mlp.up_proj"])
    objective, phase = objective_of("sft", model, tmp_path)
    run(model, objective, replace(phase, batch_size=1), tmp_path / "work")


def result_of(squares: dict[str, float], loss: float = 3.0) -> StepResult:
    norm = math.sqrt(sum(squares.values()))
    return StepResult({}, loss, norm, 9, {k: mx.array(v) for k, v in squares.items()})


def nudge(model: Any, names: Sequence[str]) -> None:
    weights = adapter_weights(model)
    model.load_weights([(name, weights[name] + 1) for name in names], strict=False)


def with_experts() -> Any:
    """A model with a list of layers within each block."""
    model = tiny_model()
    for block in model.model.layers:
        block.experts = [nn.Linear(4, 4) for _ in range(3)]
    keys = [f"experts.{n}" for n in range(3)]
    attach_adapter(model, replace(SPEC, layers=1, keys=keys), seed=1)
    return model


def test_of_a_list_within_a_block_one_layer_must_be_reached() -> None:
    model = with_experts()
    names = [*adapter_weights(model)]
    reached = [name for name in names if ".experts.1." in name]
    assert len(names) == 6 and len(reached) == 2
    check = MovementCheck(model)
    for _ in range(2):
        nudge(model, reached)
        squares = {name: float(name in reached) for name in names}
        assert check.judge(result_of(squares), full_rate=True) is None
    assert check.done
    fault = MovementCheck(model).judge(result_of(dict.fromkeys(names, 0.0)), full_rate=True)
    assert fault is not None and "no gradient reaches model.layers.2.experts.0" in fault


def test_a_loss_that_is_zero_says_nothing() -> None:
    model = with_experts()
    nothing = dict.fromkeys(adapter_weights(model), 0.0)
    check = MovementCheck(model)
    assert check.judge(result_of(nothing, loss=1e-3), full_rate=True) is None and not check.done


def test_pairs_of_equal_sides_do_not_stop_a_phase(watched: list[bool], tmp_path: Path) -> None:
    model = model_with(keys=["self_attn.q_proj"])
    rows = [pair._replace(rejected=pair.chosen) for pair in PAIRS[:6]]
    logps = reference_logps(model, rows, range(6), tmp_path / "reference.npz")
    objective = PairLoss(rows, logps, dpo(), supported_shortcuts(model))
    run(model, objective, dpo(steps=3, batch_size=3), tmp_path / "work")
    assert watched == []


def test_nothing_is_read_back_once_all_have_moved(
    watched: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = ListLog()
    model = model_with(keys=["self_attn.q_proj"])
    objective, phase = objective_of("sft", model, tmp_path)
    run(model, objective, replace(phase, steps=6), tmp_path / "work", log)
    assert len(watched) == 2 and len([r for r in log.records if "loss" in r]) == 6
