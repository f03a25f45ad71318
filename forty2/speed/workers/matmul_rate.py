"""The matrix products of one forward pass, which give the machine's rate. Reads `products`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], None]:
    import mlx.core as mx

    dtype = getattr(mx, job.dtype)
    factors = [
        (
            mx.random.normal((job.inputs.product_tokens, inputs)).astype(dtype),
            mx.random.normal((outputs, inputs)).astype(dtype),
            times,
        )
        for inputs, outputs, times in job.inputs.products
    ]

    def multiply() -> None:
        for states, weight, times in factors:
            for _ in range(times):
                mx.eval(states @ weight.T)

    multiply()  # the first time also allocates memory
    return multiply
