"""One epoch of a phase of pairs of ours: frozen blocks, reference if it needs one, and steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    from forty2.inference.logprobs import supported_shortcuts
    from forty2.model import cpu_kernels
    from forty2.speed.workers.ours_steps import train_one_epoch
    from forty2.text.rows import PairRow
    from forty2.training.batched_loss import KlPenalty, PairLoss
    from forty2.training.frozen_states import frozen_states_size, store_states
    from forty2.training.objectives import OBJECTIVES
    from forty2.training.objectives.kl_term import KlTerm
    from forty2.training.objectives.pairs import PairPhase
    from forty2.training.reference import reference_logps
    from forty2.training.reference_states import store_reference_states

    model = job.load_model_with_lora()
    rows = [
        PairRow(prompt, chosen, rejected, "row") for prompt, chosen, rejected in job.inputs.pairs
    ]
    every = range(len(rows))
    keys: dict[str, Any] = {"objective": "dpo", "beta": job.beta, **job.phase}
    if "kl" in keys:
        keys["kl"] = KlTerm(**keys["kl"])
    phase = OBJECTIVES[keys["objective"]](
        data="rows", steps=1, lr=job.lr, batch_size=job.batch_size, **keys
    )
    assert isinstance(phase, PairPhase)

    cpu_kernels.install()  # as loading through forty2 does

    def epoch() -> None:
        model.eval()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            replay = None
            size = frozen_states_size(model, rows, every)
            if size.depth:
                replay = store_states(model, rows, every, size, folder / "states")
            shortcuts, reference, kl = supported_shortcuts(model), None, None
            if phase.needs_reference:
                reference = reference_logps(
                    model, rows, every, folder / "reference.npz", frozen=replay
                )
            if phase.kl_term is not None:
                states = store_reference_states(
                    model, rows, every, folder / "last", shortcuts=shortcuts, frozen=replay
                )
                kl = KlPenalty(phase.kl_term, states)
            objective = PairLoss(rows, reference, phase, shortcuts, replay, kl)
            train_one_epoch(model, objective, phase)

    return epoch
