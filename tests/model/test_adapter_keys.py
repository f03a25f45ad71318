"""Every key of an adapter names a layer that can have one, or is refused by name."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from support.models import tiny_model

from forty2.errors import ModelError
from forty2.model.adapter import adapter_weights, attach_adapter
from forty2.recipe.schema import Adapter


def layers_of(model: nn.Module) -> set[str]:
    """The layers that have an adapter."""
    return {name.rpartition(".")[0] for name in adapter_weights(model)}


def in_blocks(numbers: list[int], *names: str) -> set[str]:
    return {f"model.layers.{n}.{name}" for n in numbers for name in names}


ACCEPTED: list[tuple[str, list[str], int | None, set[str]]] = [
    ("llama", ["self_attn.q_proj"], 2, in_blocks([1, 2], "self_attn.q_proj")),
    ("phi3", ["mlp.gate_up_proj", "lm_head"], 1, {*in_blocks([2], "mlp.gate_up_proj"), "lm_head"}),
    ("gemma2", ["model.embed_tokens"], 1, {"model.embed_tokens"}),
    ("llama", ["model.layers.0.mlp.up_proj"], 1, in_blocks([0], "mlp.up_proj")),
    (
        "mixtral",
        ["block_sparse_moe.switch_mlp.up_proj", "block_sparse_moe.gate"],
        1,
        in_blocks([2], "block_sparse_moe.switch_mlp.up_proj", "block_sparse_moe.gate"),
    ),
    ("nested", ["language_model.lm_head"], None, {"language_model.lm_head"}),
]


@pytest.mark.parametrize(("architecture", "keys", "layers", "wanted"), ACCEPTED)
def test_keys_name_layers_within_the_last_blocks_or_in_the_whole_model(
    architecture: str, keys: list[str], layers: int | None, wanted: set[str]
) -> None:
    changes = {} if architecture in ("gemma2", "mixtral") else {"tie_word_embeddings": False}
    model = tiny_model(architecture, **changes)
    attach_adapter(model, Adapter(keys=keys, layers=layers), seed=0)
    assert layers_of(model) == wanted


REFUSED = [
    (["self_attn.q_proj", "mlp.upproj"], "'mlp.upproj' names no layer .* did you mean mlp.up_proj"),
    (["q_proj"], r"'q_proj' names no layer of this model; did you mean self_attn\.q_proj\?"),
    (["model.layers.*.self_attn.v_proj"], r"did you mean self_attn\.v_proj\?"),
    (["model.layers.7.self_attn.v_proj"], r"did you mean self_attn\.v_proj\?"),
    (["embed_tokens"], r"did you mean model\.embed_tokens\?"),
    (["lm_head"], r"'lm_head' names no layer of this model; did you mean model\.embed_tokens\?"),
    (["zebra"], r"'zebra' names no layer of this model; there are self_attn\.q_proj, "),
    ([""], "'' names no layer of this model"),
    ([], "adapter.keys is empty, so nothing would be trained"),
    (["input_layernorm"], r"input_layernorm is a RMSNorm, which takes no adapter; .*self_attn"),
    (["model.norm"], r"model\.norm is a RMSNorm, which takes no adapter"),
    (["mlp"], r"mlp is several layers: .* mlp\.gate_proj"),
    (["self_attn.q_proj", "model.layers.2.self_attn.q_proj"], "is named twice: self_attn.q_proj"),
    (["qproj", "upproj"], "'qproj' names no layer.*'upproj' names no layer"),
]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_other_keys_are_refused_by_name_with_the_nearest(
    keys: list[str], message: str, kind: Any
) -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match=message) as error:
        attach_adapter(model, Adapter(type=kind, keys=keys), seed=0)
    assert "\n" not in str(error.value)
    assert not any("lora_a" in module for module in model.modules())


def test_a_layer_of_other_blocks_than_the_last_is_refused() -> None:
    model = tiny_model()
    model.model.layers[0].extra = nn.Linear(32, 32)
    adapter = Adapter(keys=["extra", "self_attn.q_proj"], layers=2)
    with pytest.raises(ModelError, match=r"extra is only in blocks before those of adapter.layers"):
        attach_adapter(model, adapter, seed=0)


def quantized(**settings: Any) -> Any:
    model = tiny_model()
    nn.quantize(model, **settings)
    return model


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        (
            lambda: tiny_model("mixtral"),
            ["block_sparse_moe.switch_mlp.up_proj"],
            "SwitchLinear, which takes lora but not dora",
        ),
        (
            lambda: tiny_model("mixtral"),
            None,
            r"name the layers to train: adapter.keys: \[self_attn.q_proj, .*block_sparse_moe.gate\]",
        ),
        (
            lambda: quantized(group_size=32, bits=8),
            ["model.embed_tokens"],
            "QuantizedEmbedding, which takes lora but not dora",
        ),
        (
            lambda: quantized(group_size=32, bits=6),
            ["self_attn.q_proj"],
            "QuantizedLinear of 6 bits in mode affine, which takes lora but not dora",
        ),
        (
            lambda: quantized(group_size=32, bits=4, mode="mxfp4"),
            None,
            "QuantizedLinear of 4 bits in mode mxfp4, which takes lora but not dora",
        ),
    ],
)
def test_layers_that_take_lora_alone_are_refused_for_dora(
    model: Any, keys: list[str] | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        attach_adapter(model(), Adapter(type="dora", keys=keys), seed=0)
    attach_adapter(model(), Adapter(keys=keys), seed=0)


def test_a_layer_that_the_model_does_more_with_than_call_is_refused() -> None:
    model = tiny_model()

    class Own(type(model)):  # type: ignore[misc]
        def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
            logits: mx.array = self.model(ids, cache) @ self.model.embed_tokens.weight.T
            return logits

    model.__class__ = Own
    with pytest.raises(
        ModelError, match=r"with an adapter on model.embed_tokens the model does not"
    ):
        attach_adapter(model, Adapter(keys=["model.embed_tokens"]), seed=0)
