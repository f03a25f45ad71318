"""Losses over batches of pairs: their value at the start, with and without a reference."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from support.training import PAIRS, adapted, dpo, preference

from forty2.errors import TrainingError
from forty2.training.batched_loss import PairLoss
from forty2.training.evaluation import evaluate
from forty2.training.objectives.dpo import DpoPhase


def test_the_first_preference_loss_is_ln_2_and_another_reference_is_refused(tmp_path: Path) -> None:
    model = adapted()
    objective = preference(model, dpo(), tmp_path)
    batch = objective.batch(range(12))
    objective.check_start(model, batch, tolerance=1e-4)
    assert evaluate(model, objective)["loss"] == pytest.approx(np.log(2), abs=1e-5)
    model.model.layers[1].self_attn.q_proj.lora_b += 0.3
    with pytest.raises(
        TrainingError, match=r"not 0.693147: the stored reference is not this policy"
    ):
        objective.check_start(model, batch, tolerance=1e-4)


def test_the_start_is_checked_in_16_bits_by_what_tokens_differ(tmp_path: Path) -> None:
    """Rounding adds up over a response to more than any tolerance of the loss."""
    model = adapted()
    phase = dpo(beta=5.0)
    objective = preference(model, phase, tmp_path)
    batch = objective.batch(range(12))
    noise = np.random.default_rng(1)
    exact = objective.reference
    for spread, refused in ((0.05, False), (0.5, True)):
        objective.reference = {
            i: logps + noise.normal(0, spread, logps.shape).astype(np.float32)
            for i, logps in (exact or {}).items()
        }
        with pytest.raises(TrainingError, match=r"not 0\.693147"):
            objective.check_start(model, batch, tolerance=5e-2)
        with (
            pytest.raises(TrainingError, match=r"tokens differ by 0\.\d+ nats from the reference")
            if refused
            else nullcontext()
        ):
            objective.check_start(model, batch, tolerance=None)


def test_without_a_reference_the_drift_from_it_is_left_out() -> None:
    model = adapted()
    loss = PairLoss(PAIRS, None, dpo())
    measured = evaluate(model, loss)
    assert "kl" not in measured and {*measured, "kl"} == set(DpoPhase.metrics)
    assert measured["chosen_rewards"] == pytest.approx(0.1 * measured["chosen_logps"], rel=1e-6)
