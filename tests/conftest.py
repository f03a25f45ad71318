"""Fixtures. forty2 is imported before mlx, here, so that the tests run on the fast BLAS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import forty2  # isort: skip  # noqa: F401

import mlx.core as mx
import pytest
from mlx_lm.models import gemma2, llama, phi3, qwen2

from forty2.model.door import LoadedModel, load
from forty2.model.starter import fetch_starter

TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 300,
}  # fmt: skip
ARCHITECTURES = ["llama", "sliding", "qwen2", "phi3", "gemma2"]


def tiny_model(architecture: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random model of a few thousand weights."""
    mx.random.seed(seed)
    if architecture == "sliding":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        arguments = llama.ModelArgs(
            model_type="llama", sliding_window=6, layer_types=kinds, **TINY | changes
        )
        model: Any = llama.Model(arguments)
    else:
        module = {"llama": llama, "qwen2": qwen2, "phi3": phi3, "gemma2": gemma2}[architecture]
        extra = {"head_dim": 8} if architecture == "gemma2" else {}
        model = module.Model(module.ModelArgs(model_type=architecture, **extra, **TINY | changes))
    mx.eval(model.parameters())
    model.eval()
    return model


@pytest.fixture(scope="session")
def starter_path() -> Path:
    """The starter model's folder, fetched once."""
    return fetch_starter()


@pytest.fixture(scope="session")
def starter(starter_path: Path) -> LoadedModel:
    """The starter model, bare. Do not attach anything to it."""
    return load(str(starter_path))


@pytest.fixture(scope="session")
def bench_data() -> Path:
    """Public benchmark files; tests that need them are skipped where they are absent."""
    places = [os.environ.get("FORTY2_BENCH_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("no benchmark data: set FORTY2_BENCH_DATA to a folder with truthfulqa/ in it")
