"""One epoch of our SFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.bench.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    from forty2.batches import Order
    from forty2.logprobs import ways
    from forty2.objectives import Sft, micro_batches
    from forty2.recipe import SftPhase
    from forty2.tokens import Row
    from forty2.train import Stepper, make_optimizer

    model = job.adapted()
    rows = [Row(ids, [i >= start for i in range(len(ids))], "row") for ids, start in job.rows]
    phase = SftPhase(objective="sft", data="rows", steps=1, lr=job.lr, batch_size=job.batch_size)

    def epoch() -> None:
        objective = Sft(rows, ways(model))
        stepper = Stepper(model, make_optimizer(phase), objective, phase)
        order = Order(objective.parts, phase.batch_size, 1)
        model.train()
        for index in range(order.batches_per_epoch):
            stepper.step([*micro_batches(objective, order.batch(index))], phase.lr)

    return epoch
