"""How far a model has moved from its base on neutral text, measured at each evaluation of a phase."""

from __future__ import annotations

from collections.abc import Callable

from forty2.benchmark.tasks.divergence import Base, base_of, drift_from
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent
from forty2.training.evaluation import Drift

TEXTS = 8
"""Neutral texts that are read."""


def drift_meter(
    loaded: LoadedModel, fingerprint: str, progress: Progress = silent
) -> Callable[[], Drift]:
    """Make the function that measures a model's drift from its base.

    Args:
        loaded: the base, without an adapter; the function measures its weights at the time of the call.
        fingerprint: hash of the base's weights.
    """
    base: Base = base_of(loaded, fingerprint, TEXTS, progress)

    def measure() -> Drift:
        return Drift(*drift_from(loaded, base))

    return measure
