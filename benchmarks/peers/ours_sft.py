"""One epoch of our SFT."""

from common import LR, adapted, job, report

from forty2.batches import Order
from forty2.logprobs import ways
from forty2.objectives import Sft
from forty2.recipe import SftPhase
from forty2.tokens import Row
from forty2.train import Stepper, make_optimizer

task = job()
model = adapted(task["model"])
rows = [Row(ids, [i >= start for i in range(len(ids))], "row") for ids, start in task["rows"]]
size = task["batch_size"]
phase = SftPhase(objective="sft", data="rows", steps=1, lr=LR, batch_size=size)


def epoch() -> None:
    objective = Sft(rows, ways(model))
    optimizer = make_optimizer(phase)
    optimizer.init(model.trainable_parameters())
    stepper = Stepper(model, optimizer, objective, phase)
    model.train()
    order = Order(objective.parts, size, 1)
    for index in range(order.batches_per_epoch):
        stepper.step([objective.batch(order.batch(index))], LR)


report(epoch, len(rows) // size, sum(len(ids) for ids, _ in task["rows"]))
