"""The time and memory of a step of each objective over pairs, beside those of DPO's.

All are measured in this process, on the same rows and stored states, in turns.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx

from forty2.inference.logprobs import supported_shortcuts
from forty2.machine import on_gpu
from forty2.model.adapter import attach_adapter
from forty2.model.loading import load
from forty2.progress import Progress
from forty2.recipe.schema import Adapter
from forty2.speed.results import StepCost
from forty2.speed.suites import BATCH_SIZE, compose_pairs, english_tokens
from forty2.speed.workers.ours_steps import train_one_epoch
from forty2.text.rows import PairRow
from forty2.training.batched_loss import KlPenalty, PairLoss
from forty2.training.frozen_states import frozen_states_size, store_states
from forty2.training.objectives.cpo import CpoPhase
from forty2.training.objectives.dpo import DpoPhase, PreferenceLoss
from forty2.training.objectives.kl_term import KlTerm
from forty2.training.objectives.orpo import OrpoPhase
from forty2.training.objectives.pairs import PairPhase
from forty2.training.objectives.simpo import SimpoPhase
from forty2.training.reference import reference_logps
from forty2.training.reference_states import store_reference_states

LENGTHS = (64, 48, 48)
"""Tokens of prompt, chosen and rejected response, on average."""


def phases_of_pairs() -> dict[str, PairPhase]:
    """Make a phase for each objective, by its name: the losses of DPO, its first, then the others."""

    def dpo(loss: PreferenceLoss, kl: KlTerm | None = None) -> DpoPhase:
        smoothing = 0.1 if loss == "robust" else 0.0
        return DpoPhase(
            objective="dpo",
            data="rows",
            steps=1,
            lr=1e-5,
            batch_size=BATCH_SIZE,
            beta=0.1,
            loss=loss,
            label_smoothing=smoothing,
            kl=kl,
        )

    found: dict[str, PairPhase] = {loss: dpo(loss) for loss in get_args(PreferenceLoss)}
    found["sigmoid + kl"] = dpo("sigmoid", KlTerm(weight=0.1))
    free: Any = {"data": "rows", "steps": 1, "lr": 1e-5, "batch_size": BATCH_SIZE, "beta": 0.1}
    found["orpo"] = OrpoPhase(objective="orpo", **free)
    found["simpo"] = SimpoPhase(objective="simpo", **free)
    found["cpo"] = CpoPhase(objective="cpo", **free)
    return found


def measure_objectives(
    model: Path, dtype: str, rows: int, rounds: int, progress: Progress
) -> dict[str, StepCost]:
    """Measure one epoch of steps of each objective in every round; return medians by objective.

    Args:
        rows: pairs of the epoch.
    """
    loaded = load(str(model)).model
    loaded.set_dtype(getattr(mx, dtype))
    attach_adapter(loaded, Adapter(layers=min(16, len(loaded.layers))), seed=1)
    pairs = compose_pairs(rows, LENGTHS, english_tokens(model), "objectives").inputs.pairs
    encoded = [PairRow(prompt, chosen, rejected, "row") for prompt, chosen, rejected in pairs]
    every, shortcuts = range(rows), supported_shortcuts(loaded)
    phases = phases_of_pairs()
    with tempfile.TemporaryDirectory() as name:
        folder, frozen = Path(name), None
        size = frozen_states_size(loaded, encoded, every)
        if size.depth:
            frozen = store_states(loaded, encoded, every, size, folder / "frozen")
        reference = reference_logps(
            loaded, encoded, every, folder / "logps.npz", shortcuts=shortcuts, frozen=frozen
        )
        states = store_reference_states(
            loaded, encoded, every, folder / "states", shortcuts=shortcuts, frozen=frozen
        )

        def loss_of(phase: PairPhase) -> PairLoss:
            known = reference if phase.needs_reference else None
            kl = KlPenalty(phase.kl_term, states) if phase.kl_term is not None else None
            return PairLoss(encoded, known, phase, shortcuts, frozen, kl)

        samples: list[dict[str, tuple[float, float]]] = []
        for _ in range(rounds):
            samples.append({})
            for one, phase in phases.items():
                loss = loss_of(phase)
                samples[-1][one] = _measure(functools.partial(train_one_epoch, loaded, loss, phase))
                done = (len(samples) - 1) * len(phases) + len(samples[-1])
                progress("objectives", done, rounds * len(phases), {"last": one})
    first, steps = next(iter(phases)), rows // BATCH_SIZE
    return {
        one: StepCost(
            statistics.median([each[one][0] / steps for each in samples]),
            statistics.median([each[one][0] / each[first][0] for each in samples]),
            max(each[one][1] for each in samples),
            phase.needs_reference,
        )
        for one, phase in phases.items()
    }


def _measure(epoch: Callable[[], None]) -> tuple[float, float]:
    """Run an epoch; return its seconds and the peak of mlx's memory in GB."""
    clock = time.perf_counter if on_gpu() else time.process_time
    mx.reset_peak_memory()
    start = clock()
    epoch()
    mx.synchronize()
    return clock() - start, mx.get_peak_memory() / 1e9
