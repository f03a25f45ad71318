"""Adapter layers as tensors of PEFT: the same function where files have other pieces than the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from support.joined_layers import apart, cutting, joined, joining, save_files
from support.models import tiny_model
from support.peft_folders import random_array, save_peft

from forty2.errors import ModelError
from forty2.model.adapter import adapter_weights, attach_adapter, load_adapter
from forty2.model.merging import merge_adapter
from forty2.model.peft_tensors import mlx_tensors, peft_layers
from forty2.model.source_layers import SourceLayers, source_layers
from forty2.recipe.schema import Adapter

PLAIN = SourceLayers({}, frozenset())
"""Files that have the layers of the model."""


def weights(model: Any) -> dict[str, NDArray[np.float32]]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(
    ("make", "architecture", "pieces"), [(joining, "phi3", apart), (cutting, "llama", joined)]
)
def test_what_is_exported_in_other_pieces_comes_back_as_the_same_function(
    make: Callable[[Any], Any],
    architecture: str,
    pieces: Callable[[Any], Any],
    kind: Any,
    tmp_path: Path,
) -> None:
    base = save_files(tmp_path / "base", tiny_model(architecture), pieces)
    ours = make(tiny_model(architecture))
    keys = (
        ["self_attn.qkv_proj"] if architecture == "phi3" else [f"self_attn.{p}_proj" for p in "qkv"]
    )
    attach_adapter(ours, Adapter(type=kind, rank=4, scale=1.5, keys=keys), seed=1)
    moved = [(n, v + mx.array(random_array(*v.shape))) for n, v in adapter_weights(ours).items()]
    ours.load_weights(moved, strict=False)
    layers = peft_layers(ours, source_layers(ours, base))
    theirs = {"q_proj", "k_proj", "v_proj"} if architecture == "phi3" else {"qkv_proj"}
    assert {name.rpartition(".")[2] for name in layers} == theirs
    rank = 4 if architecture == "phi3" else 12
    assert {one.a.shape for one in layers.values()} == {(rank, 32)}
    arrays = {
        n.removeprefix("base_model.model."): np.array(v)
        for layer, one in layers.items()
        for n, v in one.tensors(layer).items()
    }
    config = {"r": rank, "lora_alpha": 1.5 * rank, "use_dora": kind == "dora"}
    folder = save_peft(tmp_path / "peft", arrays, target_modules=[*theirs], **config)
    back = make(tiny_model(architecture))
    load_adapter(back, folder, base)
    if architecture == "phi3":  # one A for all parts: the very same factors
        for name, value in adapter_weights(ours).items():
            assert np.array_equal(dict(tree_flatten(back.parameters()))[name], value), name
    merge_adapter(ours)
    merge_adapter(back)
    for name, merged in weights(ours).items():
        assert np.allclose(weights(back)[name], merged, atol=1e-6), name


def test_layers_that_peft_has_no_adapter_for_are_refused_by_name() -> None:
    experts = tiny_model("mixtral", num_local_experts=2, num_experts_per_tok=1)
    attach_adapter(experts, Adapter(rank=2, keys=["block_sparse_moe.switch_mlp.up_proj"]), seed=1)
    with pytest.raises(ModelError, match=r"switch_mlp\.up_proj: PEFT has no adapter for a mixture"):
        peft_layers(experts, PLAIN)
    table = tiny_model(tie_word_embeddings=False)
    spec = Adapter(type="dora", rank=2, keys=["model.embed_tokens"])
    attach_adapter(table, spec, seed=1)
    with pytest.raises(
        ModelError, match=r"embed_tokens: PEFT has no adapter for the norms of DoRA"
    ):
        peft_layers(table, PLAIN)


def test_dora_on_a_part_of_a_joined_layer_is_refused(tmp_path: Path) -> None:
    base = save_files(tmp_path / "base", tiny_model(), joined)
    ours = cutting(tiny_model())
    attach_adapter(ours, Adapter(type="dora", rank=2, keys=["self_attn.k_proj"]), seed=1)
    with pytest.raises(ModelError, match=r"qkv_proj: DoRA is on 16 of its 64 rows"):
        peft_layers(ours, source_layers(ours, base))


def test_several_ranks_have_no_place_in_mlx_lms_form(tmp_path: Path) -> None:
    layers = {f"model.layers.0.self_attn.{p}_proj": rank for p, rank in (("q", 2), ("o", 3))}
    arrays = {}
    for name, rank in layers.items():
        arrays[f"{name}.lora_A.weight"] = random_array(rank, 32)
        arrays[f"{name}.lora_B.weight"] = random_array(32, rank)
    config = {"target_modules": [*layers], "r": 2, "rank_pattern": {"o_proj": 3}}
    model = tiny_model()
    load_adapter(model, save_peft(tmp_path / "peft", arrays, **config))
    with pytest.raises(ModelError, match=r"have the ranks \[2, 3\], and mlx-lm's form holds one"):
        mlx_tensors(model)
