"""Checkpoints of a phase: everything that the next step depends on, sealed with checksums."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten
from pydantic import TypeAdapter, ValidationError

from forty2.errors import RunError
from forty2.files import find_damage, seal, staged_folder, write_json
from forty2.model.adapter import load_arrays, restore_adapter, save_adapter
from forty2.recipe.schema import Adapter
from forty2.training.objectives.phase import Best
from forty2.training.red_lines import RedLineMonitor

OPTIMIZER = "optimizer.safetensors"
KEPT = 2


@dataclass
class State:
    """Where a phase stands, beside its arrays."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last step that was taken."""
    valid: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    best: dict[str, Any] | None = None
    """The step of the best evaluation and its metrics."""
    watch: RedLineMonitor = field(default_factory=RedLineMonitor)


_STATE = TypeAdapter(State)


def checkpoints(work: Path) -> list[Path]:
    """The folders of a phase's checkpoints, newest first."""
    return _numbered(work, "step")


class Keeper:
    """Writes and reads a phase's checkpoints: the two newest, and the best ones that they name."""

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, adapter: Adapter, work: Path
    ) -> None:
        self._model, self._optimizer, self._adapter, self._work = model, optimizer, adapter, work

    def save(self, state: State) -> None:
        """Write a checkpoint of this step; what no kept one needs goes."""
        with staged_folder(self._work / f"step{state.step}") as folder:
            save_adapter(self._model, self._adapter, folder)
            arrays = dict(tree_flatten(self._optimizer.state))
            mx.save_safetensors(str(folder / OPTIMIZER), arrays)
            write_json(folder / "state.json", _STATE.dump_python(state))
            seal(folder)
        # Beyond this step there can only be a damaged one that the phase went back from.
        found = checkpoints(self._work)
        kept = [old for old in found if _step_of(old) <= state.step][:KEPT]
        bests = _numbered(self._work, "best")
        needed = [old for old in bests if _step_of(old) <= _step_of(kept[-1])][:1]
        needed += [old for old in bests if _step_of(old) > _step_of(kept[-1])]
        _remove(old for old in (*found, *bests) if old not in (*kept, *needed))

    def resume(self) -> tuple[State | None, list[str]]:
        """Restore the newest checkpoint that is whole; also what is wrong with newer ones.

        Raises:
            RunError: there are checkpoints and none is whole, or another release wrote them.
        """
        wrong: list[str] = []
        state = None
        for folder in checkpoints(self._work):
            reason = find_damage(folder)
            if reason is not None:
                wrong.append(reason)
                continue
            state = _read(folder)
            restore_adapter(self._model, folder)
            saved = load_arrays(folder / OPTIMIZER)
            self._optimizer.state = tree_unflatten(list(saved.items()))
            break
        if wrong and state is None:
            raise RunError(
                f"{'; '.join(wrong)}: no checkpoint is whole; delete {self._work}, then go on with "
                "--resume: the phase starts anew"
            )
        at = state.step if state is not None else -1
        _remove(old for old in _numbered(self._work, "best") if _step_of(old) > at)
        return state, wrong

    def offer(self, state: State, best: Best) -> None:
        """Keep the adapter aside if its last evaluation is the best so far."""
        sign = 1 if best.direction == "max" else -1
        value = state.valid[best.metric]
        if state.best is None or sign * value > sign * state.best["valid"][best.metric]:
            state.best = {"step": state.step, "valid": state.valid}
            with staged_folder(self._work / f"best{state.step}") as folder:
                save_adapter(self._model, self._adapter, folder)
                seal(folder)

    def take(self, best: dict[str, Any]) -> None:
        """Put the best adapter back into the model."""
        folder = self._work / f"best{best['step']}"
        reason = find_damage(folder)
        if reason is not None:
            raise RunError(
                f"{reason}: the best adapter is lost; delete {self._work}, then go on with "
                "--resume: the phase starts anew"
            )
        restore_adapter(self._model, folder)


def _read(checkpoint: Path) -> State:
    record = (checkpoint / "state.json").read_bytes()
    try:
        return _STATE.validate_json(record, strict=True, extra="forbid")
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise RunError(
            f"{checkpoint}: written by another release of forty2 ({where or 'state.json'}: "
            f"{error.errors()[0]['msg']}); go on with that one, or delete {checkpoint.parent}: "
            "the phase starts anew"
        ) from error


def _numbered(work: Path, kind: str) -> list[Path]:
    """Folders named by their step, newest first."""
    found = [p for p in work.glob(f"{kind}*") if p.name.removeprefix(kind).isdecimal()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name[len("step") :])  # or "best"


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
