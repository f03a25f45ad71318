"""One epoch of mlx-lm-lora's DPO, by its own loop and batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    import mlx.optimizers as optim
    from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, train_dpo

    model, reference = job.load_model_with_lora(), job.load_model()
    rows = [
        {
            "chosen": prompt + chosen,
            "rejected": prompt + rejected,
            "chosen_prompt_length": len(prompt),
            "rejected_prompt_length": len(prompt),
        }
        for prompt, chosen, rejected in job.inputs.pairs
    ]

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = DPOTrainingArgs(
                batch_size=job.batch_size,
                iters=job.steps,
                val_batches=0,
                steps_per_report=10**6,
                steps_per_eval=10**6,
                steps_per_save=10**6,
                max_seq_length=4096,
                beta=job.beta,
                adapter_file=f"{folder}/adapters.safetensors",
            )
            train_dpo(model, reference, optim.AdamW(job.lr), rows, None, arguments)

    return epoch
