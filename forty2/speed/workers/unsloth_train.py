"""One epoch of Unsloth's MLX trainer, DPO or SFT, with its fastest settings.

Fused cross-entropy and compiling are its defaults; batches of similar lengths (SFT) and no gradient
checkpointing are set here. The reference is computed in each step: for one epoch, computing it
beforehand takes longer.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Chat, Job, Pair


def prepare(job: Job) -> Callable[[], None]:
    if sys.platform == "linux":  # it runs there, but cannot be imported anywhere but on a Mac
        platform.system, platform.machine = lambda: "Darwin", lambda: "arm64"
    from unsloth_zoo.mlx.trainer import (
        MLXDPOConfig,
        MLXDPOTrainer,
        MLXTrainer,
        MLXTrainingConfig,
    )

    model, tokenizer = job.load_model_with_lora(), job.word_tokenizer()
    pairs = [_pair(job, row) for row in job.inputs.pairs]
    chats = [_chat(job, row) for row in job.inputs.chats]
    settings = {
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
                MLXDPOTrainer(model, tokenizer, pairs, args=config).train()
            else:
                config = MLXTrainingConfig(**settings, output_dir=folder, group_by_length=True)
                MLXTrainer(model, tokenizer, chats, args=config).train()

    return epoch


def _pair(job: Job, row: Pair) -> dict[str, str]:
    return dict(zip(("prompt", "chosen", "rejected"), map(job.as_words, row), strict=True))


def _chat(job: Job, row: Chat) -> dict[str, str]:
    ids, start = row
    return {"prompt": job.as_words(ids[:start]), "completion": job.as_words(ids[start:])}
