"""Rows, phases and adapted tiny models for tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from forty2.inference.logprobs import supported_shortcuts
from forty2.model.adapter import attach_adapter
from forty2.recipe.schema import Adapter
from forty2.text.rows import PairRow, Row
from forty2.training.batched_loss import (
    PairLoss,
    reference_logps,
)
from forty2.training.loop import (
    Training,
)
from forty2.training.objectives.dpo import DpoPhase
from forty2.training.objectives.sft import SftPhase
from support.models import tiny_model

SPEC = Adapter(rank=4, scale=4.0, layers=2)

RNG = np.random.default_rng(3)


def ids(length: int) -> list[int]:
    return [int(i) for i in RNG.integers(1, 300, length)]


ROWS = [Row(ids(6 + n), [False] * 3 + [True] * (3 + n), f"sft.jsonl:{n + 1}") for n in range(12)]

PAIRS = [PairRow(ids(2 + n % 5), ids(3 + n % 4), ids(5), f"dpo.jsonl:{n + 1}") for n in range(12)]

ALL = range(len(PAIRS))


def sft(**changes: Any) -> SftPhase:
    return SftPhase(**{"objective": "sft", "data": "x", "steps": 6, "lr": 1e-2, **changes})


def dpo(**changes: Any) -> DpoPhase:
    settings = {"objective": "dpo", "data": "x", "steps": 6, "lr": 1e-2, "beta": 0.1, **changes}
    return DpoPhase(**settings)


def adapted(dropout: float = 0.0, *, moved: bool = True) -> Any:
    """A tiny model with an adapter; `moved`: one that does something already."""
    model = tiny_model()
    attach_adapter(model, replace(SPEC, dropout=dropout), seed=1)
    if moved:
        model.update(
            {
                "model": {
                    "layers": [
                        {},
                        *(
                            {"self_attn": {"q_proj": {"lora_b": mx.random.normal((4, 32)) * 0.1}}}
                            for _ in range(2)
                        ),
                    ]
                }
            }
        )
    return model


def preference(model: Any, phase: DpoPhase, tmp_path: Path) -> PairLoss:
    logps = reference_logps(model, PAIRS, ALL, tmp_path / "reference.npz")
    return PairLoss(PAIRS, logps, phase, supported_shortcuts(model))


def run(model: Any, objective: Any, phase: Any, work: Path, log: list[Any], **more: Any) -> Any:
    return Training(
        model=model,
        objective=objective,
        phase=phase,
        name="p",
        seed=5,
        adapter=SPEC,
        work=work,
        log=log.append,
        **more,
    ).run()
