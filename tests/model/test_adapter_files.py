"""Adapter files are whole and fit, and carry the ends that their training used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from support.models import save_tiny, tiny_model

from forty2.errors import ModelError
from forty2.export.fusing import fuse
from forty2.model.adapter import attach_adapter, load_adapter, save_adapter
from forty2.model.adapter_files import count_layers
from forty2.model.loading import load
from forty2.recipe.schema import Adapter

ADAPTER = Adapter(rank=2, scale=3.0, layers=2)


def save(folder: Path, **keywords: Any) -> Path:
    model = tiny_model()
    attach_adapter(model, ADAPTER, seed=1)
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = module.lora_b + 0.5
    folder.mkdir(parents=True)
    save_adapter(model, ADAPTER, folder, **keywords)
    return folder


def rewrite(folder: Path, weights: dict[str, mx.array]) -> None:
    mx.eval(list(weights.values()))
    (folder / "adapters.safetensors").unlink()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)


def read(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "adapters.safetensors")))  # type: ignore[arg-type]


def test_each_missing_tensor_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    whole = read(folder)
    for name in sorted(whole)[:4]:
        rewrite(folder, {n: w for n, w in whole.items() if n != name})
        with pytest.raises(ModelError, match=rf"adapters\.safetensors: lacks {name} of the"):
            load_adapter(tiny_model(), folder)


def test_a_surplus_tensor_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    rewrite(folder, read(folder) | {"model.layers.9.self_attn.q_proj.lora_a": mx.ones((2, 2))})
    with pytest.raises(ModelError, match=r"model\.layers\.9\.self_attn\.q_proj\.lora_a"):
        load_adapter(tiny_model(), folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    weights = read(folder)
    name = min(weights)
    weights[name][0, 0] = value
    rewrite(folder, weights)
    with pytest.raises(ModelError, match=rf"adapters\.safetensors: {name} holds 1 NaN"):
        load_adapter(tiny_model(), folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_layers", "2"), ("rank", None), ("scale", True), ("dropout", "0")),
        *(("scale", float("nan")), ("scale", float("inf"))),
    ],
)
def test_a_shape_that_is_not_in_numbers_is_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    (config if key == "num_layers" else config["lora_parameters"])[key] = value
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"adapter_config\.json: .*{key} must be a .*number"):
        load_adapter(tiny_model(), folder)


def test_tensors_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    rewrite(folder, {name: value.astype(mx.int32) for name, value in read(folder).items()})
    with pytest.raises(ModelError, match=r"adapters\.safetensors: .* holds whole numbers"):
        load_adapter(tiny_model(), folder)


def test_an_adapter_of_all_weights_may_hold_some_blocks(tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 1}')
    rewrite(folder, {"model.norm.weight": mx.full((32,), 2.0)})
    model = tiny_model()
    load_adapter(model, folder)
    assert model.model.norm.weight.tolist() == [2.0] * 32


def test_blocks_are_counted_from_the_names_of_tensors() -> None:
    names = ["model.layers.3.a.lora_a", "model.layers.3.a.lora_b", "model.layers.12.b.lora_a", "x"]
    assert count_layers(names) == 2


def test_ends_of_the_training_are_kept_with_the_adapter(tmp_path: Path) -> None:
    base, folder = save_tiny(tmp_path / "base"), save(tmp_path / "a", stop_token_ids=[7])
    assert load(str(base)).stop_token_ids == [1]
    assert load(str(base), folder).stop_token_ids == [1, 7]
    mlx_lm.load(str(base), adapter_path=str(folder))  # stock mlx-lm reads it as before


def test_a_fused_model_stops_at_the_ends_of_the_base_and_of_the_training(tmp_path: Path) -> None:
    base, folder = save_tiny(tmp_path / "base"), save(tmp_path / "a", stop_token_ids=[7, 9])
    (base / "generation_config.json").write_text('{"eos_token_id": 3, "temperature": 0.5}')
    fuse(str(base), folder, tmp_path / "fused")
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    generation = json.loads((tmp_path / "fused" / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == [1, 3, 7, 9]
    assert generation["temperature"] == 0.5
    assert load(str(tmp_path / "fused")).stop_token_ids == [1, 3, 7, 9]
    assert mlx_lm.load(str(tmp_path / "fused"))[1].eos_token_ids == {1, 3, 7, 9}


def test_a_fused_model_without_other_ends_stops_at_one(tmp_path: Path) -> None:
    fuse(str(save_tiny(tmp_path / "base")), save(tmp_path / "a"), tmp_path / "fused")
    assert json.loads((tmp_path / "fused" / "config.json").read_text())["eos_token_id"] == 1


@pytest.mark.parametrize("record", ["</s>", [1.5], [-1], {"a": 1}])
def test_ends_that_are_no_tokens_are_refused(record: object, tmp_path: Path) -> None:
    base, folder = save_tiny(tmp_path / "base"), save(tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"stop_token_ids": record}))
    with pytest.raises(ModelError, match="stop_token_ids is not a list of token ids"):
        load(str(base), folder)
