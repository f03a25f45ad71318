"""The check that training moves every trainable tensor, made at the first steps of a phase.

A tensor that no gradient reaches stays as it is while the loss falls by means of the others, so no
other figure shows it. After the first step every tensor must have moved. One of LoRA's factors has
no gradient while the other is zero, as one of the two is at the beginning (B; of PEFT's embeddings, A),
so it must have moved after the second; so must the tensors behind the gate of phase attention.

Some steps say nothing and do not count: rows whose gradients cancel or cannot reach every tensor
(`BatchedLoss.reaches_all`), and a loss that is zero already. Of a list of layers within a block, such
as experts, one must have moved, since a step's tokens may not reach all. While the learning rate
warms up, a change may be smaller than rounding: a gradient is then enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.errors import first_names
from forty2.model.adapter import adapter_weights, layer_kind
from forty2.model.surgery import blocks
from forty2.model.tag_rows import head_table, is_tag_rows
from forty2.training.red_lines import SMALL_LOSS
from forty2.training.step import StepResult

_BEHIND = {
    "lora_a": ("lora_b",),
    "lora_b": ("lora_a",),
    "gate": ("to_phases", "from_phases"),
}
"""Tensors whose gradient is a product with another, by that one's last name: the other factor of LoRA,
and what the gate of phase attention multiplies."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MOST_NAMES = 3
"""Most tensors that a message names."""


class MovementCheck:
    """Watches the steps of a phase until every trainable tensor has moved."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = _to_move(model)
        self._late = _without_gradient_at_first(self._before)
        self._places = _places(model, self._before)
        self._reached: set[str] = set()
        self._remedy = (
            "name the layers to train, without that one, in adapter.keys"
            if layer_kind(model) is not None
            else "train an adapter instead (train: lora)"
        )
        self._steps = 0

    @property
    def done(self) -> bool:
        """Whether every tensor has moved."""
        return not self._before

    def judge(self, result: StepResult, *, full_rate: bool) -> str | None:
        """Judge a step that was taken.

        Args:
            full_rate: whether the learning rate has ended its warm-up.

        Returns:
            What did not move, and what that means; None: nothing is wrong so far.
        """
        if result.norm == 0 and result.loss <= SMALL_LOSS:
            return None
        self._steps += 1
        names = list(self._before)
        now = adapter_weights(self._model)
        moved = _where({name: mx.any(now[name] != self._before[name]) for name in names})
        pulled = _where({name: result.squares[name] > 0 for name in names})
        self._reached |= {self._places[name] for name in pulled}
        due = [name for name in names if self._steps > 1 or name not in self._late]
        missed = [name for name in due if self._places[name] not in self._reached]
        if missed:
            return (
                f"no gradient reaches {first_names(missed, _MOST_NAMES)}, so training leaves it as it is: what that "
                f"layer computes does not enter the loss; {self._remedy}"
            )
        unmoved = [name for name in due if name not in moved]
        lost = [name for name in unmoved if name in pulled]
        if lost and full_rate:
            return f"the step is too small to change {first_names(lost, _MOST_NAMES)}: rounding undoes it; raise lr"
        keep = {*lost, *(name for name in names if name not in due)}
        self._before = {name: value for name, value in self._before.items() if name in keep}
        return None


def _to_move(model: nn.Module) -> dict[str, mx.array]:
    """Return the tensors that must move: all but a table of tags' embeddings, if it is not the head, too.

    A step may have no tag among its tokens; a head computes the probability of all.
    """
    weights = adapter_weights(model)
    head = head_table(model)
    if head is None:
        return weights
    return {
        name: value
        for name, value in weights.items()
        if not is_tag_rows(name) or value is head.tag_rows
    }


def _without_gradient_at_first(weights: Mapping[str, mx.array]) -> set[str]:
    """Find the tensors whose gradient is a product with zeros."""
    factors = {name: value for name, value in weights.items() if _leaf(name) in _BEHIND}
    zero = _where({name: mx.all(value == 0) for name, value in factors.items()})
    behind = (
        name.removesuffix(_leaf(name)) + other for name in zero for other in _BEHIND[_leaf(name)]
    )
    return weights.keys() & set(behind)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _places(model: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, str]:
    """Return each tensor's place: its name, with * for the numbers of a list within a block."""
    inside = {id(block) for block in blocks(model)}
    prefixes = [f"{name}." for name, module in model.named_modules() if id(module) in inside]
    places = {}
    for name in weights:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), name)
        places[name] = prefix + _NUMBER.sub("*", name[len(prefix) :])
    return places


def _where(flags: Mapping[str, mx.array]) -> set[str]:
    """Return the names of the scalars that are true; read back in one go."""
    if not flags:
        return set()
    true = np.asarray(mx.stack([*flags.values()]))
    return {name for name, flag in zip(flags, true, strict=True) if flag}
