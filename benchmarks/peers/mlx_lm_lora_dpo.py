"""One epoch of mlx-lm-lora's DPO, its own loop and batches."""

import tempfile

from common import BETA, LR, adapted, job, report  # isort: skip  (the BLAS comes before mlx)

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, train_dpo

task = job()
model, reference = adapted(task["model"]), adapted(task["model"])
mx.set_wired_limit = lambda *_: None  # there is none on Linux
mx.device_info = lambda: {"max_recommended_working_set_size": 0}
steps = len(task["rows"]) // task["batch_size"]
rows = [
    {
        "chosen": prompt + chosen, "rejected": prompt + rejected,
        "chosen_prompt_length": len(prompt), "rejected_prompt_length": len(prompt),
    }
    for prompt, chosen, rejected in task["rows"]
]  # fmt: skip


def epoch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOTrainingArgs(
            batch_size=task["batch_size"], iters=steps, val_batches=0, steps_per_report=10**6,
            steps_per_eval=10**6, steps_per_save=10**6, max_seq_length=2048, beta=BETA,
            adapter_file=f"{folder}/adapters.safetensors",
        )  # fmt: skip
        train_dpo(model, reference, optim.AdamW(LR), rows, None, arguments)


report(epoch, steps, sum(len(part) for row in task["rows"] for part in row))
