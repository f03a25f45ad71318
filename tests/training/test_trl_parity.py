"""Losses of pairs against TRL's own code, value and gradient. `make parity` installs it and runs these.

TRL computes a loss inside its trainer's step. Its step is called here with a model that returns given
log-probabilities, so that both sides start from the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forty2.training.losses import (
    PREFERENCE_LOSSES,
    PairLogps,
    cpo_loss,
    orpo_loss,
    preference_loss,
    simpo_loss,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RNG = np.random.default_rng(5)
PAIRS, TOKENS = 6, 9
MASK = np.array([[n < 3 + row % 6 for n in range(TOKENS)] for row in range(2 * PAIRS)])
POLICY, REFERENCE = (-np.abs(RNG.normal(2, 1, (2 * PAIRS, TOKENS))) * MASK for _ in range(2))
OURS_ALONE = {"dpop"}
"""Losses that TRL does not have."""
DIVERGENCES = {
    "reverse_kl": "reverse_kl",
    "forward_kl": "forward_kl",
    "js": "js_divergence",
    "alpha": "alpha_divergence",
}
CASES = [(loss, "reverse_kl") for loss in PREFERENCE_LOSSES if loss not in OURS_ALONE]
CASES += [("sigmoid", divergence) for divergence in DIVERGENCES if divergence != "reverse_kl"]


def same(value: Any) -> Any:
    return value


def trl_loss(loss: str, divergence: str, beta: float, smoothing: float) -> tuple[float, Any]:
    """Return TRL's mean loss, and its gradient with respect to each token's log-probability."""
    torch: Any = pytest.importorskip("torch")
    trainer: Any = pytest.importorskip("trl.trainer.dpo_trainer")
    policy = torch.tensor(POLICY, dtype=torch.float32, requires_grad=True)
    reference = torch.tensor(REFERENCE, dtype=torch.float32).sum(dim=1).chunk(2)
    zeros = torch.zeros(policy.shape)
    outputs = SimpleNamespace(
        log_probs=policy, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    settings = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=DIVERGENCES[divergence],
        f_alpha_divergence_coef=0.5,
        loss_types=[loss],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
    )
    mask = torch.tensor(np.concatenate([np.zeros((2 * PAIRS, 1), bool), MASK], axis=1)).long()
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    found = trainer.DPOTrainer._compute_loss(settings, lambda **_: outputs, inputs, False)
    found.backward()
    return float(found), policy.grad.numpy()


def check(ours: Callable[[mx.array, mx.array], mx.array], theirs: Any, logps: Any) -> None:
    """Compare a loss (B,) of the log-probabilities (B,) of both sides, and its gradient."""
    torch: Any = pytest.importorskip("torch")
    tensors = [torch.tensor(one, dtype=torch.float32, requires_grad=True) for one in logps]
    loss = theirs(*tensors)
    loss.sum().backward()
    arrays = [mx.array(one.astype(np.float32)) for one in logps]
    np.testing.assert_allclose(np.asarray(ours(*arrays)), loss.detach().numpy(), rtol=1e-5)
    gradients = mx.grad(lambda *a: ours(*a).sum(), argnums=[0, 1])(*arrays)
    for found, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(np.asarray(found), tensor.grad.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("loss", "divergence"), CASES)
@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_losses_against_a_reference(loss: Any, divergence: Any, beta: float) -> None:
    smoothing = {"robust": 0.1, "exo_pair": 0.1}.get(loss, 0.0)
    value, gradient = trl_loss(loss, divergence, beta, smoothing)
    tokens = [mx.array(one) for one in np.split(MASK.sum(axis=1), 2)]
    reference = mx.split(mx.array(REFERENCE.astype(np.float32)).sum(axis=1), 2)

    def ours(policy: mx.array) -> mx.array:
        logps = PairLogps(*mx.split(policy.sum(axis=1), 2), *reference)
        return preference_loss(
            logps,
            loss=loss,
            beta=beta,
            label_smoothing=smoothing,
            f_divergence=divergence,
            chosen_tokens=tokens[0],
            rejected_tokens=tokens[1],
        ).mean()

    policy = mx.array(POLICY.astype(np.float32))
    assert float(ours(policy)) == pytest.approx(value, rel=1e-5)
    found = np.asarray(mx.grad(ours)(policy))
    np.testing.assert_allclose(found * MASK, gradient * MASK, rtol=1e-4, atol=1e-7)


def test_losses_without_a_reference() -> None:
    cpo: Any = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    orpo: Any = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    accelerator = SimpleNamespace(device="cpu")
    sums = [-np.abs(RNG.normal(20, 6, PAIRS)) for _ in range(2)]
    means = [one / 12 for one in sums]
    plain = SimpleNamespace(
        alpha=0.0, accelerator=accelerator, loss_type="sigmoid", beta=0.1, label_smoothing=0.0
    )
    check(
        lambda c, r: cpo_loss(c, r, beta=0.1),
        lambda c, r: cpo.CPOTrainer.cpo_loss(plain, c, r)[0],
        sums,
    )
    simpo = SimpleNamespace(
        **{**vars(plain), "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}
    )
    check(
        lambda c, r: simpo_loss(c, r, beta=2.0, gamma_beta_ratio=0.5),
        lambda c, r: cpo.CPOTrainer.cpo_loss(simpo, c, r)[0],
        means,
    )
    odds = SimpleNamespace(beta=0.3, accelerator=accelerator)
    check(
        lambda c, r: orpo_loss(c, r, beta=0.3),
        lambda c, r: -orpo.ORPOTrainer.odds_ratio_loss(odds, c, r)[0],  # it is a term to subtract
        means,
    )
