"""What a phase trains, after any other: outputs stay, and folders load as they are, in mlx-lm too."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.models import save_tiny, tiny_model

from forty2.errors import ModelError
from forty2.export.fusing import fuse
from forty2.model.adapter import (
    adapter_weights,
    has_adapter,
    layer_kind,
    restore_adapter,
    save_adapter,
)
from forty2.model.loading import load
from forty2.model.phase_parameters import set_trained
from forty2.model.replaced import replaced_names
from forty2.model.surgery import frozen_depth
from forty2.recipe.schema import Adapter
from forty2.recipe.tags import TagSettings
from forty2.training.objectives.phase import Trains

ADAPTER = Adapter(rank=2, scale=3.0, layers=2)
IDS = mx.array([[5, 17, 40, 200, 3]])
KINDS: tuple[Trains, ...] = ("lora", "dora", "embeddings", "full")
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def begin(model: nn.Module, trains: Trains, adapter: Adapter = ADAPTER) -> None:
    set_trained(model, trains, adapter, seed=4)


def move(model: nn.Module, by: float = 0.02) -> None:
    """Change all that is trained, as training would."""
    moved = []
    for n, (name, value) in enumerate(adapter_weights(model).items()):
        step = by * mx.random.normal(value.shape, key=mx.random.key(n))
        moved.append((name, value + step))
    model.load_weights(moved, strict=False)


def untied() -> Any:
    return tiny_model(tie_word_embeddings=False)


@pytest.mark.parametrize("kinds", list(itertools.permutations(KINDS, 2)))
def test_a_phase_begins_with_what_the_one_before_computes(kinds: tuple[Trains, Trains]) -> None:
    model = untied()
    first, second = kinds
    begin(model, first)
    move(model)
    before = model(IDS)
    begin(model, second)
    np.testing.assert_allclose(model(IDS), before, atol=2e-5)
    move(model)
    assert not mx.allclose(model(IDS), before, atol=1e-3)


def test_each_kind_trains_its_own_parameters_and_no_others() -> None:
    names = {name for name, _ in tree_flatten(untied().parameters())}
    for kind in KINDS:
        model = untied()
        begin(model, kind)
        trained = {*adapter_weights(model)}
        if kind == "embeddings":
            assert trained == {TABLE, HEAD} == replaced_names(model)
        elif kind == "full":
            assert trained == names == replaced_names(model)
        else:
            assert {n.rpartition(".")[2] for n in trained} - {"m"} == {"lora_a", "lora_b"}
            assert layer_kind(model) == kind and not replaced_names(model)
        assert frozen_depth(model) == (1 if kind in ("lora", "dora") else 0)


def test_layers_stay_frozen_under_embeddings_and_are_trained_on_after_them() -> None:
    model = untied()
    begin(model, "lora")
    move(model)
    layers = adapter_weights(model)
    begin(model, "embeddings")
    move(model)
    begin(model, "lora")
    assert adapter_weights(model).keys() == layers.keys()
    for name, value in adapter_weights(model).items():
        np.testing.assert_array_equal(value, layers[name])


@pytest.mark.parametrize("kinds", [*map(list, itertools.permutations(KINDS, 2)), ["full"]])
def test_what_phases_leave_loads_here_and_in_mlx_lm(kinds: list[Trains], tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=False)
    model = load(str(base)).model
    for kind in kinds:
        begin(model, kind)
        move(model)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(model, replace(ADAPTER), folder, stop_token_ids=[1])
    wanted = model(IDS)
    np.testing.assert_allclose(load(str(base), folder).model(IDS), wanted, atol=1e-5)
    theirs, _ = mlx_lm.load(str(base), adapter_path=str(folder))
    np.testing.assert_allclose(theirs(IDS), wanted, atol=1e-5)
    again = load(str(base)).model
    for kind in kinds:
        begin(again, kind)
    restore_adapter(again, folder)
    np.testing.assert_array_equal(again(IDS), wanted)


def test_an_adapter_that_replaces_weights_cannot_be_left_out(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model = load(str(base)).model
    begin(model, "embeddings")
    begin(model, "lora")
    save_adapter(model, ADAPTER, tmp_path)
    loaded = load(str(base), tmp_path).model
    assert TABLE in replaced_names(loaded) and not has_adapter(loaded)


@pytest.mark.parametrize("kinds", [["full"], ["embeddings", "lora"], ["lora", "dora"]])
def test_replaced_weights_are_fused_and_quantized(kinds: list[Trains], tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=False, hidden_size=64)
    model = load(str(base)).model
    for kind in kinds:
        begin(model, kind)
        move(model)
    (tmp_path / "adapter").mkdir()
    save_adapter(model, ADAPTER, tmp_path / "adapter")
    fused = fuse(str(base), tmp_path / "adapter", tmp_path / "fused", quantize=8)
    assert fused.parity_kl < 1e-6 < fused.adapter_kl
    assert fused.quantized is not None and fused.quantized.cosine is not None
    assert fused.quantized.cosine > 0.95
    np.testing.assert_allclose(load(str(fused.path)).model(IDS), model(IDS), atol=1e-4)


def test_sixteen_bits_become_fp32_where_weights_of_the_model_are_trained() -> None:
    for kind, dtype in (("lora", mx.bfloat16), ("embeddings", mx.float32), ("full", mx.float32)):
        model = untied()
        model.set_dtype(mx.bfloat16)
        begin(model, kind)  # type: ignore[arg-type]
        assert model.model.layers[0].self_attn.q_proj.weight.dtype == dtype, kind


def test_a_quantized_model_is_refused_for_its_own_weights_alone() -> None:
    for kind in KINDS:
        model = tiny_model(hidden_size=64)
        nn.quantize(model, group_size=32)
        if kind in ("lora", "dora"):
            begin(model, kind)
            continue
        with pytest.raises(ModelError, match=f"train: {kind}: this model is quantized, .*quantize"):
            begin(model, kind)


def test_with_tags_embeddings_are_their_rows_alone(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    settings = TagSettings(starts={"<a>": "one", "</a>": "two"})
    loaded = load(str(base), tags=settings)
    model, tags = loaded.model, loaded.tags
    set_trained(model, "embeddings", ADAPTER, seed=4, tags=tags)
    assert [*adapter_weights(model)] == ["model.embed_tokens.tag_rows"]
    move(model)
    for kind in ("lora", "full", "dora"):
        before = model(IDS)
        set_trained(model, kind, ADAPTER, seed=4, tags=tags)
        np.testing.assert_allclose(model(IDS), before, atol=2e-5)
        assert "model.embed_tokens.tag_rows" in adapter_weights(model)
        move(model)
    save_adapter(model, ADAPTER, tmp_path)
    ids = mx.array([[5, loaded.tokenizer.encode("<a>")[-1], 9]])
    used = load(str(base), tmp_path)
    assert used.tokenizer.encode("<a>") == loaded.tokenizer.encode("<a>")
    np.testing.assert_allclose(used.model(ids), model(ids), atol=1e-5)
    fuse(str(base), tmp_path, tmp_path / "fused")
    np.testing.assert_allclose(load(str(tmp_path / "fused")).model(ids), model(ids), atol=1e-4)
