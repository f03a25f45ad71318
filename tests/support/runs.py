"""Values for tests of run folders, and whole runs that take less time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from forty2.benchmark import probing
from forty2.benchmark.tasks import behaviour, divergence
from forty2.export import fusing
from forty2.runs import drift, inputs
from forty2.runs.records import Provenance

PROVENANCE = Provenance(
    name="test", model="a model", model_path="/models/a", model_sha256="0" * 64, versions={}
)


@contextmanager
def short_checks() -> Iterator[None]:
    """Runs whose checks of the model read and write a few tokens: they take most of a small run.

    Its replies to held-out prompts and to those of an evaluation, its drift and its divergence from
    the base, and the comparison of the fused model with base and adapter.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behaviour, "MAX_TOKENS", 4)
        patch.setattr(probing, "SPOT_TOKENS", 4)
        patch.setattr(inputs, "probe", functools.partial(probing.probe, max_tokens=16))
        patch.setattr(drift, "TEXTS", 2)
        patch.setattr(divergence, "TEXT_TOKENS", 16)
        patch.setattr(divergence, "ANSWERS", 4)
        patch.setattr(fusing, "PARITY_TOKENS", 24)
        yield
