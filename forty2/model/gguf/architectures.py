"""Architectures that GGUF files are read and written for: their metadata keys and their tensors.

One table serves both directions, so that what is written is what is read. Names on the left are
llama.cpp's, names on the right those of Hugging Face's config.json and weight files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forty2.files import JsonObject


class Number(NamedTuple):
    """A number in a model's configuration."""

    name: str
    """Key of config.json."""
    kind: type[int] | type[float]
    """Type of the metadata, which llama.cpp insists on."""


NUMBERS = {
    "attention.head_count": Number("num_attention_heads", int),
    "attention.head_count_kv": Number("num_key_value_heads", int),
    "attention.layer_norm_rms_epsilon": Number("rms_norm_eps", float),
    "block_count": Number("num_hidden_layers", int),
    "context_length": Number("max_position_embeddings", int),
    "embedding_length": Number("hidden_size", int),
    "feed_forward_length": Number("intermediate_size", int),
    "rope.freq_base": Number("rope_theta", float),
}
"""Metadata of every architecture, by its key without the architecture's name before it."""


class Weight(NamedTuple):
    """A tensor of a model, as Hugging Face has it, and how llama.cpp's differs."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    """Number of heads whose two halves llama.cpp interleaves; 0: the rows are in the same order."""
    offset: int = 0
    """Number that llama.cpp's file has added to each value: Gemma's norms multiply by 1 + weight."""

    def rows_from_gguf(self, rows: int) -> NDArray[np.intp]:
        """Return the places in the GGUF file of the rows, in Hugging Face's order."""
        order = np.arange(rows)
        return order.reshape(self.heads, -1, 2).swapaxes(1, 2).ravel() if self.heads else order

    def rows_for_gguf(self, rows: int) -> NDArray[np.intp]:
        """Return the places in Hugging Face's order of the rows, in that of the GGUF file."""
        return np.argsort(self.rows_from_gguf(rows))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What sets one architecture of llama.cpp apart from the others."""

    name: str
    """llama.cpp's name, which is the beginning of its metadata keys."""
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json; an import writes the first."""
    model_class: str
    """transformers' class of the model."""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    """Metadata beside `NUMBERS`."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings of config.json that llama.cpp takes for granted."""
    interleaved: bool = False
    """Whether llama.cpp rotates neighbouring rows of q and k, where Hugging Face rotates halves."""
    norm_offset: int = 0
    head_norms: bool = False
    """Whether the heads of q and k are normed."""
    joined: bool = False
    """Whether q, k and v are one matrix, and so are gate and up."""
    norms_after: bool = False
    """Whether attention and MLP are followed by norms, too."""
    qkv_bias: bool = False
    """Whether q, k and v always have biases."""
    optional_bias: bool = False
    """Whether config.json says where there are biases."""
    own_head_size: bool = True
    """Whether the heads' size may differ from width / heads."""
    partly_rotated: bool = False
    """Whether config.json may say that only the first rows of a head are rotated."""
    scalar_layers: int | None = None
    """Number of blocks of the one size whose query_pre_attn_scalar is width / heads; that of the others
    is the heads' size. None: the architecture has no such setting."""
    scaled_rope: tuple[str, ...] = ("linear", "yarn")
    """Kinds of rotary scaling that llama.cpp computes for it."""

    def query_scalar(self, config: JsonObject) -> int | None:
        """Return the query_pre_attn_scalar that llama.cpp works out; None: it has none."""
        if self.scalar_layers is None:
            return None
        if config["num_hidden_layers"] != self.scalar_layers:
            return head_size(config)
        return int(config["hidden_size"] // config["num_attention_heads"])

    def biases(self, config: JsonObject) -> tuple[bool, bool, bool]:
        """Return whether q, k and v have biases, whether the attention's output, and the MLP."""
        attention = self.optional_bias and bool(config.get("attention_bias"))
        mlp = self.optional_bias and bool(config.get("mlp_bias"))
        return self.qkv_bias or attention, attention, mlp

    def weights(self, config: JsonObject) -> Iterator[tuple[str, Weight]]:
        """Yield every tensor of a model with its GGUF name; rotary factors are none of them.

        Args:
            config: config.json, with every key that `NUMBERS` names. A damaged one may name billions of
                blocks.
        """
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        offset = self.norm_offset
        yield "token_embd.weight", Weight("model.embed_tokens.weight", (vocabulary, hidden))
        yield "output_norm.weight", Weight("model.norm.weight", (hidden,), offset=offset)
        if not config["tie_word_embeddings"]:
            yield "output.weight", Weight("lm_head.weight", (vocabulary, hidden))
        norms, matrices = self._norms(config), self._matrices(config)
        for n in range(config["num_hidden_layers"]):
            own, theirs = f"blk.{n}", f"model.layers.{n}"
            for name, (layer, size) in norms.items():
                weight = Weight(f"{theirs}.{layer}.weight", (size,), offset=offset)
                yield f"{own}.{name}.weight", weight
            for name, (layer, rows, columns, heads, bias) in matrices.items():
                weight = Weight(f"{theirs}.{layer}.weight", (rows, columns), heads)
                yield f"{own}.{name}.weight", weight
                if bias:
                    yield f"{own}.{name}.bias", Weight(f"{theirs}.{layer}.bias", (rows,), heads)

    def _norms(self, config: JsonObject) -> dict[str, tuple[str, int]]:
        """Return the norms of a block, and their sizes."""
        hidden, head = config["hidden_size"], head_size(config)
        names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        if self.norms_after:
            names = {
                "attn_norm": "input_layernorm",
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            }
        found = {name: (layer, hidden) for name, layer in names.items()}
        if self.head_norms:
            found["attn_q_norm"] = ("self_attn.q_norm", head)
            found["attn_k_norm"] = ("self_attn.k_norm", head)
        return found

    def _matrices(self, config: JsonObject) -> dict[str, tuple[str, int, int, int, bool]]:
        """Return the matrices of a block: name, rows, columns, interleaved heads, has a bias."""
        hidden, wide = config["hidden_size"], config["intermediate_size"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        q, kv = heads * head_size(config), kv_heads * head_size(config)
        qkv_bias, output_bias, mlp_bias = self.biases(config)
        turned = self.interleaved
        found = {
            "attn_q": ("self_attn.q_proj", q, hidden, heads * turned, qkv_bias),
            "attn_k": ("self_attn.k_proj", kv, hidden, kv_heads * turned, qkv_bias),
            "attn_v": ("self_attn.v_proj", kv, hidden, 0, qkv_bias),
            "attn_output": ("self_attn.o_proj", hidden, q, 0, output_bias),
            "ffn_gate": ("mlp.gate_proj", wide, hidden, 0, mlp_bias),
            "ffn_up": ("mlp.up_proj", wide, hidden, 0, mlp_bias),
            "ffn_down": ("mlp.down_proj", hidden, wide, 0, mlp_bias),
        }
        if self.joined:
            found = {
                "attn_qkv": ("self_attn.qkv_proj", q + 2 * kv, hidden, 0, qkv_bias),
                "attn_output": found["attn_output"],
                "ffn_up": ("mlp.gate_up_proj", 2 * wide, hidden, 0, mlp_bias),
                "ffn_down": found["ffn_down"],
            }
        return found


def head_size(config: JsonObject) -> int:
    """Return the size of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


_GEMMA = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            name="llama",
            model_types=("llama", "mistral"),
            model_class="LlamaForCausalLM",
            interleaved=True,
            optional_bias=True,
            scaled_rope=("linear", "yarn", "llama3"),
        ),
        Architecture(
            name="qwen2",
            model_types=("qwen2",),
            model_class="Qwen2ForCausalLM",
            qkv_bias=True,
            own_head_size=False,
        ),
        Architecture(
            name="qwen3",
            model_types=("qwen3",),
            model_class="Qwen3ForCausalLM",
            head_norms=True,
        ),
        Architecture(
            name="phi3",
            model_types=("phi3",),
            model_class="Phi3ForCausalLM",
            joined=True,
            partly_rotated=True,
            own_head_size=False,
            scaled_rope=("linear", "longrope"),
        ),
        Architecture(
            name="gemma2",
            model_types=("gemma2",),
            model_class="Gemma2ForCausalLM",
            numbers={
                "attention.sliding_window": Number("sliding_window", int),
                "attn_logit_softcapping": Number("attn_logit_softcapping", float),
                "final_logit_softcapping": Number("final_logit_softcapping", float),
            },
            settings=_GEMMA,
            scalar_layers=46,
            norm_offset=1,
            norms_after=True,
            scaled_rope=(),
        ),
        Architecture(
            name="gemma3",
            model_types=("gemma3_text", "gemma3"),
            model_class="Gemma3ForCausalLM",
            numbers={"attention.sliding_window": Number("sliding_window", int)},
            settings=_GEMMA | {"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0},
            scalar_layers=62,
            norm_offset=1,
            norms_after=True,
            head_norms=True,
            scaled_rope=("linear",),
        ),
        Architecture(
            name="smollm3",
            model_types=("smollm3",),
            model_class="SmolLM3ForCausalLM",
            settings={"no_rope_layer_interval": 4},
            interleaved=True,
        ),
        Architecture(
            name="granite",
            model_types=("granite",),
            model_class="GraniteForCausalLM",
            numbers={
                "attention.scale": Number("attention_multiplier", float),
                "embedding_scale": Number("embedding_multiplier", float),
                "logit_scale": Number("logits_scaling", float),
                "residual_scale": Number("residual_multiplier", float),
            },
            interleaved=True,
            optional_bias=True,
            own_head_size=False,
            scaled_rope=("linear", "yarn", "llama3"),
        ),
    )
}
"""Every architecture, by llama.cpp's name."""
