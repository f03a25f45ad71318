"""The served models share the base's weights in memory, and each computes what it does alone."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from forty2.model.loading import load
from forty2.serve.models import ServedModels
from forty2.serve.sources import find_sources


@pytest.fixture(scope="module")
def models(shop: Path) -> ServedModels:
    return ServedModels(find_sources(shop), most_tokens=64)


def weights(model: object) -> dict[str, mx.array]:
    """Weights by name, those below an adapter by the names that they have without it."""
    flat = tree_flatten(model.parameters())  # type: ignore[attr-defined]
    return {name.replace(".linear.", "."): value for name, value in flat}


def test_the_base_is_in_memory_once(models: ServedModels) -> None:
    base, *phases = (weights(models.load(name)[0]) for name in ("base", "sft", "dpo"))
    for phase in phases:
        assert phase.keys() > base.keys()
        assert all(phase[name] is value for name, value in base.items())


def test_each_model_computes_what_it_does_alone(models: ServedModels) -> None:
    ids = mx.array([[3, 14, 15, 92, 65]])
    seen = []
    for source in models.sources.models:
        served, _ = models.load(source.id)
        alone = load(source.model, source.adapter)
        logits = served(ids)  # type: ignore[operator]
        assert mx.array_equal(logits, alone.model(ids)), source.id
        seen.append(logits)
    base, sft, dpo, fused = seen
    assert not mx.allclose(base, sft) and not mx.allclose(sft, dpo)
    assert mx.allclose(dpo, fused, atol=1e-3)


def test_a_fused_model_is_loaded_when_it_is_asked_for(shop: Path) -> None:
    models = ServedModels(find_sources(shop), most_tokens=64)
    assert list(models._served) == ["base", "sft", "dpo"]
    models.load("fused")
    assert list(models._served) == ["base", "sft", "dpo", "fused"]


def test_each_model_has_a_key_of_its_own(models: ServedModels) -> None:
    """mlx-lm's server keeps prompts by it."""
    keys = set()
    for name in models.sources.ids:
        models.load(name)
        keys.add(models.model_key)
    assert len(keys) == 4
