"""One epoch of Unsloth's MLX trainer, DPO or SFT, its speed settings on.

Fused cross-entropy and compiling are on by default; batches of like length (SFT) and no
checkpointing are asked for. The reference stays in the step: over one epoch, computing it beforehand
takes longer.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    if sys.platform == "linux":  # it runs there, but asks for a Mac when imported
        platform.system, platform.machine = lambda: "Darwin", lambda: "arm64"
    from unsloth_zoo.mlx.trainer import (
        MLXDPOConfig,
        MLXDPOTrainer,
        MLXTrainer,
        MLXTrainingConfig,
    )

    model, tokenizer = job.adapted(), job.tokenizer()
    pairs = len(job.rows[0]) == 3
    rows = [_pair(job, row) if pairs else _chat(job, row) for row in job.rows]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": job.batch_size,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "max_steps": -1,
        "warmup_steps": 0,
        "learning_rate": job.lr,
        "lr_scheduler_type": "constant",
        "logging_steps": 10**6,
        "max_seq_length": 4096,
        "append_eos": False,
        "gradient_checkpointing": False,
    }

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            if pairs:
                config = MLXDPOConfig(
                    **settings,
                    output_dir=folder,
                    beta=job.beta,
                    max_length=4096,
                    max_prompt_length=None,
                )
                MLXDPOTrainer(model, tokenizer, rows, args=config).train()
            else:
                config = MLXTrainingConfig(**settings, output_dir=folder, group_by_length=True)
                MLXTrainer(model, tokenizer, rows, args=config).train()

    return epoch


def _pair(job: Job, row: Any) -> dict[str, str]:
    return dict(zip(("prompt", "chosen", "rejected"), map(job.text, row), strict=True))


def _chat(job: Job, row: Any) -> dict[str, str]:
    ids, start = row
    return {"prompt": job.text(ids[:start]), "completion": job.text(ids[start:])}
