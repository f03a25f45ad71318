"""Weights that replace the base's are known under the names that they have at the time."""

from __future__ import annotations

import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from forty2.model.replaced import mark_replaced, replaced_names


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)


def test_names_follow_the_layers_that_are_put_around_a_weight() -> None:
    model = Two()
    mark_replaced(model, {"first.weight", "nowhere.weight"})
    assert replaced_names(model) == {"first.weight"}
    layer = LoRALinear.from_base(model.first, r=1)
    model.update_modules(tree_unflatten([("first", layer)]))
    assert replaced_names(model) == {"first.linear.weight"}
    mark_replaced(model, {"second.bias", "first.linear.bias"})
    assert replaced_names(model) == {"first.linear.weight", "first.linear.bias", "second.bias"}
