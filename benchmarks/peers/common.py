"""What every worker shares: the job, the adapted starter model, and how work is measured.

A worker is one process in its own environment. It reads a job (JSON: model folder, rows as token
ids, batch size), does one epoch, and prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import forty2  # isort: skip  # noqa: F401  (its BLAS comes before mlx, the same for all)

import mlx.core as mx

RANK, SCALE, LAYERS, LR, BETA = 8, 2.0, 16, 1e-5, 0.1


def job() -> dict[str, Any]:
    """The job named on the command line."""
    with open(sys.argv[1]) as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


def adapted(folder: str) -> Any:
    """The model with fresh LoRA layers by mlx-lm on its last blocks."""
    from pathlib import Path

    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    model.freeze()
    linear_to_lora_layers(model, LAYERS, {"rank": RANK, "scale": SCALE, "dropout": 0.0})
    mx.eval(model.parameters())
    return model


def train(model: Any, stepper: Any, objective: Any, size: int) -> None:
    """Our steps of one epoch."""
    from forty2.batches import Order

    model.train()
    order = Order(objective.parts, size, 1)
    for index in range(order.batches_per_epoch):
        stepper.step([objective.batch(order.batch(index))], LR)


def report(epoch: Callable[[], None], batches: int, tokens: int) -> None:
    """Measure an epoch and print processor seconds a batch, tokens a second and peak memory."""
    mx.reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    epoch()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {
        "cpu_s_per_batch": cpu / batches,
        "wall_s_per_batch": wall / batches,
        "tokens_per_cpu_s": tokens / cpu,
        "peak_gb": mx.get_peak_memory() / 1e9,
    }
    print(json.dumps(figures))
