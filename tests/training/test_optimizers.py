"""Every optimizer that a recipe can name learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.training import ROWS, adapted, run, sft

from forty2.inference.logprobs import Shortcuts
from forty2.training.batched_loss import ConversationLoss
from forty2.training.evaluation import evaluate


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "lion", "sgd", "adafactor"])
def test_every_optimizer_lowers_the_loss(optimizer: str, tmp_path: Path) -> None:
    model = adapted(moved=False)
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    before = evaluate(model, objective)["loss"]
    rate = {"sgd": 0.5, "lion": 3e-3}.get(optimizer, 2e-2)
    phase = sft(optimizer=optimizer, steps=20, lr=rate)
    run(model, objective, phase, tmp_path)
    assert evaluate(model, objective)["loss"] < before - 0.1
