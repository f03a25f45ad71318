"""`forty2 data prepare`, in one process. Reads `data_file`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    from forty2.model.loading import load_tokenizer
    from forty2.text.preparing import Preparation
    from forty2.text.preparing import prepare as prepare_data

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared"
            prepare_data(
                job.inputs.data_file,
                prepared,
                job.model,
                load_tokenizer,
                Preparation(valid_share=0),
                workers=1,
            )

    return epoch
