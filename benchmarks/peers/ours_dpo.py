"""One epoch of our DPO: frozen blocks, reference and steps."""

import tempfile
from pathlib import Path

from common import BETA, LR, adapted, job, report, train

from forty2.logprobs import ways
from forty2.objectives import Preference, reference_logps
from forty2.recipe import DpoPhase
from forty2.replay import replay_size, store_states
from forty2.tokens import PairRow
from forty2.train import Stepper, make_optimizer

task = job()
model = adapted(task["model"])
rows = [PairRow(p, c, r, "row") for p, c, r in task["rows"]]
size, which = task["batch_size"], range(len(rows))
phase = DpoPhase(objective="dpo", data="rows", steps=1, lr=LR, beta=BETA, batch_size=size)


def epoch() -> None:
    model.eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        replay = store_states(
            model, rows, which, replay_size(model, rows, which), folder / "states"
        )
        reference = reference_logps(model, rows, which, folder / "reference.npz", replay=replay)
        objective = Preference(rows, reference, phase, ways(model), replay)
        train(model, Stepper(model, make_optimizer(phase), objective, phase), objective, size)


report(epoch, len(rows) // size, sum(len(part) for row in task["rows"] for part in row))
