"""One epoch of our SFT."""

from common import LR, adapted, job, report, train

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
    train(model, Stepper(model, make_optimizer(phase), objective, phase), objective, size)


report(epoch, len(rows) // size, sum(len(ids) for ids, _ in task["rows"]))
