"""Phase attention: phases of a block's tokens, coupled to those of the tokens that each attends to.

Each token t has K phases θ_t, and oscillator k of a token is coupled to oscillator k of the tokens
s ≤ t. With x the block's input and h its output:

    θ_t(0)    = P · x_t / rms(x_t)
    z_t(j)    = mean of exp(i θ_s(j)) over the tokens s that the block's mask lets t attend to
    θ_t(j+1)  = θ_t(j) + dt · coupling · Im(z_t(j) exp(-i θ_t(j)))      j = 0 … steps - 1
    y_t       = h_t + gate ⊙ Q · [cos θ_t(steps), sin θ_t(steps)]

These are Euler steps of Kuramoto's model, dθ_t/dt = ω + coupling · mean of sin(θ_s - θ_t) (Kuramoto
1975, "Self-entrainment of a population of coupled non-linear oscillators"), made causal. A frequency ω
that all tokens share turns all phases alike, which Q could undo, so it is left out. The gate starts at
zero: a new layer leaves the model's output as it is, to the bit.

The mean is attention with equal weights. So padding, packed rows and windows are the mask's concern,
as in the block itself, and phases are kept with the block's keys and values: the cache that carries
those, whichever it is, also carries the phases, as further columns of the values.

Axes: B sequences, T tokens, S tokens attended to, D model width, H key heads, K oscillators.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from forty2.errors import ModelError, on_one_line
from forty2.model.kv_cache import KeysAndValues, values_before
from forty2.model.surgery import blocks, compute_block_input
from forty2.recipe.schema import PhaseAttention

ORDER_PARAMETER = "order_parameter"
"""Name of R in the metrics: 1 where the phases that a token attends to are equal."""
_EPS = 1e-6


class PhaseCoupling(nn.Module):
    """The coupled phases of one block, and what they add to its output."""

    def __init__(self, width: int, settings: PhaseAttention) -> None:
        """Couple the phases of a block of width D; the gate of zero adds nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.settings = settings
        count = settings.oscillators
        self.to_phases = _uniform(width, count)
        self.from_phases = _uniform(2 * count, width)
        # A number for each channel: a single one would have to suit all, and learn slowly.
        self.gate = mx.zeros(width)

    def __call__(
        self, x: mx.array, mask: mx.array | str | None, before: list[mx.array]
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Compute what the phases add to the block's output.

        Args:
            x: input of the block, (B, T, D).
            mask: the block's attention mask, (B or 1, 1, T, S), true where attended; "causal" or
                None: causal, aligned to the last token.
            before: phases of the tokens before these, (B or 1, some, steps, K) each.

        Returns:
            The addition (B, T, D); these tokens' phases before each step, (B, T, steps, K); and the
            order parameter R of each token, the mean of |z_t| at the last step over oscillators, (B, T).
        """
        settings, rows = self.settings, x.shape[0]
        theta = _normed(x) @ self.to_phases
        before = [mx.broadcast_to(part, (rows, *part.shape[1:])) for part in before]
        total = x.shape[1] + sum(part.shape[1] for part in before)
        weights = _equal_weights(mask, x.shape[1], total)
        shown = []
        for step in range(settings.steps):
            # Others see the phases in the precision in which a cache keeps them.
            shown.append(theta.astype(x.dtype))
            seen = mx.concatenate([*(part[:, :, step] for part in before), shown[-1]], axis=1)
            field = weights @ _waves(seen.astype(mx.float32))
            real, imaginary = mx.split(field, 2, axis=-1)
            pull = imaginary * mx.cos(theta) - real * mx.sin(theta)
            theta = theta + settings.dt * settings.coupling * pull
        order = mx.sqrt(mx.square(real) + mx.square(imaginary)).mean(axis=-1)
        added = self.gate * (_waves(theta) @ self.from_phases)
        return added.astype(x.dtype), mx.stack(shown, axis=2), mx.stop_gradient(order)


def _uniform(rows: int, columns: int) -> mx.array:
    """Draw initial weights, (rows, columns), fp32, whose products have a variance of a third."""
    bound = 1 / math.sqrt(rows)
    return mx.random.uniform(-bound, bound, (rows, columns))


def _normed(x: mx.array) -> mx.array:
    """Divide by the root mean square over the last axis, in fp32."""
    x = x.astype(mx.float32)
    return x * mx.rsqrt(mx.square(x).mean(axis=-1, keepdims=True) + _EPS)


def _waves(theta: mx.array) -> mx.array:
    """Compute cos and sin: (..., K) to (..., 2K)."""
    return mx.concatenate([mx.cos(theta), mx.sin(theta)], axis=-1)


def _equal_weights(mask: mx.array | str | None, length: int, total: int) -> mx.array:
    """Give all tokens that a token attends to the same weight: (B or 1, length, total), fp32.

    A token that attends to none, as padding on the left, gets zeros.
    """
    if isinstance(mask, mx.array):
        if mask.dtype != mx.bool_:
            raise ValueError("the block's attention mask is not of booleans")
        weights = mask.reshape(-1, *mask.shape[-2:]).astype(mx.float32)
    else:
        last = mx.arange(total - length, total)[:, None]
        weights = (mx.arange(total) <= last)[None].astype(mx.float32)
    return weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 1)


# --- on a block ---


class _Coupled(nn.Module):
    """Mix-in for a block's class that adds coupled phases to its output."""

    phase_attention: PhaseCoupling

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        plain = super().__call__
        call = inspect.signature(plain).bind(*args, **kwargs)
        call.apply_defaults()
        x, mask, cache = args[0], call.arguments["mask"], call.arguments["cache"]
        coupling = self.phase_attention
        before = [] if cache is None else [_phases(v, coupling) for v in values_before(cache)]
        added, phases, order = coupling(x, mask, before)
        if (orders := self.__dict__.get("_orders")) is not None:
            orders.append(order)
        if cache is not None:
            call.arguments["cache"] = _WithPhases(cache, phases)
        output: mx.array = plain(*call.args, **call.kwargs)
        return output + added


class _WithPhases:
    """A block's cache that keeps tokens' phases beside their values."""

    def __init__(self, cache: Any, phases: mx.array) -> None:
        """Keep the phases beside the values of a cache.

        Args:
            cache: in mlx-lm's cache protocol.
            phases: (B, T, steps, K), of the tokens that are to be added.
        """
        self._cache, self._phases = cache, phases

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysAndValues:
        """Add the keys, values and phases of new tokens; return all keys and values."""
        heads, size = values.shape[1], values.shape[-1]
        flat = self._phases.reshape(*self._phases.shape[:2], -1)
        flat = mx.pad(flat, [(0, 0), (0, 0), (0, -flat.shape[-1] % heads)])
        columns = flat.reshape(*flat.shape[:2], heads, -1).swapaxes(1, 2).astype(values.dtype)
        keys, values = self._cache.update_and_fetch(
            keys, mx.concatenate([values, columns], axis=-1)
        )
        return keys, values[..., :size]

    def __getattr__(self, name: str) -> object:
        return getattr(self._cache, name)


def _phases(values: mx.array, coupling: PhaseCoupling) -> mx.array:
    """Read phases (B, S, steps, K) from the values (B, H, S, …) that `_WithPhases` has kept."""
    steps, count = coupling.settings.steps, coupling.settings.oscillators
    rows, heads, length = values.shape[:3]
    columns = values[..., values.shape[-1] - math.ceil(steps * count / heads) :]
    flat = columns.swapaxes(1, 2).reshape(rows, length, -1)
    return flat[..., : steps * count].reshape(rows, length, steps, count)


# --- on a model ---


def attach_phase_attention(model: nn.Module, settings: PhaseAttention) -> None:
    """Add coupled phases to a block, with a gate of zero: the model's output is unchanged.

    Raises:
        ModelError: the model has no such block, or the block does not cache plain keys and values.
    """
    cache = make_prompt_cache(model)
    fit = [n for n, layer in enumerate(cache) if type(layer) is KVCache]
    if settings.block not in fit:
        there = f"blocks that have all: {', '.join(map(str, fit))}" if fit else "no block has them"
        if settings.block >= len(cache):
            there = f"the model has blocks 0 to {len(cache) - 1}"
        raise ModelError(
            f"adapter.phase_attention.block is {settings.block}, but phases need a block that keeps "
            f"keys and values of all tokens; {there}"
        )
    block, ids = blocks(model)[settings.block], mx.array([[0, 0]])
    kind = type(block)
    try:
        width = compute_block_input(model, ids, settings.block).shape[-1]
        block.phase_attention = PhaseCoupling(width, settings)
        block.__class__ = type(kind.__name__, (_Coupled, kind), {})
        for _ in range(2):
            model(ids, cache=cache)  # lazy: nothing is computed
            if cache[settings.block].empty():
                raise ValueError("it keeps nothing in its cache")
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ModelError(
            f"adapter.phase_attention: block {settings.block} of this model cannot have it "
            f"({on_one_line(error)}); remove the section"
        ) from error


def phase_coupling(model: nn.Module) -> PhaseCoupling | None:
    """Return the model's coupled phases; None: it has none."""
    block = _coupled_block(model)
    return None if block is None else block.phase_attention


def order_metric(model: nn.Module) -> tuple[str, ...]:
    """Return the name of the metric R if the model has coupled phases, else none."""
    return () if _coupled_block(model) is None else (ORDER_PARAMETER,)


@contextmanager
def recorded_order(model: nn.Module) -> Iterator[list[mx.array]]:
    """Collect the order parameter R (B, T) of each pass through the coupled block.

    R is 1 where the phases that a token attends to are equal. The first token of a row attends to
    itself alone, so its R is 1.
    """
    orders: list[mx.array] = []
    block = _coupled_block(model)
    if block is None:
        yield orders
        return
    block.__dict__["_orders"] = orders  # plain assignment would make it a part of the model
    try:
        yield orders
    finally:
        del block.__dict__["_orders"]


@contextmanager
def without_phase_attention(model: nn.Module) -> Iterator[None]:
    """Run the model without coupled phases; they are back at the end of the block."""
    block = _coupled_block(model)
    if block is None:
        yield
        return
    kind = type(block)
    block.__class__ = kind.__mro__[2]
    try:
        yield
    finally:
        block.__class__ = kind


def _coupled_block(model: nn.Module) -> Any:
    """Return the block that has coupled phases; None: there is none."""
    return next((block for block in blocks(model) if isinstance(block, _Coupled)), None)
