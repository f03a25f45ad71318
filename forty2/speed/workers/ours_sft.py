"""One epoch of our SFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    from forty2.inference.logprobs import supported_shortcuts
    from forty2.model import cpu_kernels
    from forty2.speed.workers.ours_steps import train_one_epoch
    from forty2.text.rows import Row
    from forty2.training.batched_loss import ConversationLoss
    from forty2.training.objectives.sft import SftPhase

    model = job.load_model_with_lora()
    rows = [
        Row(ids, [i >= start for i in range(len(ids))], "row") for ids, start in job.inputs.chats
    ]
    phase = SftPhase(objective="sft", data="rows", steps=1, lr=job.lr, batch_size=job.batch_size)

    cpu_kernels.install()  # as loading through forty2 does

    def epoch() -> None:
        train_one_epoch(model, ConversationLoss(rows, supported_shortcuts(model)), phase)

    return epoch
