"""Every objective over pairs trains, and the terms that may be added to each do what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training import ALL, PAIRS, ListLog, adapted, dpo, preference, run

from forty2.data.library import rows as library
from forty2.data.records import Pair
from forty2.errors import TrainingError
from forty2.inference.logprobs import supported_shortcuts
from forty2.model.adapter import attach_adapter
from forty2.model.loading import load
from forty2.recipe.schema import Adapter
from forty2.text.encoder import Encoder
from forty2.training.batched_loss import PairLoss
from forty2.training.evaluation import evaluate
from forty2.training.frozen_states import frozen_states_size, store_states
from forty2.training.losses import PREFERENCE_LOSSES
from forty2.training.objectives.cpo import CpoPhase
from forty2.training.objectives.orpo import OrpoPhase
from forty2.training.objectives.pairs import PairPhase
from forty2.training.objectives.simpo import SimpoPhase
from forty2.training.reference import reference_logps

KEYS: dict[str, Any] = {"data": "x", "steps": 12, "lr": 1e-2, "batch_size": 12, "beta": 0.3}
FREE: dict[str, Any] = {"orpo": OrpoPhase, "simpo": SimpoPhase, "cpo": CpoPhase}


def phase_of(name: str) -> PairPhase:
    if name in FREE:
        phase: PairPhase = FREE[name](objective=name, **KEYS)
        return phase
    smoothing = 0.1 if name == "robust" else 0.0
    return dpo(**KEYS, loss=name, label_smoothing=smoothing)


def loss_of(model: Any, phase: PairPhase, folder: Path) -> PairLoss:
    if phase.needs_reference:
        return preference(model, phase, folder)  # type: ignore[arg-type]
    return PairLoss(PAIRS, None, phase, supported_shortcuts(model))


@pytest.mark.parametrize("name", [*PREFERENCE_LOSSES, *FREE])
def test_every_objective_begins_where_it_must_and_its_loss_falls(name: str, tmp_path: Path) -> None:
    model, phase = adapted(), phase_of(name)
    loss, log = loss_of(model, phase, tmp_path), ListLog()
    if phase.needs_reference:
        loss.check_start(model, loss.batch(ALL), tolerance=1e-4)
    run(model, loss, phase, tmp_path / "work", log)
    losses = [record["loss"] for record in log.records if "grad_norm" in record]
    assert losses[-1] < losses[0] and all(map(np.isfinite, losses))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PREFERENCE_LOSSES, *FREE])
def test_the_loss_falls_on_real_pairs(name: str, starter_path: Path, tmp_path: Path) -> None:
    """The 32 shortest pairs of the library on the starter model: 30 steps see most of them twice."""
    loaded = load(str(starter_path))
    encoder, model = Encoder(loaded.tokenizer), loaded.model
    rows = [
        encoder.encode_pair(
            Pair(
                prompt=({"role": "user", "content": row["question"]},),
                chosen=({"role": "assistant", "content": row["chosen"]},),
                rejected=({"role": "assistant", "content": row["rejected"]},),
            )
        )
        for row in sorted(
            library("entities"), key=lambda row: len(row["chosen"] + row["rejected"])
        )[:32]
    ]
    attach_adapter(model, Adapter(rank=8, scale=2.0, layers=4), seed=1)
    phase = replace(phase_of(name), steps=30, batch_size=2, lr=2e-4, beta=0.1)
    which, shortcuts = range(32), supported_shortcuts(model)
    frozen = store_states(
        model, rows, which, frozen_states_size(model, rows, which), tmp_path / "states"
    )
    reference = None
    if phase.needs_reference:
        path = tmp_path / "reference.npz"
        reference = reference_logps(model, rows, which, path, shortcuts=shortcuts, frozen=frozen)
    loss = PairLoss(rows, reference, phase, shortcuts, frozen)
    before = evaluate(model, loss)
    run(model, loss, phase, tmp_path / "work", spec=Adapter(rank=8, scale=2.0, layers=4))
    after = evaluate(model, loss)
    assert after["loss"] < before["loss"]
    if name != "discopop":  # near the start, its loss falls as the margin falls
        assert after["margin"] > before["margin"]


def test_the_likelihood_of_chosen_responses_is_added_a_token(tmp_path: Path) -> None:
    model, plain = adapted(), dpo()
    with_sft = dpo(sft_weight=0.5)
    losses = [preference(model, phase, tmp_path) for phase in (plain, with_sft)]
    batch = losses[0].batch(ALL)
    totals = [float(one.loss(model, one.arrays(batch)).total) for one in losses]
    reference = losses[0].reference or {}
    nll = [
        -float(reference[n][: len(row.chosen)].sum()) / len(row.chosen)
        for n, row in enumerate(PAIRS)
    ]
    assert totals[1] - totals[0] == pytest.approx(0.5 * sum(nll), rel=1e-4)
    losses[1].check_start(model, batch, tolerance=1e-4)
    model.model.layers[1].self_attn.q_proj.lora_b += 0.3
    with pytest.raises(TrainingError, match="the stored reference is not this policy"):
        losses[1].check_start(model, batch, tolerance=1e-4)


def test_tokens_beyond_the_shorter_response_weigh_less(tmp_path: Path) -> None:
    model = adapted()
    loss = preference(model, dpo(length_desensitise=0.25), tmp_path)
    loss.check_start(model, loss.batch(ALL), tolerance=1e-4)
    model.model.layers[1].self_attn.q_proj.lora_b += 0.3
    expected = 0.0
    batch = loss.batch(ALL)
    found_logps = loss.logps(model, loss.arrays(batch))
    policy, reference = np.array(found_logps.policy), np.array(found_logps.reference)
    gains = policy - reference
    for n, row in enumerate(PAIRS):
        shared = min(map(len, row.responses))
        sums = [
            gains[at, :shared].sum() + 0.25 * gains[at, shared : len(ids)].sum()
            for at, ids in zip((n, n + len(PAIRS)), row.responses, strict=True)
        ]
        expected += np.logaddexp(0, -0.1 * (sums[0] - sums[1]))
    found = float(loss.loss(model, loss.arrays(batch)).total)
    assert found == pytest.approx(expected, rel=1e-4)


def test_means_count_tokens_beyond_the_shorter_response_by_their_weight(tmp_path: Path) -> None:
    model = adapted()
    phase = SimpoPhase(objective="simpo", **KEYS, length_desensitise=0.25, sft_weight=0.5)
    loss, batch = loss_of(model, phase, tmp_path), loss_of(model, phase, tmp_path).batch(ALL)
    policy = np.array(loss.logps(model, loss.arrays(batch)).policy)
    expected = 0.0
    for n, row in enumerate(PAIRS):
        shared = min(map(len, row.responses))
        means = [
            np.average(
                policy[at, : len(ids)], weights=np.where(np.arange(len(ids)) < shared, 1, 0.25)
            )
            for at, ids in zip((n, n + len(PAIRS)), row.responses, strict=True)
        ]
        expected += np.logaddexp(0, -0.3 * (means[0] - means[1] - 0.55))
        expected -= 0.5 * policy[n, : len(row.chosen)].mean()
    assert any(len(row.chosen) > len(row.rejected) for row in PAIRS)
    found = float(loss.loss(model, loss.arrays(batch)).total)
    assert found == pytest.approx(expected, rel=1e-4)
