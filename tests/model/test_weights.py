"""Weight files are whole and complete, and weights are finite, whatever their packing."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from support.models import save_tiny, tiny_model

from forty2.errors import ModelError
from forty2.model.loading import load
from forty2.model.weights import check_finite, check_weight_files, tensor_names


def test_the_names_of_a_whole_file(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    names = tensor_names(folder / "model.safetensors")
    assert set(names) == set(dict(mx.load(str(folder / "model.safetensors"))))  # type: ignore[arg-type]
    check_weight_files(folder, {})


def test_a_file_cut_anywhere_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"m/model\.safetensors: cut short"):
            check_weight_files(folder, {})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("model.gguf", r"GGUF weights; convert them first: forty2 model import model\.gguf"),
        ("adapter_model.safetensors", "only an adapter of PEFT"),
        ("adapters.safetensors", "give it as `adapter`"),
        ("pytorch_model.bin", "PyTorch's format"),
        ("consolidated.safetensors", r"no model\*\.safetensors, but consolidated"),
        ("model.safetensors.index.json", "download the model again"),
        ("notes.txt", r"holds no weights \(model\.safetensors is missing\)"),
    ],
)
def test_a_folder_without_weights_says_what_it_holds(
    other: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(ModelError, match=message):
        check_weight_files(tmp_path, {})


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(
    value: float, bits: int | None, tmp_path: Path
) -> None:
    model = tiny_model(hidden_size=64)
    name = "model.layers.1.mlp.up_proj"
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    part = dict(model.named_modules())[name]
    spoilt = "weight" if bits is None else "scales"
    part[spoilt][2, 1] = value
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), {f"{name}.{spoilt}": part[spoilt]}, {"format": "mlx"}
    )
    with pytest.raises(
        ModelError, match=rf"model\.safetensors: {name}\.{spoilt} holds 1 NaN or inf"
    ):
        check_finite(model, tmp_path)


def test_large_weights_are_finite(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.norm.weight = mx.full((32,), 3e38)
    model.model.embed_tokens.weight = mx.full((300, 32), 60000.0, mx.float16)
    check_finite(model, tmp_path)


def test_damage_of_one_of_several_files_is_found(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    weights = sorted(dict(mx.load(str(folder / "model.safetensors"))).items())  # type: ignore[arg-type]
    mx.eval([array for _, array in weights])
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for number, part in ((1, weights[::2]), (2, weights[1::2])):
        name = f"model-0000{number}-of-00002.safetensors"
        mx.save_safetensors(str(folder / name), dict(part), {"format": "mlx"})
        places |= {tensor: name for tensor, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    load(str(folder))
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: cut short"):
        load(str(folder))
