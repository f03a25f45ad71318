"""Checkpoints of a phase: everything that the next step depends on, sealed with checksums."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten
from pydantic import Field, TypeAdapter, ValidationError

from forty2.errors import RunError
from forty2.files import find_damage, seal, staged_folder, write_json
from forty2.model.adapter import load_arrays, restore_adapter, save_adapter
from forty2.recipe.schema import Adapter
from forty2.training.objectives.phase import Best
from forty2.training.red_lines import RedLineMonitor

OPTIMIZER = "optimizer.safetensors"
NEWEST = 2
"""Number of checkpoints that stay on disk, the newest ones."""


@dataclass
class BestEvaluation:
    """The evaluation whose adapter is the best so far."""

    step: int
    valid: dict[str, float]
    """Its metrics."""


@dataclass
class PhaseState:
    """The progress of a phase without its arrays: a checkpoint's state.json, under the aliases."""

    step: int = 0
    """The last step that was taken or skipped."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step that was taken."""
    valid: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    best: BestEvaluation | None = None
    monitor: Annotated[RedLineMonitor, Field(alias="watch")] = field(default_factory=RedLineMonitor)


_STATE = TypeAdapter(PhaseState)


class Resumed(NamedTuple):
    """The outcome of looking for a checkpoint to go on from."""

    state: PhaseState | None
    """The state in the newest undamaged checkpoint; None: there is no checkpoint."""
    damage: list[str]
    """Defects of newer checkpoints, one each."""


def find_checkpoints(work: Path) -> list[Path]:
    """List the folders of a phase's checkpoints, newest first."""
    return _numbered(work, "step")


class Checkpoints:
    """The checkpoints in a phase's work folder: the newest, and the best adapters they refer to."""

    def __init__(self, work: Path, adapter: Adapter) -> None:
        self.work = work
        """The work folder; the caller deletes it when the phase is safely stored."""
        self._adapter = adapter

    def save(self, state: PhaseState, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Write a checkpoint of this step, and delete those that are no longer needed."""
        with staged_folder(self.work / f"step{state.step}") as folder:
            save_adapter(model, self._adapter, folder, trained_only=True)
            save_optimizer(optimizer, folder)
            write_json(folder / "state.json", _STATE.dump_python(state, by_alias=True))
            seal(folder)
        # A checkpoint beyond this step can only be a damaged one: the phase went back from it.
        steps, bests = find_checkpoints(self.work), _numbered(self.work, "best")
        newest = [old for old in steps if step_of(old) <= state.step][:NEWEST]
        oldest = step_of(newest[-1])
        needed = [best for best in bests if step_of(best) > oldest]
        needed += [best for best in bests if step_of(best) <= oldest][:1]
        _remove(old for old in (*steps, *bests) if old not in (*newest, *needed))

    def resume(self, model: nn.Module, optimizer: optim.Optimizer) -> Resumed:
        """Restore the newest undamaged checkpoint into the model and the optimizer.

        Raises:
            RunError: all checkpoints are damaged, or another release wrote them.
        """
        damage: list[str] = []
        state = None
        for folder in find_checkpoints(self.work):
            reason = find_damage(folder)
            if reason is not None:
                damage.append(reason)
                continue
            state = _read(folder)
            restore_adapter(model, folder)
            restore_optimizer(optimizer, folder)
            break
        if damage and state is None:
            raise RunError(
                f"{'; '.join(damage)}: no checkpoint is whole; delete {self.work}, then go on with "
                "`resume=True`: the phase starts anew"
            )
        step = state.step if state is not None else -1
        _remove(best for best in _numbered(self.work, "best") if step_of(best) > step)
        return Resumed(state, damage)

    def save_if_best(self, state: PhaseState, model: nn.Module, best: Best) -> None:
        """Save the adapter, and note it in the state, if the last evaluation is the best so far.

        Of equally good evaluations, the one with the lower validation loss is the best; of those with
        an equal loss, too, the later one: what was trained is not given up for nothing. An evaluation
        without the metric, as one of replies of which none counts, is never the best.
        """
        if best.metric not in state.valid:
            return

        def rank(valid: dict[str, float]) -> tuple[float, float]:
            value = valid[best.metric]
            return value if best.direction == "max" else -value, -valid.get("loss", 0.0)

        if state.best is None or rank(state.valid) >= rank(state.best.valid):
            state.best = BestEvaluation(state.step, state.valid)
            with staged_folder(self.work / f"best{state.step}") as folder:
                save_adapter(model, self._adapter, folder, trained_only=True)
                seal(folder)

    def restore_best(self, best: BestEvaluation, model: nn.Module) -> None:
        """Put the best adapter back into the model.

        Raises:
            RunError: its file is damaged.
        """
        folder = self.work / f"best{best.step}"
        reason = find_damage(folder)
        if reason is not None:
            raise RunError(
                f"{reason}: the best adapter is lost; delete {self.work}, then go on with "
                "`resume=True`: the phase starts anew"
            )
        restore_adapter(model, folder)


def save_optimizer(optimizer: optim.Optimizer, folder: Path) -> None:
    """Write an optimizer's state into a folder."""
    # By name: a restored state is in another order than one that has just begun.
    arrays = dict(sorted(tree_flatten(optimizer.state)))
    mx.save_safetensors(str(folder / OPTIMIZER), arrays)


def restore_optimizer(optimizer: optim.Optimizer, folder: Path) -> None:
    """Replace an optimizer's state by the one in a folder."""
    optimizer.state = tree_unflatten(list(load_arrays(folder / OPTIMIZER).items()))


def _read(checkpoint: Path) -> PhaseState:
    record = (checkpoint / "state.json").read_bytes()
    try:
        return _STATE.validate_json(record, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "state.json"
        raise RunError(
            f"{checkpoint}: written by another release of forty2 ({where}: {first['msg']}); go on "
            f"with that one, or delete {checkpoint.parent}: the phase starts anew"
        ) from error


def drop_checkpoints_after(work: Path, step: int) -> None:
    """Delete checkpoints and best adapters beyond a step."""
    for kind in ("step", "best"):
        _remove(folder for folder in _numbered(work, kind) if step_of(folder) > step)


def keep_one_checkpoint(work: Path, step: int) -> None:
    """Delete all checkpoints but the newest up to a step, and all but the best adapter up to there."""
    drop_checkpoints_after(work, step)
    _remove(find_checkpoints(work)[1:])
    for newest in find_checkpoints(work):
        drop_checkpoints_after(work, step_of(newest))
    _remove(_numbered(work, "best")[1:])


def _numbered(work: Path, kind: str) -> list[Path]:
    """List folders named by their step, newest first."""
    found = [p for p in work.glob(f"{kind}*") if p.name.removeprefix(kind).isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint, or of a best adapter, from the name of its folder."""
    return int(folder.name[len("step") :])  # "best" is as long


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
