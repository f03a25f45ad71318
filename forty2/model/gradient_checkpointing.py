"""Gradient checkpointing that is exact with dropout and can be switched on twice.

A checkpointed block stores only its inputs and computes the rest again in the backward pass.
Dropout must then draw the same mask both times, so each block draws its random keys first and
passes them in. mlx-lm instead patches the block's *class*, which nests when done twice, and draws
different masks the second time.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forty2.model.kv_cache import CacheLayer, KeysAndValues
from forty2.model.surgery import blocks, frozen_depth


class KeyedDropout(nn.Dropout):
    """Dropout whose random key can be set from outside."""

    _key: mx.array | None = None

    def use(self, key: mx.array | None) -> None:
        """Draw the next masks with this key; None: with mlx's random state."""
        self.__dict__["_key"] = key  # plain assignment would make it a parameter

    def __call__(self, x: mx.array) -> mx.array:
        if self._key is None or self._p_1 == 1 or not self.training:
            return super().__call__(x)
        mask = mx.random.bernoulli(self._p_1, x.shape, key=self._key)
        return (mask * x) * (1 / self._p_1)


def keyed_dropout(model: nn.Module) -> None:
    """Turn every dropout of the model into a `KeyedDropout`, in place."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = KeyedDropout


def checkpoint_gradients(model: nn.Module, on: bool | int) -> None:
    """Switch checkpointing on or off; switching on twice is the same as once.

    Args:
        on: true for all trained blocks, false for none, or the number of trained blocks, counted
            from the first.
    """
    trained = blocks(model)[frozen_depth(model) :]
    for n, block in enumerate(trained):
        kind = type(block)
        wanted = on is True or n < int(on)
        if wanted and not issubclass(kind, _Checkpointed):
            block.__class__ = type(kind.__name__, (_Checkpointed, kind), {})
        elif not wanted and issubclass(kind, _Checkpointed):
            block.__class__ = kind.__mro__[2]


class _Checkpointed(nn.Module):
    """Mix-in for a block's class that checkpoints its call."""

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        module: nn.Module = self  # a name whose methods mypy knows to be untyped
        dropouts = [m for m in module.modules() if isinstance(m, KeyedDropout) and m._p_1 < 1]
        plain = super().__call__
        # Keys and values enter and leave a block through its cache, but gradients pass only through
        # a checkpoint's arguments and results, so `run` takes and returns them.
        cache = next((a for a in (*args, *kwargs.values()) if isinstance(a, CacheLayer)), None)

        def run(
            parameters: dict[str, Any],
            keys: mx.array,
            prefix: KeysAndValues | None,
            *args: Any,
            **kwargs: Any,
        ) -> tuple[mx.array, KeysAndValues | None]:
            module.update(parameters)
            layer = cache.with_prefix(prefix) if cache is not None else None
            args = tuple(layer if a is cache else a for a in args)
            kwargs = {name: layer if a is cache else a for name, a in kwargs.items()}
            for n, dropout in enumerate(dropouts):
                dropout.use(mx.stop_gradient(keys[n]))
            try:
                output = plain(*args, **kwargs)
            finally:
                for dropout in dropouts:
                    dropout.use(None)
            # Only the keys and values of a prompt are read again later.
            return output, layer.state if layer is not None and prefix is None else None

        keys = mx.random.randint(0, 2**31 - 1, (len(dropouts), 2)).astype(mx.uint32)
        prefix = cache.prefix if cache is not None else None
        output: mx.array
        output, state = mx.checkpoint(run)(
            module.trainable_parameters(), keys, prefix, *args, **kwargs
        )
        if cache is not None:
            cache.state = state
        return output
