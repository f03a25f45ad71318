"""A PEFT folder on a model: the weights that PEFT's equations give, and refusals by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from support.joined_layers import apart, joining, save_files
from support.models import tiny_model
from support.peft_folders import Arrays, factors, random_array, save_peft

from forty2.errors import ModelError
from forty2.model.adapter import load_adapter
from forty2.model.merging import merge_adapter
from forty2.model.quantization import quantize

Q, V, UP = "self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"
SHAPES: Mapping[str, Sequence[int]] = {Q: (32, 32), V: (16, 32), UP: (64, 32)}


def shapes(*keys: str, blocks: Sequence[int] = range(3)) -> dict[str, Sequence[int]]:
    return {f"model.layers.{n}.{key}": SHAPES[key] for n in blocks for key in keys}


def weights(model: Any) -> dict[str, NDArray[np.float32]]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def merged(folder: Path, model: Any = None, base: Path | None = None) -> Any:
    """Return a model, with the adapter merged."""
    model = model if model is not None else tiny_model(tie_word_embeddings=False)
    load_adapter(model, folder, base)
    merge_adapter(model)
    return model


def change(arrays: Arrays, layer: str) -> NDArray[np.float32]:
    """PEFT's B·A of a layer."""
    return arrays[f"{layer}.lora_B.weight"] @ arrays[f"{layer}.lora_A.weight"]


def check(folder: Path, wanted: Mapping[str, NDArray[np.float32]], model: Any = None) -> None:
    """Compare every weight of the merged model: with the wanted, or with the base's."""
    before = weights(model if model is not None else tiny_model(tie_word_embeddings=False))
    after = weights(merged(folder, model))
    assert after.keys() == before.keys() and wanted.keys() <= after.keys()
    for name, value in after.items():
        assert np.allclose(value, wanted.get(name, before[name]), atol=1e-6), name
    for name, value in wanted.items():
        assert not np.allclose(value, before[name], atol=1e-2), name


# --- factors ---


def test_each_layer_has_the_rank_and_alpha_of_its_pattern(tmp_path: Path) -> None:
    arrays = factors(shapes(Q, V, UP), q_proj=2, up_proj=5)
    folder = save_peft(
        tmp_path / "peft",
        arrays,
        target_modules=["q_proj", "v_proj", "up_proj"],
        rank_pattern={"q_proj": 2, r"layers\.\d\.mlp\.up_proj": 5},
        alpha_pattern={"2.self_attn.v_proj": 3, "up_proj": 10},
    )
    scales = {Q: 6 / 2, V: 6 / 4, UP: 10 / 5}
    before = weights(tiny_model())
    wanted = {}
    for layer in shapes(Q, V, UP):
        key = layer.split(".", 3)[3]
        scale = 3 / 4 if layer == f"model.layers.2.{V}" else scales[key]
        wanted[f"{layer}.weight"] = before[f"{layer}.weight"] + scale * change(arrays, layer)
    check(folder, wanted)


def test_rslora_divides_by_the_root_of_each_rank(tmp_path: Path) -> None:
    arrays = factors(shapes(Q, V), q_proj=3)
    config = {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 3}}
    folder = save_peft(tmp_path / "peft", arrays, use_rslora=True, **config)
    before = weights(tiny_model())
    check(
        folder,
        {
            f"{n}.weight": before[f"{n}.weight"]
            + 6 / math.sqrt(3 if "q_proj" in n else 4) * change(arrays, n)
            for n in shapes(Q, V)
        },
    )


def test_dora_scales_the_rows_to_its_norms(tmp_path: Path) -> None:
    arrays = factors(shapes(Q))
    norms = {n: np.abs(random_array(32)) + 1 for n in shapes(Q)}
    stored = {f"{n}.lora_magnitude_vector": value for n, value in norms.items()}
    folder = save_peft(
        tmp_path / "peft", {**arrays, **stored}, use_dora=True, target_modules=["q_proj"]
    )
    before, wanted = weights(tiny_model()), {}
    for name, norm in norms.items():
        whole = before[f"{name}.weight"] + 1.5 * change(arrays, name)
        rows = norm / np.linalg.norm(whole, axis=1)
        wanted[f"{name}.weight"] = rows[:, None] * whole
    check(folder, wanted)


def test_a_table_is_adapted_by_its_rows(tmp_path: Path) -> None:
    name = "model.embed_tokens"
    a, b = random_array(4, 300), random_array(32, 4)
    arrays = {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    folder = save_peft(tmp_path / "peft", arrays, target_modules=["embed_tokens"])
    before = weights(tiny_model(tie_word_embeddings=False))
    check(folder, {f"{name}.weight": before[f"{name}.weight"] + 1.5 * (b @ a).T})


# --- whole parameters and rows ---


def test_whole_parameters_and_rows_replace_those_of_the_base(tmp_path: Path) -> None:
    head, norm, rows = random_array(300, 32), random_array(32), random_array(2, 32)
    arrays = {
        **factors(shapes(Q)),
        "lm_head.weight": head,
        "model.norm.modules_to_save.weight": norm,  # as early releases wrote it
        "model.embed_tokens.token_adapter.trainable_tokens_delta": rows,
    }
    folder = save_peft(
        tmp_path / "peft",
        arrays,
        target_modules=["q_proj"],
        modules_to_save=["lm_head", "norm"],
        trainable_token_indices=[299, 7],
    )
    before = weights(tiny_model(tie_word_embeddings=False))
    table = before["model.embed_tokens.weight"].copy()
    table[[299, 7]] = rows
    wanted = {
        "lm_head.weight": head,
        "model.norm.weight": norm,
        "model.embed_tokens.weight": table,
    }
    for name in shapes(Q):
        wanted[f"{name}.weight"] = before[f"{name}.weight"] + 1.5 * change(arrays, name)
    check(folder, wanted)


def test_a_tied_table_takes_what_changes_both_of_its_uses_alike(tmp_path: Path) -> None:
    name, a, b = "model.embed_tokens", random_array(4, 300), random_array(32, 4)
    one = {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    both = {**one, "lm_head.lora_A.weight": b.T, "lm_head.lora_B.weight": a.T}
    targets = {"target_modules": ["embed_tokens", "lm_head"]}
    folder = save_peft(tmp_path / "both", both, **targets)
    before = weights(tiny_model())
    check(folder, {f"{name}.weight": before[f"{name}.weight"] + 1.5 * (b @ a).T}, tiny_model())
    unlike = {**both, "lm_head.lora_B.weight": 2 * a.T}
    whole = {**factors(shapes(Q)), f"{name}.weight": random_array(300, 32)}
    for number, (arrays, config) in enumerate(
        [
            (one, {"target_modules": ["embed_tokens"]}),
            (unlike, targets),
            (whole, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ]
    ):
        folder = save_peft(tmp_path / str(number), arrays, **config)
        with pytest.raises(ModelError, match="has one table for the embeddings and the head"):
            load_adapter(tiny_model(), folder)


# --- which layers ---


@pytest.mark.parametrize(
    ("layers", "config"),
    [
        (shapes(Q, blocks=[0, 2]), {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}),
        (
            shapes(Q, blocks=[1]),
            {
                "target_modules": ["q_proj"],
                "layers_to_transform": 1,
                "layers_pattern": ["h", "layers"],
            },
        ),
        (shapes(Q, blocks=[2]), {"target_modules": ["model.layers.2.self_attn.q_proj"]}),
        (shapes(Q, V, blocks=[1]), {"target_modules": r".*\.1\.self_attn\.[qv]_proj"}),
        (shapes(Q, V, UP), {"target_modules": "all-linear"}),
        (shapes(V), {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*q_proj"}),
        (shapes(V), {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["q_proj"]}),
    ],
)
def test_the_configuration_says_which_layers_there_are(
    layers: dict[str, Sequence[int]], config: dict[str, Any], tmp_path: Path
) -> None:
    arrays = factors(layers)
    before = weights(tiny_model(tie_word_embeddings=False))
    wanted = {f"{n}.weight": before[f"{n}.weight"] + 1.5 * change(arrays, n) for n in layers}
    check(save_peft(tmp_path / "whole", arrays, **config), wanted)
    more = {**arrays, **factors({"lm_head": (300, 32)})}
    folder = save_peft(tmp_path / "more", more, **config)
    with pytest.raises(ModelError, match="target_modules does not name lm_head, of which"):
        merged(folder)
    if len(layers) > 1:
        *_, last = layers
        fewer = {name: value for name, value in arrays.items() if not name.startswith(last)}
        with pytest.raises(ModelError, match=f"lacks the tensors of {re.escape(last)} that target"):
            merged(save_peft(tmp_path / "fewer", fewer, **config))


# --- layers that are joined here ---


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_layers_that_are_joined_here_act_on_their_rows(
    dora: bool, tmp_path: Path
) -> None:
    base = save_files(tmp_path / "base", tiny_model("phi3"), apart)
    k = {f"model.layers.{n}.self_attn.k_proj": (16, 32) for n in range(3)}
    layers = {**shapes(Q, V), **(k if dora else {})}
    arrays = factors(layers, q_proj=2)
    names = {n: np.abs(random_array(s[0])) + 1 for n, s in layers.items()} if dora else {}
    stored = {f"{n}.lora_magnitude_vector": value for n, value in names.items()}
    config = {
        "target_modules": [*{name.rpartition(".")[2] for name in layers}],
        "rank_pattern": {"q_proj": 2},
        "use_dora": dora,
    }
    folder = save_peft(tmp_path / "peft", {**arrays, **stored}, **config)
    before = weights(tiny_model("phi3"))
    after = weights(merged(folder, joining(tiny_model("phi3")), base))
    scales = {"q_proj": 6 / 2, "k_proj": 6 / 4, "v_proj": 6 / 4}
    for block in range(3):
        name = f"model.layers.{block}.self_attn"
        rows = before[f"{name}.qkv_proj.weight"].copy()
        for part, at in (("q", slice(0, 32)), ("k", slice(32, 48)), ("v", slice(48, 64))):
            layer = f"{name}.{part}_proj"
            if layer not in layers:
                continue
            rows[at] += scales[f"{part}_proj"] * change(arrays, layer)
            if dora:
                rows[at] *= (names[layer] / np.linalg.norm(rows[at], axis=1))[:, None]
        assert np.allclose(after[f"{name}.qkv_proj.weight"], rows, atol=1e-6)


def test_parts_whose_scales_no_power_of_two_relates_are_refused(tmp_path: Path) -> None:
    base = save_files(tmp_path / "base", tiny_model("phi3"), apart)
    config = {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 5}}
    folder = save_peft(tmp_path / "peft", factors(shapes(Q, V)), **config)
    with pytest.raises(ModelError, match=r"has the scale 1\.25.* joined exactly"):
        load_adapter(joining(tiny_model("phi3")), folder, base)


# --- what does not fit ---


def test_a_quantized_table_keeps_its_rows(tmp_path: Path) -> None:
    wide = tiny_model(hidden_size=64, tie_word_embeddings=False)
    quantize(wide, {}, 4)
    rows = random_array(1, 64)
    arrays = {
        **factors({f"model.layers.{n}.{Q}": (64, 64) for n in range(3)}),
        "model.embed_tokens.token_adapter.trainable_tokens_delta": rows,
    }
    config = {"target_modules": ["q_proj"], "trainable_token_indices": [7]}
    folder = save_peft(tmp_path / "peft", arrays, **config)
    with pytest.raises(
        ModelError, match=r"replaces rows of model\.embed_tokens, which is quantized"
    ):
        load_adapter(wide, folder)


def test_dora_on_a_quantized_layer_is_refused(tmp_path: Path) -> None:
    wide = tiny_model(hidden_size=64)
    quantize(wide, {}, 4)
    arrays = factors({f"model.layers.{n}.{Q}": (64, 64) for n in range(3)})
    norms = {f"model.layers.{n}.{Q}.lora_magnitude_vector": random_array(64) for n in range(3)}
    config = {"use_dora": True, "target_modules": ["q_proj"]}
    folder = save_peft(tmp_path / "peft", {**arrays, **norms}, **config)
    with pytest.raises(ModelError, match=r"has DoRA's norms, which .* a QuantizedLinear, cannot"):
        load_adapter(wide, folder)


@pytest.mark.parametrize(
    ("more", "config", "says"),
    [
        (
            {"model.embed_tokens.token_adapter.trainable_tokens_delta": random_array(1, 32)},
            {"trainable_token_indices": [300]},
            "holds rows up to 300 of width 32.*did the adapter's model get new tokens",
        ),
        (
            {"lm_head.weight": random_array(320, 32)},
            {"modules_to_save": ["lm_head"]},
            r"is \(320, 32\), and lm_head.weight of this model is \(300, 32\); it was trained on maker",
        ),
        (factors({"model.layers.3.self_attn.q_proj": (32, 32)}), {}, "is no layer of this model"),
        (
            {f"model.layers.0.{Q}.lora_B.weight": random_array(48, 4)},
            {},
            r"is \(48, 4\), but model.layers.0.self_attn.q_proj of this model needs \(32, 4\)",
        ),
        (
            {f"model.layers.0.{Q}.lora_B.weight": np.full((32, 4), np.nan, np.float32)},
            {},
            "NaN or infinite",
        ),
        (
            {f"model.layers.0.{Q}.lora_B.weight": np.ones((32, 4), np.int32)},
            {},
            r"holds whole numbers \(mlx.core.int32\)",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused_by_name(
    more: Arrays, config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    arrays = {**factors(shapes(Q)), **more}
    folder = save_peft(tmp_path / "peft", arrays, target_modules=["q_proj"], **config)
    with pytest.raises(ModelError, match=says):
        load_adapter(tiny_model(tie_word_embeddings=False), folder)
