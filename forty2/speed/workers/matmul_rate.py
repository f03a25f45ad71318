"""One forward's matrix products. Rows: [inputs, outputs, how often]; batch_size: tokens."""

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
            mx.random.normal((job.batch_size, inputs)).astype(dtype),
            mx.random.normal((outputs, inputs)).astype(dtype),
            times,
        )
        for inputs, outputs, times in job.rows
    ]

    def products() -> None:
        for states, weight, times in factors:
            for _ in range(times):
                mx.eval(states @ weight.T)

    products()  # the first touches memory that is not there yet
    return products
