"""The divergence of a policy from its reference at supervised positions, exact over the vocabulary.

With p the policy's probabilities of the next token, and q the reference's:

    reverse   KL(p ‖ q) = Σ_v p log p/q
    forward   KL(q ‖ p) = Σ_v q log q/p
    js        ½ KL(p ‖ m) + ½ KL(q ‖ m),  m = ½ (p + q)

The reference is not a second model but its last states: the head, which is frozen, turns them into
logits again. So nothing of the vocabulary's size is stored.

Axes: B sequences, T tokens, N positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from forty2.inference.logprobs import head_chunk, in_chunks, softmax, sum_over_vocabulary
from forty2.model.surgery import head
from forty2.training.objectives.kl_term import KlKind

_TINY = 1e-37
"""Smallest probability of a mixture whose logarithm is computed: about fp32's smallest number."""


def supervised_logps_and_kl(
    model: nn.Module,
    states: mx.array,
    reference: mx.array,
    targets: mx.array,
    where: mx.array,
    kind: KlKind,
) -> tuple[mx.array, mx.array]:
    """Compute log p of the targets and the divergence at some positions; differentiable in `states`.

    As in `logprobs.supervised_logps`, the gradients of a chunk are computed while its logits exist. The
    head itself gets no gradient, so it must be frozen.

    Args:
        states: the policy's (B, T, D), from `surgery.body`.
        reference: the reference's, (B, T, D).
        targets: (B, T) token ids.
        where: (N,) positions in the flattened (B, T); -1 is padding.

    Returns:
        Log-probabilities and divergences, each (N,) in nats, fp32, 0 on padding.
    """
    index = mx.maximum(where, 0)
    own, other = (array.reshape(-1, array.shape[-1])[index] for array in (states, reference))
    # Twice the logits exist at once: the policy's and the reference's.
    chunk = max(1, head_chunk(model, own) // 2)
    measure = _logps_and_kl_with_gradients(model, kind)
    logps, kl = in_chunks(measure, own, other, targets.reshape(-1)[index], chunk=chunk)
    return mx.where(where >= 0, logps, 0.0), mx.where(where >= 0, kl, 0.0)


def kl_and_gradient(
    p: mx.array, log_p: mx.array, q: mx.array, log_q: mx.array, kind: KlKind
) -> tuple[mx.array, mx.array]:
    """Compute the divergence of each row, and its gradient with respect to the policy's logits.

    Args:
        p, log_p: the policy's probabilities and their logarithms, (N, V), fp32.
        q, log_q: the reference's.

    Returns:
        Divergence (N,) in nats, and gradient (N, V).
    """
    if kind == "forward":
        # With p and q added, which sum to the same, no term is below 0, and equal ones give exactly 0.
        return sum_over_vocabulary(q * (log_q - log_p) + p - q), p - q
    if kind == "reverse":
        ratio = log_p - log_q
        kl = sum_over_vocabulary(p * ratio + q - p)
        return kl, p * (ratio - kl[:, None])
    middle = mx.maximum(0.5 * (p + q), _TINY)
    ratio = log_p - mx.log(middle)
    own = sum_over_vocabulary(p * ratio + middle - p)
    other = sum_over_vocabulary(q * (log_q - mx.log(middle)) + middle - q)
    return 0.5 * (own + other), 0.5 * p * (ratio - own[:, None])


def _logps_and_kl_with_gradients(
    model: nn.Module, kind: KlKind
) -> Callable[[mx.array, mx.array, mx.array], tuple[mx.array, ...]]:
    """Return a function of states (N, D) of policy and reference and of targets (N,)."""

    @mx.custom_function
    def measure(
        states: mx.array, reference: mx.array, targets: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        states, reference = mx.stop_gradient(states), mx.stop_gradient(reference)
        logits, vjp = _head_and_vjp(model, states)
        p, log_total = softmax(logits.astype(mx.float32))
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1).astype(mx.float32)
        is_target = mx.arange(logits.shape[-1])[None] == targets[:, None]
        logps_gradient = vjp(mx.where(is_target, 1.0, 0.0) - p)
        reference_logits = head(model, reference).astype(mx.float32)
        q, reference_total = softmax(reference_logits)
        kl, of_logits = kl_and_gradient(
            p,
            logits.astype(mx.float32) - log_total,
            q,
            reference_logits - reference_total,
            kind,
        )
        return (picked - log_total).squeeze(-1), kl, logps_gradient, vjp(of_logits)

    @measure.vjp
    def backward(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> tuple[mx.array, mx.array, mx.array]:
        states, reference, targets = primals
        scaled = cotangents[0][:, None] * outputs[2] + cotangents[1][:, None] * outputs[3]
        return scaled.astype(states.dtype), mx.zeros_like(reference), mx.zeros(targets.shape)

    return lambda *arrays: tuple(measure(*arrays)[:2])  # type: ignore[index]


def _head_and_vjp(
    model: nn.Module, states: mx.array
) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
    """Run the head on states (N, D); return logits (N, V) and the function of their cotangents."""
    logits = head(model, states)

    def pull_back(cotangent: mx.array) -> mx.array:
        _, (gradient,) = mx.vjp(
            lambda states: head(model, states), [states], [cotangent.astype(logits.dtype)]
        )
        return gradient

    return logits, pull_back
