"""One epoch of mlx-optiq's DPO, by its own loop and batches.

Its gradient checkpointing is off, as ours is, because it costs time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    import mlx_lm.utils
    from optiq.lora.config import OptiqLoraConfig
    from optiq.lora.dpo import train_dpo

    # Its trainer would load the model within the measured time, in the precision of the file.
    loaded = job.load_model(), job.word_tokenizer()
    mlx_lm.utils.load = lambda *_, **__: loaded

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            with (Path(folder) / "train.jsonl").open("w") as file:
                for row in job.inputs.pairs:
                    texts = map(job.as_words, row)
                    pair = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
                    file.write(json.dumps(pair) + "\n")
            config = OptiqLoraConfig(
                method="dpo",
                rank=job.rank,
                scale=job.scale,
                rank_scaling="constant",
                num_layers=job.layers,
                batch_size=job.batch_size,
                iters=job.steps,
                learning_rate=job.lr,
                dpo_beta=job.beta,
                max_seq_length=4096,
                grad_checkpoint=False,
                steps_per_report=10**6,
                steps_per_eval=10**6,
                steps_per_save=10**6,
                adapter_path=f"{folder}/adapter",
            )
            train_dpo(job.model, folder, config)

    return epoch
