"""One epoch's batches of prepared data, formed and padded. Reads `data_file`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    from forty2.model.loading import load_tokenizer
    from forty2.text.prepared import Prepared
    from forty2.text.preparing import Preparation
    from forty2.text.preparing import prepare as prepare_data
    from forty2.training.batches import Order, sft_batch

    folder = tempfile.TemporaryDirectory()
    prepared = Path(folder.name) / "prepared"
    prepare_data(
        job.inputs.data_file,
        prepared,
        job.model,
        load_tokenizer,
        Preparation(valid_share=0),
        workers=1,
    )

    def epoch() -> None:
        with folder:
            rows = Prepared(prepared / "train")
            order = Order(rows.lengths, job.batch_size, 1, rows.weights)
            for index in range(order.batches_per_epoch):
                batch = order.batch(index)
                sft_batch([rows[i] for i in batch], batch)

    return epoch
