"""Rows, phases and adapted tiny models for tests of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.model.adapter import adapter_weights, attach_adapter
from forty2.progress import Progress, silent
from forty2.recipe.schema import Adapter
from forty2.text.rows import PairRow, Row
from forty2.training.batched_loss import BatchedLoss, ConversationLoss, LossSums, PairLoss
from forty2.training.checkpoints import Checkpoints
from forty2.training.evaluation import Evaluator, ReplyCheck
from forty2.training.loop import Trained, Training, train
from forty2.training.objectives.dpo import DpoPhase
from forty2.training.objectives.phase import Phase
from forty2.training.objectives.sft import SftPhase
from forty2.training.processes import ALONE, Group
from forty2.training.reference import reference_logps
from forty2.training.schedule import plan_phase
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


def adapted(dropout: float = 0.0, *, moved: bool = True, **changes: Any) -> Any:
    """A tiny model with an adapter; `moved`: one that does something already."""
    model = tiny_model()
    attach_adapter(model, replace(SPEC, dropout=dropout, **changes), seed=1)
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


class ListLog:
    """Keeps a phase's records in a list, and the steps that it went on from."""

    def __init__(self, records: list[Any] | None = None) -> None:
        self.records: list[Any] = [] if records is None else records
        self.went_on_from: list[int] = []

    def log(self, record: Mapping[str, str | float]) -> None:
        self.records.append(record)

    def forget_metrics_after(self, phase: str, step: int) -> None:
        self.went_on_from.append(step)
        self.records[:] = [record for record in self.records if record["step"] <= step]


def run(
    model: nn.Module,
    loss: BatchedLoss,
    phase: Phase,
    work: Path,
    log: ListLog | None = None,
    *,
    valid: BatchedLoss | None = None,
    check_replies: Callable[[Progress], ReplyCheck] | None = None,
    progress: Progress = silent,
    group: Group = ALONE,
    spec: Adapter = SPEC,
) -> Trained:
    """Train a phase named p, with checkpoints in `work`."""
    return train(
        Training(
            name="p",
            plan=plan_phase(phase, loss.lengths, loss.weights, seed=5),
            model=model,
            loss=loss,
            evaluator=Evaluator(valid, check_replies),
            checkpoints=Checkpoints(work, spec),
            log=log or ListLog(),
            progress=progress,
            group=group,
        )
    )


def poisoned(at: int, value: float = math.nan, times: int = 1) -> ConversationLoss:
    """A loss that is multiplied by `value` in so many training batches, from the `at`-th on."""

    class Poisoned(ConversationLoss):
        drawn = 0

        def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> LossSums:
            plain = super().loss(model, arrays)
            if model.training:
                self.drawn += 1
                if at <= self.drawn < at + times:
                    return plain._replace(
                        total=plain.total * value, metrics={"loss": plain.total * value}
                    )
            return plain

    return Poisoned(ROWS, Shortcuts(split_head=True))


def values(model: nn.Module) -> list[np.ndarray]:
    """The adapter's arrays."""
    return [np.asarray(value) for value in adapter_weights(model).values()]
