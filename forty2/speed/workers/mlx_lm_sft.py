"""One epoch of mlx-lm's SFT, by its own loop and batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Chat, Job


class EncodedRows(list["Chat"]):
    """Rows that need no further encoding: mlx-lm's loop asks a data set to process each row."""

    def process(self, row: Chat) -> Chat:
        return row


def prepare(job: Job) -> Callable[[], None]:
    import mlx.optimizers as optim
    from mlx_lm.tuner.datasets import CacheDataset
    from mlx_lm.tuner.trainer import TrainingArgs, train

    model = job.load_model_with_lora()
    rows = CacheDataset(EncodedRows((ids, start) for ids, start in job.inputs.chats))

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArgs(
                batch_size=job.batch_size,
                iters=job.steps,
                val_batches=0,
                steps_per_report=10**6,
                steps_per_eval=10**6,
                steps_per_save=10**6,
                max_seq_length=4096,
                adapter_file=f"{folder}/adapters.safetensors",
            )
            train(model, optim.AdamW(job.lr), rows, None, arguments)

    return epoch
