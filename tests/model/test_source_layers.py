"""Which layers of its files a model's layers are made of."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from support.joined_layers import apart, cutting, joined, joining, save_files
from support.models import tiny_model
from support.peft_folders import factors, save_peft

from forty2.errors import ModelError
from forty2.model.adapter import load_adapter
from forty2.model.source_layers import Part, source_layers

Q = "self_attn.q_proj"


def test_rows_are_found_where_the_model_has_them(tmp_path: Path) -> None:
    base = save_files(tmp_path / "apart", tiny_model("phi3"), apart)
    found = source_layers(joining(tiny_model("phi3")), base)
    name = "model.layers.1.self_attn"
    assert found.parts[f"{name}.qkv_proj"] == (
        Part(f"{name}.q_proj", 0, 32, 32),
        Part(f"{name}.k_proj", 0, 16, 16),
        Part(f"{name}.v_proj", 0, 16, 16),
    )
    assert found.parts[f"{name}.o_proj"] == (Part(f"{name}.o_proj", 0, 32, 32),)
    base = save_files(tmp_path / "joined", tiny_model(), joined)
    found = source_layers(cutting(tiny_model()), base)
    assert found.parts[f"{name}.k_proj"] == (Part(f"{name}.qkv_proj", 32, 48, 64),)
    assert not found.unknown


class _Joined(nn.Module):
    def sanitize(self, given: dict[str, mx.array]) -> dict[str, mx.array]:
        return {"ab.weight": mx.concatenate([given["a.weight"], given["b.weight"]])}


def test_layers_that_lie_beside_each_other_in_the_files_stay_two_parts(tmp_path: Path) -> None:
    arrays = {"a.weight": mx.zeros((3, 4)), "b.weight": mx.zeros((2, 4))}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    found = source_layers(_Joined(), tmp_path)  # type: ignore[no-untyped-call]
    assert found.parts == {"ab": (Part("a", 0, 3, 3), Part("b", 0, 2, 2))}


def test_weights_in_another_order_are_known_to_be_unknown(tmp_path: Path) -> None:
    base = save_files(tmp_path / "base", tiny_model(), dict)

    class Turning(type(tiny_model())):  # type: ignore[misc]
        def sanitize(self, given: dict[str, mx.array]) -> dict[str, mx.array]:
            return {n: v.T if "q_proj" in n else v for n, v in given.items()}

    model = tiny_model()
    model.__class__ = Turning
    found = source_layers(model, base)
    assert found.unknown == {f"model.layers.{n}.{Q}" for n in range(3)}
    folder = save_peft(
        tmp_path / "peft",
        factors(dict.fromkeys(found.unknown, (32, 32))),
        target_modules=["q_proj"],
    )
    with pytest.raises(ModelError, match="whose weight mlx-lm stores in another order"):
        load_adapter(model, folder, base)
