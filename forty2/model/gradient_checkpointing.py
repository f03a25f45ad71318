"""Gradient checkpointing that is exact: safe to switch on twice, and right with dropout.

A checkpointed block keeps its inputs and recomputes the rest in the backward pass. Dropout must
then draw the same mask both times, so each block draws one key up front and hands it in.
mlx-lm patches the block's *class*, which nests when done twice and redraws the masks.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forty2.inference.logprobs import CacheLayer
from forty2.model.surgery import blocks, frozen_depth


class KeyedDropout(nn.Dropout):
    """Dropout that can be told which random key to use."""

    _key: mx.array | None = None

    def use(self, key: mx.array | None) -> None:
        self.__dict__["_key"] = key  # not a parameter, which plain assignment would make it

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
    """Switch checkpointing on for all trained blocks or the first so many of them, or off.

    Twice is the same as once.
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
    """Mixed in before a block's own class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self  # mlx leaves these untyped
        dropouts = [m for m in module.modules() if isinstance(m, KeyedDropout) and m._p_1 < 1]
        plain = super().__call__
        # Keys and values leave a block through its cache and enter it there. A checkpoint knows
        # only of what is passed and returned, so they are.
        kept = next((a for a in (*args, *kwargs.values()) if isinstance(a, CacheLayer)), None)

        def run(parameters: Any, keys: mx.array, prefix: Any, *args: Any, **kwargs: Any) -> Any:
            self.update(parameters)
            cache = kept.with_prefix(prefix) if kept is not None else None
            args = tuple(cache if a is kept else a for a in args)
            kwargs = {name: cache if a is kept else a for name, a in kwargs.items()}
            for n, dropout in enumerate(dropouts):
                dropout.use(mx.stop_gradient(keys[n]))
            try:
                output = plain(*args, **kwargs)
            finally:
                for dropout in dropouts:
                    dropout.use(None)
            # only a prompt's are read again
            return output, cache.state if cache is not None and prefix is None else None

        keys = mx.random.randint(0, 2**31 - 1, (len(dropouts), 2)).astype(mx.uint32)
        prefix = kept.prefix if kept is not None else None
        parameters = module.trainable_parameters()
        output, state = mx.checkpoint(run)(parameters, keys, prefix, *args, **kwargs)
        if kept is not None:
            kept.state = state
        return output
