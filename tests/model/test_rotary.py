"""Rotations that settings prescribe equal transformers' own, and a module's are measured."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.rope_utils import initialize_rope
from support.models import tiny_model

from forty2.model.rotary import by_layer_type, computes, prescribe, rotary_modules

THETA = 500000.0
ORIGINAL = {"rope_theta": THETA, "original_max_position_embeddings": 64}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
TRANSFORMERS: list[tuple[dict[str, Any], list[float], float]] = [
    # settings, and what transformers 5.24's ROPE_INIT_FUNCTIONS computes: 8 values, context 256
    (
        {"rope_type": "linear", "rope_theta": THETA, "factor": 4.0},
        [0.25, 0.009401508, 0.000353553, 1.3296e-05],
        1.0,
    ),
    (
        {"rope_type": "llama3", "rope_theta": THETA, "factor": 8.0, **LLAMA3},
        [1.0, 0.004700754, 0.000176777, 6.648e-06],
        1.0,
    ),
    (
        {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
        [1.0, 0.009401508, 0.000353553, 1.3296e-05],
        1.1386294,
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "truncate": False,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "beta_fast": 16,
            "beta_slow": 2,
            **ORIGINAL,
        },
        [1.0, 0.009401508, 0.000353553, 1.3296e-05],
        1.0648216,
    ),
    (
        {"rope_type": "dynamic", "rope_theta": THETA, "factor": 2.0},
        [1.0, 0.037606031, 0.001414213, 5.3183e-05],
        1.0,
    ),
    (
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [2.0, 3.0, 4.0, 5.0],
            **ORIGINAL,
        },
        [1.0, 0.025070686, 0.000707107, 2.1273e-05],
        1.1547005,
    ),
]


@pytest.mark.parametrize(("settings", "frequencies", "scale"), TRANSFORMERS)
def test_the_equations_are_those_of_transformers(
    settings: dict[str, Any], frequencies: list[float], scale: float
) -> None:
    rotation = prescribe(settings, 8, 256)
    assert rotation is not None and rotation.scale == pytest.approx(scale)
    np.testing.assert_allclose(rotation.frequencies, frequencies, rtol=1e-4)


@pytest.mark.parametrize("unknown", [{"rope_type": "new"}, {"alpha": 1000.0}])
def test_unknown_settings_are_not_judged(unknown: dict[str, Any]) -> None:
    assert prescribe({"rope_theta": THETA, **unknown}, 8, 256) is None


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("settings", [t[0] for t in TRANSFORMERS[:3]])
def test_a_module_that_computes_it_is_recognised(
    settings: dict[str, Any], traditional: bool
) -> None:
    rotation = prescribe(settings, 8, 256)
    assert rotation is not None
    module = initialize_rope(8, THETA, traditional, settings, 256)
    assert computes(module, 8, rotation)
    assert not computes(nn.RoPE(8, traditional=traditional, base=THETA), 8, rotation)
    assert not computes(initialize_rope(8, 10000.0, traditional, settings, 256), 8, rotation)


def test_every_block_has_a_rotary_module() -> None:
    found = list(rotary_modules(tiny_model()))
    assert sorted(name for name, _, _ in found) == [
        f"model.layers.{n}.self_attn.rope" for n in range(3)
    ]
    assert {dims for _, _, dims in found} == {8}


def test_settings_are_divided_by_type_of_layer() -> None:
    nested = {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}
    assert by_layer_type(nested) == nested
    assert by_layer_type({"rope_theta": 3.0}) == {"": {"rope_theta": 3.0}}
    assert by_layer_type(None) == {}
