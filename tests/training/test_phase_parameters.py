"""Full fine-tuning and trained embeddings: the step that plain mlx takes, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.models import tiny_model
from support.training import ALL, PAIRS, ROWS, SPEC, dpo, run, sft

from forty2.inference.logprobs import supported_shortcuts
from forty2.model.phase_parameters import set_trained
from forty2.training.batched_loss import ConversationLoss, PairLoss, micro_batches
from forty2.training.objectives.phase import Trains
from forty2.training.optimizers import make_optimizer
from forty2.training.reference import reference_logps
from forty2.training.step import Stepper

RATE = 0.5


def built(architecture: str, trains: Trains, *, tied: bool = False) -> Any:
    choice = {} if architecture == "gemma2" else {"tie_word_embeddings": tied}
    model = tiny_model(architecture, **choice)
    set_trained(model, trains, SPEC, seed=1)
    return model


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in tree_flatten(model.parameters())}


def plain_step(model: nn.Module) -> None:
    """Take the step that a user of mlx would write, one row after the other."""

    def loss(model: nn.Module) -> mx.array:
        total, count = mx.array(0.0), 0
        for row in ROWS:
            logits = model(mx.array([row.ids[:-1]]))[0]
            losses = nn.losses.cross_entropy(logits, mx.array(row.ids[1:]))
            learned = mx.array(row.mask[1:])
            total, count = total + (losses * learned).sum(), count + sum(row.mask[1:])
        return total / count

    _, gradients = nn.value_and_grad(model, loss)(model)
    optim.SGD(RATE).update(model, gradients)
    mx.eval(model.parameters())


@pytest.mark.parametrize("trains", ["full", "embeddings"])
@pytest.mark.parametrize(
    ("architecture", "tied"),
    [("llama", False), ("llama", True), ("qwen2", False), ("gemma2", True)],
)
def test_a_step_is_that_of_plain_mlx(architecture: str, tied: bool, trains: Trains) -> None:
    ours, theirs = (built(architecture, trains, tied=tied) for _ in range(2))
    before = weights(ours)
    loss = ConversationLoss(ROWS, supported_shortcuts(ours))
    phase = sft(optimizer="sgd", lr=RATE, clip_norm=None)
    ours.train()
    Stepper(ours, make_optimizer(phase), loss, phase).step(
        [*micro_batches(loss, range(len(ROWS)))], RATE
    )
    theirs.train()
    plain_step(theirs)
    after, wanted = weights(ours), weights(theirs)
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, value in wanted.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6, err_msg=name)
        moves = trains == "full" or name in tables
        assert (after[name] != before[name]).any() == moves, name


def test_preferences_train_all_weights_from_their_reference(tmp_path: Path) -> None:
    model = built("llama", "full")
    logps = reference_logps(model, PAIRS, ALL, tmp_path / "reference.npz")
    loss = PairLoss(PAIRS, logps, dpo(), supported_shortcuts(model))
    trained = run(model, loss, dpo(lr=1e-3), tmp_path / "work")
    assert trained.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("checkpointed", [False, True])
def test_embeddings_alone_move_in_a_phase(checkpointed: bool, tmp_path: Path) -> None:
    model = built("llama", "lora", tied=True)
    set_trained(model, "embeddings", SPEC, seed=1)
    before = weights(model)
    loss = ConversationLoss(ROWS, supported_shortcuts(model))
    run(model, loss, sft(grad_checkpoint=checkpointed), tmp_path / "work")
    changed = {name for name, value in weights(model).items() if (value != before[name]).any()}
    assert changed == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("trains", ["full", "embeddings"])
def test_a_phase_that_stops_goes_on_to_the_same_weights(trains: Trains, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 5:
            raise Stop

    def trained(work: Path, **more: Any) -> dict[str, np.ndarray]:
        model = built("llama", trains)
        loss = ConversationLoss(ROWS, supported_shortcuts(model))
        run(model, loss, sft(save_every_steps=3, schedule="cosine"), work, **more)
        return weights(model)

    wanted = trained(tmp_path / "whole")
    with pytest.raises(Stop):
        trained(tmp_path / "stopped", progress=stop)
    saved = sum(len(mx.load(str(f))) for f in tmp_path.glob("stopped/step3/adapters.safetensors"))
    assert saved == (2 if trains == "embeddings" else len(wanted))
    for name, value in trained(tmp_path / "stopped").items():
        np.testing.assert_array_equal(value, wanted[name])
