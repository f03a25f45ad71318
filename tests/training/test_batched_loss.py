"""Losses over batches: their value at the start, their metrics, the rows that reach every tensor."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.training import PAIRS, ROWS, adapted, dpo, preference, sft

from forty2.errors import TrainingError
from forty2.inference.logprobs import Shortcuts
from forty2.text.rows import PairRow, RatedRow, Row
from forty2.training.batched_loss import (
    BatchedLoss,
    ConversationLoss,
    PairLoss,
    RatedLoss,
    batched_loss,
)
from forty2.training.batched_loss.responses import kl_per_token
from forty2.training.evaluation import evaluate
from forty2.training.objectives.dpo import DpoPhase
from forty2.training.objectives.kto import KtoPhase
from forty2.training.objectives.phase import Phase

KTO = KtoPhase(objective="kto", data="x", steps=6, lr=1e-2, beta=0.3)


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


def test_the_drift_per_token_by_hand() -> None:
    """Half the mean square of the log-ratios 1, 2 and of 3, padding left out."""
    policy, reference = mx.array([[1.0, 3.0, 9.0], [3.0, 9.0, 9.0]]), mx.array([[0.0, 1.0, 0.0]])
    mask = mx.array([[True, True, False], [True, False, False]])
    assert kl_per_token(policy, reference, mask).tolist() == [0.5 * (1 + 4) / 2, 0.5 * 9]


def test_metrics_of_pairs_are_those_of_known_log_ratios(tmp_path: Path) -> None:
    """The reference is the policy less 0.2 at each chosen token, and less -0.3 at each rejected."""
    model = adapted()
    objective = preference(model, dpo(), tmp_path)
    policy, lengths = objective.reference or {}, [(len(p.chosen), len(p.rejected)) for p in PAIRS]
    shifts = np.array([0.2, -0.3], np.float32)
    objective.reference = {i: logps - np.repeat(shifts, lengths[i]) for i, logps in policy.items()}
    measured = evaluate(model, objective)
    chosen, rejected = (np.mean(n) for n in zip(*lengths, strict=True))
    wanted = {
        "kl": (0.5 * 0.2**2 + 0.5 * 0.3**2) / 2,
        "chosen_rewards": 0.1 * 0.2 * chosen,
        "rejected_rewards": 0.1 * -0.3 * rejected,
        "margin": 0.1 * (0.2 * chosen + 0.3 * rejected),
        "accuracy": 1.0,
        "chosen_logps": np.mean([policy[i][: n[0]].sum() for i, n in enumerate(lengths)]),
        "rejected_logps": np.mean([policy[i][n[0] :].sum() for i, n in enumerate(lengths)]),
        "loss": np.mean([np.log1p(np.exp(-0.1 * (0.2 * c + 0.3 * r))) for c, r in lengths]),
    }
    assert measured == pytest.approx(wanted, rel=1e-3)


def test_the_loss_of_conversations_is_their_cross_entropy_in_float64() -> None:
    model, total, tokens = adapted(), 0.0, 0
    for row in ROWS:
        logits = np.asarray(model(mx.array([row.ids[:-1]]))[0], np.float64)
        logps = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for at, supervised in enumerate(row.mask[1:]):
            total -= supervised * logps[at, row.ids[at + 1]]
            tokens += supervised
    for shortcuts in (Shortcuts(), Shortcuts(split_head=True)):
        measured = evaluate(model, ConversationLoss(ROWS, shortcuts))
        assert measured == pytest.approx({"loss": total / tokens}, rel=1e-5)


def test_responses_that_are_alike_are_told_apart_in_no_pair() -> None:
    pairs = [pair._replace(rejected=pair.chosen, weight=2.5) for pair in PAIRS]
    loss = PairLoss(pairs, None, dpo())
    measured = evaluate(adapted(), loss)
    assert measured["accuracy"] == 0.5 and measured["margin"] == 0
    assert loss.weights == [2.5] * len(pairs)


def test_rounding_that_dpop_magnifies_passes_the_check_of_the_start(tmp_path: Path) -> None:
    """A chosen response that looks less likely is penalized fifty-fold: so is its rounding."""
    model = adapted()
    objective = preference(model, dpo(loss="dpop"), tmp_path)
    batch, exact = objective.batch(range(12)), objective.reference or {}
    for shift, refused in ((1e-3, False), (1e-1, True)):
        objective.reference = {i: logps + np.float32(shift) for i, logps in exact.items()}
        with pytest.raises(TrainingError) if refused else nullcontext():
            objective.check_start(model, batch, tolerance=2e-3)


@pytest.mark.parametrize("kind", ["conversations", "pairs", "rated"])
def test_the_loss_of_a_phase_has_its_rows_its_settings_and_its_reference(kind: str) -> None:
    model = adapted()
    reference = {
        i: np.full(sum(map(len, p.responses)), -5, np.float32) for i, p in enumerate(PAIRS)
    }
    rated = [RatedRow(p.prompt, p.chosen, p.rejected, True, p.origin) for p in PAIRS]
    cases: dict[str, tuple[Phase, Any, BatchedLoss]] = {
        "conversations": (sft(), ROWS, ConversationLoss(ROWS)),
        "pairs": (dpo(beta=0.3), PAIRS, PairLoss(PAIRS, reference, dpo(beta=0.3))),
        "rated": (KTO, rated, RatedLoss(rated, reference, KTO)),
    }
    phase, rows, wanted = cases[kind]
    assert evaluate(model, batched_loss(phase, rows, reference)) == evaluate(model, wanted)


def equal_sides(n: int) -> PairRow:
    return PairRow(PAIRS[n].prompt, PAIRS[n].chosen, PAIRS[n].chosen, "same")


def swapped(n: int) -> PairRow:
    return PairRow(PAIRS[n].prompt, PAIRS[n].rejected, PAIRS[n].chosen, "swapped")


def rated(n: int, desirable: bool) -> RatedRow:
    return RatedRow(*PAIRS[n][:3], desirable, "rated")


@pytest.mark.parametrize(
    ("rows", "which", "wanted"),
    [
        ([Row([5, 6], [False, True], "a")], [0], False),  # attention to a single token is constant
        ([Row([5, 6, 7], [False, False, True], "a")], [0], True),
        ([Row([5, 6, 7], [False, True, False], "a")], [0], False),
        ([equal_sides(1), equal_sides(2)], [0, 1], False),
        ([equal_sides(1), PAIRS[2]], [0, 1], True),
        ([equal_sides(1), PAIRS[2]], [0], False),
        ([PAIRS[1], swapped(1)], [0, 1], False),
        ([PairRow([5], [6], [7], "short")], [0], False),
        ([PairRow([5], [6, 8], [7], "longer")], [0], True),
        ([rated(1, True), rated(1, False)], [0, 1], False),
        ([rated(1, True), rated(2, False)], [0, 1], True),
    ],
)
def test_rows_that_cannot_move_everything_are_known(
    rows: Any, which: list[int], wanted: bool
) -> None:
    objective: BatchedLoss
    if isinstance(rows[0], Row):
        objective = ConversationLoss(rows)
    elif isinstance(rows[0], PairRow):
        objective = PairLoss(rows, None, dpo())
    else:
        objective = RatedLoss(rows, None, KTO)
    assert objective.reaches_all(which) is wanted
