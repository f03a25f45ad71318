"""Checkpoints: the files of a phase's work folder, and the keys of its state on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import SPEC, adapted, sft

from forty2.errors import RunError
from forty2.files import seal
from forty2.training.checkpoints import (
    BestEvaluation,
    Checkpoints,
    PhaseState,
    drop_checkpoints_after,
    find_checkpoints,
    keep_one_checkpoint,
)
from forty2.training.objectives.phase import Best
from forty2.training.optimizers import make_optimizer
from forty2.training.red_lines import RedLineMonitor

STATE = PhaseState(
    step=4,
    metrics={"loss": 1.5},
    valid={"loss": 2.0},
    best=BestEvaluation(2, {"loss": 1.75}),
    monitor=RedLineMonitor([1.0, 1.5], 1, 2, [2.5, 2.0], 3),
)
RECORD = {
    "step": 4,
    "metrics": {"loss": 1.5},
    "valid": {"loss": 2.0},
    "best": {"step": 2, "valid": {"loss": 1.75}},
    "watch": {"recent": [1.0, 1.5], "idle": 1, "left": 2, "valid": [2.5, 2.0], "rollbacks": 3},
}
"""The state as every release since checkpoints have checksums writes it."""


def test_the_state_on_disk_has_the_keys_of_earlier_releases(tmp_path: Path) -> None:
    model, checkpoints = adapted(), Checkpoints(tmp_path, SPEC)
    optimizer = make_optimizer(sft())
    optimizer.init(model.trainable_parameters())
    checkpoints.save(STATE, model, optimizer)
    file = tmp_path / "step4" / "state.json"
    assert json.dumps(json.loads(file.read_text())) == json.dumps(RECORD)
    assert checkpoints.resume(adapted(), make_optimizer(sft())) == (STATE, [])
    warned = replace(STATE, monitor=replace(STATE.monitor, warned_of_drift=True))
    checkpoints.save(warned, model, optimizer)
    assert checkpoints.resume(adapted(), make_optimizer(sft())) == (warned, [])
    file.write_text(json.dumps({**RECORD, "watch": {**RECORD["watch"], "new": 1}}))  # type: ignore[dict-item]
    seal(file.parent)
    with pytest.raises(RunError, match=r"another release of forty2 \(watch\.new: .*; go on with"):
        checkpoints.resume(model, make_optimizer(sft()))


def test_two_checkpoints_and_the_best_adapters_they_refer_to_stay(tmp_path: Path) -> None:
    model, checkpoints = adapted(), Checkpoints(tmp_path, SPEC)
    optimizer = make_optimizer(sft())
    optimizer.init(model.trainable_parameters())
    state, best = PhaseState(), Best(metric="loss", direction="min")
    for state.step, loss in enumerate([3.0, 2.0, 2.5, 1.0, 1.5], 1):
        state.valid = {"loss": loss}
        checkpoints.save_if_best(state, model, best)
        checkpoints.save(state, model, optimizer)
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["step5", "step4"]
    assert state.best == BestEvaluation(4, {"loss": 1.0})
    assert [folder.name for folder in tmp_path.glob("best*")] == ["best4"]


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize(
    ("losses", "kept"),
    [((2.0, 2.0, 2.0), 3), ((2.0, 1.0, 3.0), 2), ((None, None, None), 3)],
    ids=["the later one", "the lower loss", "no validation rows"],
)
def test_of_equal_evaluations_the_lower_loss_is_kept_then_the_later_one(
    direction: Literal["min", "max"],
    losses: Sequence[float | None],
    kept: int,
    tmp_path: Path,
) -> None:
    model, checkpoints = adapted(), Checkpoints(tmp_path, SPEC)
    state, best = PhaseState(), Best(metric="passed", direction=direction)
    for state.step, loss in enumerate(losses, 1):
        state.valid = {"passed": 0.0} | ({} if loss is None else {"loss": loss})
        checkpoints.save_if_best(state, model, best)
    assert state.best is not None and state.best.step == kept
    assert (tmp_path / f"best{kept}").exists()


@pytest.mark.parametrize(("direction", "kept"), [("max", 2), ("min", 1)])
def test_the_largest_or_the_smallest_value_is_the_best(
    direction: Literal["min", "max"], kept: int, tmp_path: Path
) -> None:
    """Whatever the validation loss."""
    model, checkpoints = adapted(), Checkpoints(tmp_path, SPEC)
    state, best = PhaseState(), Best(metric="passed", direction=direction)
    for state.step, passed in enumerate([0.0, -0.5, 1.0, 0.5]):
        state.valid = {"passed": passed, "loss": 3.0 + passed}
        checkpoints.save_if_best(state, model, best)
    assert state.best is not None and state.best.step == kept


def folders(work: Path, kind: str, steps: Iterable[int]) -> None:
    for step in steps:
        (work / f"{kind}{step}").mkdir()
        (work / f"{kind}{step}" / "file").touch()


STEPS = st.sets(st.integers(0, 12), max_size=5)


@settings(max_examples=60)
@given(STEPS, STEPS, st.integers(0, 12), st.booleans())
def test_checkpoints_beyond_a_step_go_and_of_the_others_the_newest_may_stay_alone(
    steps: set[int], bests: set[int], last: int, one: bool
) -> None:
    with TemporaryDirectory() as name:
        work = Path(name)
        folders(work, "step", steps)
        folders(work, "best", bests)
        (work / "stepwise").mkdir()
        (keep_one_checkpoint if one else drop_checkpoints_after)(work, last)
        stay = sorted(step for step in steps if step <= last)
        stay_best = sorted(step for step in bests if step <= last)
        if one:
            stay = stay[-1:]
            stay_best = [step for step in stay_best if step <= (stay or [last])[0]][-1:]
        wanted = {*(f"step{n}" for n in stay), *(f"best{n}" for n in stay_best), "stepwise"}
        assert {path.name for path in work.iterdir()} == wanted


def saved(work: Path, steps: Sequence[int], best: Sequence[int] = ()) -> Checkpoints:
    """Checkpoints of these steps, and best adapters of some of them, whose weights tell the step."""
    model, checkpoints = adapted(), Checkpoints(work, SPEC)
    optimizer = make_optimizer(sft())
    optimizer.init(model.trainable_parameters())
    state = PhaseState()
    for state.step in steps:
        layer = model.model.layers[2].self_attn.q_proj
        layer.lora_b = mx.full(layer.lora_b.shape, state.step)
        if state.step in best:
            state.valid = {"loss": -float(state.step)}
            checkpoints.save_if_best(state, model, Best(metric="loss", direction="min"))
        checkpoints.save(state, model, optimizer)
    return checkpoints


def step_in(model: Any) -> float:
    """The step that `saved` wrote into the weights."""
    return float(model.model.layers[2].self_attn.q_proj.lora_b[0, 0].item())


def damage(folder: Path) -> None:
    (folder / "adapters.safetensors").write_bytes(b"")


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    saved(tmp_path, [8, 9, 10])
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["step10", "step9"]


def test_a_damaged_checkpoint_is_passed_over_with_the_best_adapters_after_it(
    tmp_path: Path,
) -> None:
    checkpoints, model = saved(tmp_path, [8, 9, 10], best=[9, 10]), adapted()
    damage(tmp_path / "step10")
    state, found = checkpoints.resume(model, make_optimizer(sft()))
    assert state is not None and state.step == 9 == step_in(model)
    assert found == [f"{tmp_path / 'step10' / 'adapters.safetensors'} is damaged"]
    assert [folder.name for folder in tmp_path.glob("best*")] == ["best9"]


def test_checkpoints_that_are_all_damaged_end_the_run(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, [1, 2])
    for step in (1, 2):
        damage(tmp_path / f"step{step}")
    with pytest.raises(RunError, match=r"step2/.* is damaged; .*step1/.* no checkpoint is whole"):
        checkpoints.resume(adapted(), make_optimizer(sft()))


def test_without_a_checkpoint_the_phase_begins_anew_and_its_best_adapters_go(
    tmp_path: Path,
) -> None:
    checkpoints = saved(tmp_path, [0, 1], best=[0, 1])
    for folder in find_checkpoints(tmp_path):
        shutil.rmtree(folder)
    assert [*tmp_path.iterdir()]
    assert checkpoints.resume(adapted(), make_optimizer(sft())) == (None, [])
    assert not [*tmp_path.iterdir()]


def test_the_best_adapter_comes_back_unless_it_is_damaged(tmp_path: Path) -> None:
    checkpoints, model = saved(tmp_path, [1, 2], best=[1]), adapted()
    best = BestEvaluation(1, {"loss": -1.0})
    checkpoints.restore_best(best, model)
    assert step_in(model) == 1
    damage(tmp_path / "best1")
    with pytest.raises(RunError, match=r"best1/.* is damaged: the best adapter is lost; delete"):
        checkpoints.restore_best(best, model)


def test_what_cannot_be_deleted_does_not_stop_a_save(tmp_path: Path) -> None:
    (tmp_path / "step1").write_text("a file where a folder is expected")
    saved(tmp_path, [2, 3])
    assert (tmp_path / "step1").is_file()


@pytest.mark.parametrize(
    ("text", "place"), [('{"step": "4"}', "step"), ("[]", "state.json"), ("", "state.json")]
)
def test_a_state_of_another_shape_is_refused_with_its_place(
    text: str, place: str, tmp_path: Path
) -> None:
    checkpoints = saved(tmp_path, [4])
    (tmp_path / "step4" / "state.json").write_text(text)
    seal(tmp_path / "step4")
    with pytest.raises(RunError, match=rf"another release of forty2 \({place}: "):
        checkpoints.resume(adapted(), make_optimizer(sft()))
