"""One epoch of our DPO: frozen blocks, reference and steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    from forty2.inference.logprobs import supported_shortcuts
    from forty2.model import cpu_kernels
    from forty2.speed.workers.ours_steps import train_one_epoch
    from forty2.text.rows import PairRow
    from forty2.training.batched_loss import PairLoss
    from forty2.training.frozen_states import frozen_states_size, store_states
    from forty2.training.objectives.dpo import DpoPhase
    from forty2.training.reference import reference_logps

    model = job.load_model_with_lora()
    rows = [
        PairRow(prompt, chosen, rejected, "row") for prompt, chosen, rejected in job.inputs.pairs
    ]
    every = range(len(rows))
    phase = DpoPhase(
        objective="dpo", data="rows", steps=1, lr=job.lr, beta=job.beta, batch_size=job.batch_size
    )

    cpu_kernels.install()  # as loading through forty2 does

    def epoch() -> None:
        model.eval()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            replay = None
            size = frozen_states_size(model, rows, every)
            if size.depth:
                replay = store_states(model, rows, every, size, folder / "states")
            reference = reference_logps(model, rows, every, folder / "reference.npz", frozen=replay)
            objective = PairLoss(rows, reference, phase, supported_shortcuts(model), replay)
            train_one_epoch(model, objective, phase)

    return epoch
