"""One epoch of mlx-lm's SFT, its own loop and batches."""

import tempfile

from common import LR, adapted, job, report  # isort: skip  (the BLAS comes before mlx)

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.trainer import TrainingArgs, train

task = job()
model = adapted(task["model"])
mx.set_wired_limit = lambda *_: None  # there is none on Linux
steps = len(task["rows"]) // task["batch_size"]


class Rows(list):  # type: ignore[type-arg]
    """What its loop is given by its own command: rows still to be processed, here ready."""

    def process(self, row):  # type: ignore[no-untyped-def]
        return row


def epoch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArgs(
            batch_size=task["batch_size"], iters=steps, val_batches=0, steps_per_report=10**6,
            steps_per_eval=10**6, steps_per_save=10**6, max_seq_length=2048,
            adapter_file=f"{folder}/adapters.safetensors",
        )  # fmt: skip
        train(model, optim.AdamW(LR), CacheDataset(Rows(map(tuple, task["rows"]))), None, arguments)


report(epoch, steps, sum(len(ids) for ids, _ in task["rows"]))
