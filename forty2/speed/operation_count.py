"""The fewest operations that a suite needs, and so the least time that it can take on a machine.

Counted are matrix products, a multiplication and an addition each: every frozen block once for
each token, the trained blocks once for the reference and once forward and once backward to their
inputs (their weights are frozen) for the policy, adapters with their own gradients, and the head
only where something is supervised. A prompt is computed once for all its responses. Everything
else (norms, rotations, softmax, the optimizer, padding) is taken to cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.nn as nn

from forty2.model.surgery import blocks


class Shapes(NamedTuple):
    """What a token meets in a model, in multiplications."""

    frozen: int
    """In the linear layers of the blocks below the adapters."""
    trained: int
    """In those of the blocks with adapters, adapters not included."""
    adapters: int
    frozen_width: int
    """Heads × head size, summed over the blocks below the adapters: what a query costs for each key
    that it attends, and a value for each query."""
    trained_width: int
    head: int
    """Of the output head, for a position whose logits are needed."""


class Work(NamedTuple):
    """What some rows come to."""

    tokens: int
    """That the model is fed."""
    attended: int
    """Keys that all of them attend, themselves included."""
    supervised: int
    """Positions whose logits are needed."""

    def __add__(self, other: Any) -> Work:
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Work(0, 0, 0)


def shapes(
    model: nn.Module, config: Mapping[str, Any], *, layers: int = 0, rank: int = 0
) -> Shapes | None:
    """A model's shapes with adapters of a rank on its last blocks; None where they are not plain.

    Plain are blocks that run all their linear layers on every token: no mixtures of experts.
    """
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not heads or not width or any("expert" in key for key in config):
        return None
    width_of_heads = heads * (config.get("head_dim") or width // heads)
    every = [list(linear_sizes(block)) for block in blocks(model)]
    depth = max(0, len(every) - layers)
    counts = [sum(a * b for a, b in block) for block in every]
    return Shapes(
        frozen=sum(counts[:depth]),
        trained=sum(counts[depth:]),
        adapters=sum(rank * (a + b) for block in every[depth:] for a, b in block),
        frozen_width=width_of_heads * depth,
        trained_width=width_of_heads * (len(every) - depth),
        head=width * config["vocab_size"],
    )


def linear_sizes(module: nn.Module) -> Iterable[tuple[int, int]]:
    """Inputs and outputs of the linear layers in a module."""
    for _, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            outputs, inputs = layer.weight.shape
            yield inputs, outputs
        elif isinstance(layer, nn.QuantizedLinear):
            outputs, packed = layer.weight.shape
            yield packed * 32 // layer.bits, outputs


def linear_counts(model: nn.Module) -> list[tuple[int, int, int]]:
    """Inputs, outputs and how often, of the linear layers of all blocks."""
    found = Counter(size for block in blocks(model) for size in linear_sizes(block))
    return [(*size, times) for size, times in sorted(found.items())]


def operations_of(sizes: Iterable[tuple[int, int, int]], tokens: int) -> int:
    """Of such layers on so many tokens."""
    return sum(2 * tokens * inputs * outputs * times for inputs, outputs, times in sizes)


# --- rows ---


def shared(prompt: int, responses: Sequence[int], known: int = 0) -> Work:
    """A prompt and its responses, by their tokens; the first `known` of the prompt are there.

    A response is predicted from the prompt's last token on, which is fed with it; its own last
    token predicts nothing and is not fed.
    """
    work = _span(known, prompt - 1 - known)
    for response in responses:
        work += _span(prompt - 1, response)._replace(supervised=response)
    return work


def chat(tokens: int, start: int) -> Work:
    """A row that is supervised from `start` on."""
    return _span(0, tokens - 1)._replace(supervised=tokens - max(1, start))


def _span(start: int, tokens: int) -> Work:
    """Tokens at positions `start` and on: the one at position t attends t + 1."""
    return Work(tokens, tokens * start + tokens * (tokens + 1) // 2, 0)


# --- suites ---


def dpo_operations(model: Shapes, work: Work) -> int:
    """One epoch of DPO: the frozen blocks, the reference, the policy."""
    reference = _forward(model.trained, model.trained_width, work) + _head(model, work)
    return _forward(model.frozen, model.frozen_width, work) + reference + _learning(model, work)


def sft_operations(model: Shapes, work: Work) -> int:
    """One epoch of SFT."""
    return _forward(model.frozen, model.frozen_width, work) + _learning(model, work)


def scoring_operations(model: Shapes, work: Work) -> int:
    """Log-probabilities alone."""
    weights, width = model.frozen + model.trained, model.frozen_width + model.trained_width
    return _forward(weights, width, work) + _head(model, work)


def _learning(model: Shapes, work: Work) -> int:
    """Forward and backward through the trained blocks and the head."""
    forward = _forward(model.trained, model.trained_width, work) + _head(model, work)
    # Attention has two products forward, and two for the gradient of each.
    backward = 2 * model.trained * work.tokens + 8 * model.trained_width * work.attended
    adapters = 6 * model.adapters * work.tokens
    return forward + backward + _head(model, work) + adapters


def _forward(weights: int, width: int, work: Work) -> int:
    return 2 * weights * work.tokens + 4 * width * work.attended


def _head(model: Shapes, work: Work) -> int:
    return 2 * model.head * work.supervised
