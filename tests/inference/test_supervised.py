"""Sums of the supervised tokens' log-probabilities."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from support.models import tiny_model

from forty2.inference.supervised import supervised_sums


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_each_row_scores_as_it_would_alone(architecture: str) -> None:
    model = tiny_model(architecture)
    rng = np.random.default_rng(1)
    rows = []
    for length in (2, 9, 4, 30, 9, 17):
        mask = [False, *(bool(on) for on in rng.integers(0, 2, length - 1))]
        mask[-1] = True
        rows.append(([int(i) for i in rng.integers(1, 300, length)], mask))
    found: dict[int, float] = {}
    for part in supervised_sums(model, rows):
        assert not found.keys() & part.keys()
        found |= part
    for n, (ids, mask) in enumerate(rows):
        logits = model(mx.array([ids[:-1]]))[0].astype(mx.float32)
        logps = np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        expected = sum(logps[i - 1, ids[i]] for i, on in enumerate(mask) if on)
        assert found[n] == pytest.approx(float(expected), abs=1e-3)
    assert len(found) == len(rows)
