"""The fewest operations that a suite needs, and so the least time that it can take on a machine.

Only matrix products count, each multiplication and each addition as one operation. Every frozen
block runs once for each token. The trained blocks run once for the reference, and for the policy
once forward and once backward to their inputs (their weights are frozen); adapters also need their
own gradients. The head runs only where something is supervised. A prompt is computed once for all its
responses. Everything else (norms, rotations, softmax, the optimizer, padding) is free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.nn as nn

from forty2.files import JsonObject
from forty2.model.surgery import blocks

LinearSize = tuple[int, int, int]
"""Inputs and outputs of a linear layer, and the number of layers of that size."""


@dataclass(frozen=True)
class Shapes:
    """Multiplications that one token costs in a model, by the part of the model."""

    frozen: int
    """Linear layers of the blocks below the adapters."""
    trained: int
    """Linear layers of the blocks with adapters, adapters not included."""
    adapters: int
    """Adapters."""
    frozen_width: int
    """Heads × head size, summed over the blocks below the adapters: the cost of a query for each key
    that it attends to, and again for each value."""
    trained_width: int
    """The same for the blocks with adapters."""
    head: int
    """Output head, for each position whose logits are needed."""


@dataclass(frozen=True)
class Work:
    """The size of some rows, in the quantities that determine their cost."""

    tokens: int
    """Tokens fed to the model."""
    attended: int
    """Number of keys that a token attends to, its own included, summed over the tokens."""
    supervised: int
    """Positions whose logits are needed."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.attended + other.attended,
            self.supervised + other.supervised,
        )


NO_WORK = Work(0, 0, 0)


# --- models ---------------------------------------------------------------------------------------


def model_shapes(
    model: nn.Module, config: JsonObject, *, layers: int = 0, rank: int = 0
) -> Shapes | None:
    """Count the multiplications per token of a model with adapters on its last blocks.

    Args:
        config: content of the model's `config.json`.
        layers: number of blocks with adapters, counted from the last.
        rank: rank of the adapters.

    Returns:
        None for mixtures of experts, in which some linear layers do not run on every token.
    """
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not heads or not width or any("expert" in key for key in config):
        return None
    attention_width = heads * (config.get("head_dim") or width // heads)
    sizes = [list(_linear_layers(block)) for block in blocks(model)]
    depth = max(0, len(sizes) - layers)
    costs = [sum(inputs * outputs for inputs, outputs in block) for block in sizes]
    return Shapes(
        frozen=sum(costs[:depth]),
        trained=sum(costs[depth:]),
        adapters=sum(rank * (a + b) for block in sizes[depth:] for a, b in block),
        frozen_width=attention_width * depth,
        trained_width=attention_width * (len(sizes) - depth),
        head=width * config["vocab_size"],
    )


def linear_sizes(model: nn.Module) -> list[LinearSize]:
    """List the sizes of the linear layers in all blocks."""
    counts = Counter(size for block in blocks(model) for size in _linear_layers(block))
    return [(*size, times) for size, times in sorted(counts.items())]


def linear_operations(sizes: Sequence[LinearSize], tokens: int) -> int:
    """Count the operations of linear layers on some tokens."""
    return sum(2 * tokens * inputs * outputs * times for inputs, outputs, times in sizes)


def _linear_layers(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Yield inputs and outputs of each linear layer in a module."""
    for _, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            outputs, inputs = layer.weight.shape
            yield inputs, outputs
        elif isinstance(layer, nn.QuantizedLinear):
            outputs, packed = layer.weight.shape
            yield packed * 32 // layer.bits, outputs


# --- rows -----------------------------------------------------------------------------------------


def responses_work(prompt: int, responses: Sequence[int], *, cached: int = 0) -> Work:
    """Count the work of a prompt and its responses, by their numbers of tokens.

    The prompt's last token is fed with each response, whose first token it predicts; a response's
    own last token predicts nothing and is not fed.

    Args:
        cached: tokens at the start of the prompt whose keys and values are there already.
    """
    work = _span(cached, prompt - 1 - cached)
    for response in responses:
        work += replace(_span(prompt - 1, response), supervised=response)
    return work


def conversation_work(tokens: int, start: int) -> Work:
    """Count the work of a row of `tokens` tokens that is supervised from position `start` on."""
    return replace(_span(0, tokens - 1), supervised=tokens - max(1, start))


def _span(start: int, tokens: int) -> Work:
    """Count tokens at positions from `start` on; the one at position t attends to t + 1 keys."""
    return Work(tokens, tokens * start + tokens * (tokens + 1) // 2, 0)


# --- suites ---------------------------------------------------------------------------------------


def dpo_operations(model: Shapes, work: Work) -> int:
    """Count the operations of one epoch of DPO: the frozen blocks, the reference, the policy."""
    reference = _forward(model.trained, model.trained_width, work) + _head(model, work)
    return _forward(model.frozen, model.frozen_width, work) + reference + _policy(model, work)


def sft_operations(model: Shapes, work: Work) -> int:
    """Count the operations of one epoch of SFT."""
    return _forward(model.frozen, model.frozen_width, work) + _policy(model, work)


def scoring_operations(model: Shapes, work: Work) -> int:
    """Count the operations of log-probabilities without gradients."""
    weights, width = model.frozen + model.trained, model.frozen_width + model.trained_width
    return _forward(weights, width, work) + _head(model, work)


def _policy(model: Shapes, work: Work) -> int:
    """Count forward and backward through the trained blocks, the adapters and the head."""
    forward = _forward(model.trained, model.trained_width, work) + _head(model, work)
    # Attention has two products forward, and two for the gradient of each.
    backward = 2 * model.trained * work.tokens + 8 * model.trained_width * work.attended
    adapters = 6 * model.adapters * work.tokens
    return forward + backward + _head(model, work) + adapters


def _forward(weights: int, width: int, work: Work) -> int:
    return 2 * weights * work.tokens + 4 * width * work.attended


def _head(model: Shapes, work: Work) -> int:
    return 2 * model.head * work.supervised
