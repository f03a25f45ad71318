"""One epoch's batches of a prepared set, formed and padded. Rows: the path of its source."""

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
    ready = Path(folder.name) / "ready"
    how = Preparation(valid_share=0)
    prepare_data(job.rows[0], ready, job.model, load_tokenizer, how, workers=1)

    def epoch() -> None:
        with folder:
            rows = Prepared(ready / "train")
            order = Order(rows.lengths, job.batch_size, 1, rows.weights)
            for index in range(order.batches_per_epoch):
                chosen = order.batch(index)
                sft_batch([rows[i] for i in chosen], chosen)

    return epoch
