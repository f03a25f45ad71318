"""Checkpoints: the files of a phase's work folder, and the keys of its state on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.training import SPEC, adapted, sft

from forty2.errors import RunError
from forty2.files import seal
from forty2.training.checkpoints import (
    BestEvaluation,
    Checkpoints,
    PhaseState,
    find_checkpoints,
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
