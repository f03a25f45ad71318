"""Writes small GGUF files as llama.cpp's converter would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

Weights = dict[str, NDArray[Any]]

HIDDEN, WIDE, HEADS, KV_HEADS, LAYERS, ROWS = 256, 512, 4, 2, 2, 288  # 256: a block of Q4_K

HEAD_DIM = HIDDEN // HEADS

LETTERS = sorted(ByteLevel.alphabet())

TOKENS = [*LETTERS, "ab", "Ġab", "12", "123", "ab123", "<|im_start|>", "<|im_end|>", "<tool>"]

MERGES = ["a b", "Ġ ab", "1 2", "12 3"]  # so "ab123" is a token that no merge makes

ID = {token: n for n, token in enumerate(TOKENS)}

START, END = ID["<|im_start|>"], ID["<|im_end|>"]

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"

GGUF_NAME = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def hf_shapes(kind: str, *, tied: bool, bias: bool) -> dict[str, tuple[int, ...]]:
    """The Hugging Face layout of a tiny model, written down independently of the importer."""
    kv = KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (ROWS, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["lm_head.weight"] = (ROWS, HIDDEN)
    for n in range(LAYERS):
        block = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (kv, HIDDEN),
            "self_attn.v_proj": (kv, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (WIDE, HIDDEN),
            "mlp.up_proj": (WIDE, HIDDEN),
            "mlp.down_proj": (HIDDEN, WIDE),
        }
        for name, shape in block.items():
            shapes[f"model.layers.{n}.{name}.weight"] = shape
            if "attn" in name and (bias or (kind == "qwen2" and "o_proj" not in name)):
                shapes[f"model.layers.{n}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{n}.{name}.weight"] = (HIDDEN,)
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]]) -> Weights:
    rng = np.random.default_rng(42)
    return {
        name: (rng.normal(size=shape) * 0.04 + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def llama_cpp_rows(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """What llama.cpp's converter does to q and k: each head's two halves are interleaved."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)


def random_blocks(shape: tuple[int, ...], kind: Any) -> NDArray[np.uint8]:
    """Random valid bytes of a type that the gguf package can read, but not write."""
    rng = np.random.default_rng(shape[0])
    size = {Type.Q4_K: 144, Type.Q6_K: 210}[kind]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // 256, size), dtype=np.uint8)
    scale = np.array([6e-5], np.float16).view(np.uint8)
    if kind == Type.Q4_K:
        blocks[..., 0:2], blocks[..., 2:4] = scale, scale
    else:
        blocks[..., 208:210] = scale
    return blocks.reshape(shape[0], -1)


def gguf_name(name: str) -> str:
    stem, _, what = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, n, rest = stem.split(".", 3)
        return f"blk.{n}.{GGUF_NAME[rest]}.{what}"
    return f"{GGUF_NAME[stem]}.{what}"


def write_gguf(
    path: Path,
    kind: str = "llama",
    weights: Weights | None = None,
    matrix: Any = Type.F32,
    *,
    pre: str = "qwen2",
    raw: Weights | None = None,
    edit: Callable[[GGUFWriter], None] = lambda writer: None,
    tokenizer: str = "gpt2",
    extra: Weights | None = None,
) -> Path:
    """A GGUF file as llama.cpp's converter would write it from weights in the HF layout."""
    if weights is None:
        weights = random_weights(hf_shapes(kind, tied=True, bias=False))
    writer = GGUFWriter(path, kind)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 3) + [3, 3, 4])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(START)
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(END)
    writer.add_chat_template(TEMPLATE)
    edit(writer)
    for name, values in weights.items():
        own = Type.F32 if values.ndim == 1 else matrix
        data = raw[name] if raw and name in raw else quantize(values, own)
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            data = llama_cpp_rows(data, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(gguf_name(name), data, raw_dtype=own)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
