"""A first phase that goes on from an adapter: the same function as where it was trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.models import tiny_model
from support.peft_folders import random_array, save_peft
from support.training import SPEC, adapted, sft

from forty2.errors import ModelError
from forty2.model.adapter import (
    adapter_weights,
    attach_adapter,
    load_adapter,
    load_arrays,
    save_adapter,
)
from forty2.model.initial_adapter import attach_initial_adapter
from forty2.model.phase_attention import phase_coupling
from forty2.recipe.saved_adapter import read_adapter_file
from forty2.recipe.schema import Adapter, PhaseAttention, Recipe

IDS = mx.array([[5, 6, 7, 8, 9]])
PHASES: Any = {"sft": sft()}
PHASES_OF_BLOCK = PhaseAttention(block=0, oscillators=4, steps=2)


def recipe(folder: Path, *, phases: bool = False) -> Recipe:
    """A recipe that goes on from an adapter, with the shape that reading it takes from there."""
    found = read_adapter_file(str(folder))
    shape = Adapter(
        type=found.type,
        rank=found.rank,
        scale=found.scale,
        layers=found.layers,
        keys=list(found.keys),
        phase_attention=PHASES_OF_BLOCK if phases else None,
    )
    return Recipe(
        version=1, name="x", model="x", phases=PHASES, init_from=str(folder), adapter=shape
    )


def as_peft(folder: Path, mlx: Path, *, dtype: mx.Dtype = mx.float32, alpha: float = 16.0) -> Path:
    """Write mlx-lm's adapter as PEFT would: factors transposed, scale as alpha / r."""
    folder.mkdir()
    arrays = {}
    for name, value in load_arrays(mlx / "adapters.safetensors").items():
        layer, factor = name.rsplit(".lora_", 1)
        peft = f"base_model.model.{layer}.lora_{factor.upper()}.weight"
        arrays[peft] = mx.contiguous(value.T).astype(dtype)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), arrays)
    config = {"peft_type": "LORA", "r": SPEC.rank, "lora_alpha": alpha, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, mx.array]:
    """An adapter that does something, and its logits."""
    model = adapted()
    (tmp_path / "mlx").mkdir()
    save_adapter(model, SPEC, tmp_path / "mlx")
    return tmp_path / "mlx", model(IDS)


def test_an_adapter_of_mlx_lm_or_peft_computes_what_it_did(
    saved: tuple[Path, mx.array], tmp_path: Path
) -> None:
    folder, logits = saved
    assert not np.allclose(tiny_model()(IDS), logits, atol=1e-3)
    for place in (folder, as_peft(tmp_path / "peft", folder)):
        model = tiny_model()
        found = attach_initial_adapter(model, recipe(place), seed=7)
        assert found is not None and found.folder == place
        assert np.array_equal(model(IDS), logits)
        assert list(adapter_weights(model)) == list(adapter_weights(adapted()))


def test_a_dora_adapter_computes_what_it_did(tmp_path: Path) -> None:
    trained = tiny_model()
    spec = dataclasses.replace(SPEC, type="dora")
    attach_adapter(trained, spec, seed=3)
    moved = [(name, value + 0.05) for name, value in adapter_weights(trained).items()]
    trained.load_weights(moved, strict=False)
    save_adapter(trained, spec, tmp_path)
    model = tiny_model()
    attach_initial_adapter(model, recipe(tmp_path), seed=7)
    assert np.array_equal(model(IDS), trained(IDS))
    assert not np.allclose(tiny_model()(IDS), trained(IDS), atol=1e-3)
    arrays = load_arrays(tmp_path / "adapters.safetensors")
    halved = {n: v for n, v in arrays.items() if not n.startswith("model.layers.2") or n[-1] != "m"}
    assert len(halved) < len(arrays)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), halved)
    with pytest.raises(ModelError, match="some layers have DoRA's norms, others not"):
        read_adapter_file(str(tmp_path))


def test_an_adapter_of_peft_on_a_tied_table_is_refused(tmp_path: Path) -> None:
    """PEFT changes the embedding alone, and ours the head as well."""
    arrays = {
        "model.embed_tokens.lora_embedding_A": random_array(4, 300),
        "model.embed_tokens.lora_embedding_B": random_array(32, 4),
    }
    folder = save_peft(tmp_path / "peft", arrays, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match=r"embed_tokens, and .* which PEFT adapts apart"):
        attach_initial_adapter(tiny_model(), recipe(folder), seed=0)
    untied, used = (tiny_model(tie_word_embeddings=False) for _ in range(2))
    attach_initial_adapter(untied, recipe(folder), seed=0)
    load_adapter(used, folder)
    assert np.array_equal(untied(IDS), used(IDS))


def test_an_adapter_in_16_bits_is_trained_in_32(
    saved: tuple[Path, mx.array], tmp_path: Path
) -> None:
    model = tiny_model()
    place = as_peft(tmp_path / "peft", saved[0], dtype=mx.bfloat16)
    attach_initial_adapter(model, recipe(place), seed=7)
    assert {value.dtype for value in adapter_weights(model).values()} == {mx.float32}


def test_an_adapter_that_the_model_does_not_take_is_refused_by_name(
    saved: tuple[Path, mx.array], tmp_path: Path
) -> None:
    folder, _ = saved
    file = folder / "adapters.safetensors"
    arrays = load_arrays(file)

    def said(changed: dict[str, mx.array], model: Any) -> str:
        mx.save_safetensors(str(file), changed)
        with pytest.raises(ModelError) as error:
            attach_initial_adapter(model, recipe(folder), seed=0)
        return str(error.value)

    first = {name.replace("layers.2", "layers.0"): value for name, value in arrays.items()}
    message = said(first, tiny_model())
    assert "holds model.layers.0." in message and "the last ones; merge it into" in message
    fewer = {name: value for name, value in arrays.items() if "layers.1.mlp.up" not in name}
    assert "lacks model.layers.1.mlp.up_proj.lora_a" in said(fewer, tiny_model())
    assert "was it trained on another model?" in said(arrays, tiny_model(intermediate_size=128))
    name = next(iter(arrays))
    broken = {**arrays, name: arrays[name] * float("nan")}
    assert f"{name} holds a value that is not finite" in said(broken, tiny_model())
    mx.save_safetensors(str(file), arrays)
    other = dataclasses.replace(recipe(folder), adapter=Adapter(rank=2, layers=2))
    with pytest.raises(ModelError, match="this model's layer needs"):
        attach_initial_adapter(tiny_model(), other, seed=0)


OTHER_MODELS: dict[str, Callable[[], Any]] = {
    "other widths": lambda: tiny_model(intermediate_size=128),
    "another architecture": lambda: tiny_model("phi3"),
    "fewer blocks": lambda: tiny_model(num_hidden_layers=1),
    "another vocabulary": lambda: tiny_model(vocab_size=400),
}
"""Models that an adapter on the last two blocks of the tiny llama, or on its embedding, does not fit."""


@pytest.mark.parametrize("other", OTHER_MODELS)
@pytest.mark.parametrize("maker", ["a run", "mlx-lm", "PEFT"])
def test_an_adapter_of_another_model_says_which_one_it_was_trained_on(
    maker: str, other: str, tmp_path: Path
) -> None:
    keys = ["model.embed_tokens"] if other == "another vocabulary" else None
    spec = dataclasses.replace(SPEC, keys=keys)
    model, folder = tiny_model(), tmp_path / "mlx"
    attach_adapter(model, spec, seed=1)
    folder.mkdir()
    save_adapter(model, spec, folder)
    if maker == "PEFT":
        folder = as_peft(tmp_path / "peft", folder)
    if maker == "a run":
        run = {"model": "mine", "model_path": "/models/mine"}
        (tmp_path / "run.json").write_text(json.dumps(run))
    else:
        file = folder / "adapter_config.json"
        key = "base_model_name_or_path" if maker == "PEFT" else "model"
        file.write_text(json.dumps({**json.loads(file.read_bytes()), key: "maker/mine"}))
    origin = "trained on mine (/models/mine)" if maker == "a run" else "trained on maker/mine"
    with pytest.raises(ModelError) as error:
        attach_initial_adapter(OTHER_MODELS[other](), recipe(folder), seed=0)
    assert origin in str(error.value) and "None" not in str(error.value)
    with pytest.raises(ModelError) as error:
        load_adapter(OTHER_MODELS[other](), folder)
    assert str(error.value).endswith(f"; it was {origin}")


@pytest.mark.parametrize(
    ("changes", "said"), [({"r": 8}, "r is 8"), ({"lora_alpha": 0}, "above 0")]
)
def test_a_peft_configuration_that_the_tensors_contradict_is_refused(
    changes: dict[str, int], said: str, saved: tuple[Path, mx.array], tmp_path: Path
) -> None:
    file = as_peft(tmp_path / "peft", saved[0]) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=rf"adapter_config\.json: .*{said}"):
        read_adapter_file(str(tmp_path / "peft"))


def test_a_phase_may_be_named_as_in_the_recipe(
    saved: tuple[Path, mx.array], tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text("{}")
    phase = saved[0].rename(tmp_path / "phase2_dpo")
    assert read_adapter_file(str(tmp_path / "dpo")).folder == phase
    with pytest.raises(ModelError, match="no finished phase of this name; the run has dpo"):
        read_adapter_file(str(tmp_path / "kto"))
    with pytest.raises(ModelError, match="is a file; name the folder"):
        read_adapter_file(str(phase / "adapters.safetensors"))


def test_phase_attention_goes_on_from_the_file_or_begins_anew(
    saved: tuple[Path, mx.array], tmp_path: Path
) -> None:
    folder, logits = saved
    model = tiny_model()
    attach_initial_adapter(model, recipe(folder, phases=True), seed=7)
    assert np.array_equal(model(IDS), logits)  # a new one changes nothing
    coupling = phase_coupling(model)
    assert coupling is not None
    coupling.gate = mx.random.normal(coupling.gate.shape)
    spec = dataclasses.replace(SPEC, phase_attention=PHASES_OF_BLOCK)
    save_adapter(model, spec, tmp_path)
    again = tiny_model()
    attach_initial_adapter(again, recipe(tmp_path, phases=True), seed=8)
    assert np.array_equal(again(IDS), model(IDS)) and not np.array_equal(again(IDS), logits)
