"""Conversion of a GGUF file to a model folder that stock mlx-lm and transformers load."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from forty2.errors import ModelError
from forty2.files import JsonObject
from forty2.model.gguf.file import GgufFile
from forty2.model.gguf.tokenizer import TokenIds, read_tokenizer

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_REMEDY = "download the file again"
_CHUNK = 1 << 22
"""Most values in memory at a time while weights are written."""


_USED = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "vocab_size",
}
"""Metadata of an architecture that the importer reads, besides rope.scaling."""
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.sliding_window": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "use_parallel_residual": (False,),
}
"""Metadata that may stand there with a value that changes nothing."""


class _Target(NamedTuple):
    """The place of a tensor in the Hugging Face layout."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    """Number of heads whose two halves llama.cpp has interleaved; 0: not interleaved."""


def import_gguf(gguf_path: Path, out: Path) -> Path:
    """Write a GGUF file's model as a folder of safetensors, config and tokenizer.

    Quantized tensors are dequantized, so that the model can be trained and fused in full
    precision. The folder appears whole or not at all, and never replaces one with files in it.

    Args:
        gguf_path: a file of architecture llama or qwen2, with a byte-level BPE tokenizer.
        out: the folder to make.

    Returns:
        `out`.

    Raises:
        ModelError: the file is of another kind or damaged, or holds something that cannot be
            imported.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ModelError(f"{out}: already exists; remove it, or choose another folder")
    file = GgufFile(gguf_path)
    config = _architecture(file)
    tokenizer = read_tokenizer(file, config["max_position_embeddings"])
    targets = _targets(file, config)
    if tokenizer.size > config["vocab_size"]:
        raise ModelError(
            f"{gguf_path}: {tokenizer.size} tokens, but embeddings for {config['vocab_size']}"
        )
    if config["model_type"] == "qwen2" and tokenizer.rule != "qwen2":
        # transformers gives every qwen2 model this rule, whatever tokenizer.json says
        raise ModelError(
            f"{gguf_path}: pre-tokenizer {tokenizer.pre!r} with architecture qwen2 cannot be "
            "imported; use the model's safetensors"
        )
    dtype = _dtype(file)
    ids = _ids(tokenizer.ids)
    config |= ids | {"dtype": {Type.F32: "float32", Type.F16: "float16"}.get(dtype, "bfloat16")}
    with _new_folder(out) as folder:
        _write_weights(folder / "model.safetensors", file, targets, dtype)
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", ids)
        tokenizer.save(folder)
    return out


def _architecture(file: GgufFile) -> JsonObject:
    """Build `config.json`, without token ids and dtype."""
    kind = file.need("general.architecture", str)
    _check_content(file, kind)
    if kind not in _CLASSES:
        raise ModelError(
            f"{file.path}: architecture {kind!r} cannot be imported, only {', '.join(_CLASSES)}; "
            "use the model's safetensors"
        )
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path}: tensor token_embd.weight is missing; {_REMEDY}")
    _check_metadata(file, kind)
    hidden = file.need(f"{kind}.embedding_length", int)
    heads = file.need(f"{kind}.attention.head_count", int)
    head_dim = file.get(f"{kind}.attention.key_length", int) or hidden // max(heads, 1)
    if heads < 1 or head_dim < 2 or head_dim % 2:
        raise ModelError(f"{file.path}: {heads} heads of {head_dim} are impossible; {_REMEDY}")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (file.get(f"{kind}.{key}", int) or head_dim) != head_dim:
            raise ModelError(
                f"{file.path}: {kind}.{key} is not the head size {head_dim}, "
                "which no importable model has"
            )
    if kind == "qwen2" and head_dim * heads != hidden:
        raise ModelError(
            f"{file.path}: {heads} heads of {head_dim} do not add up to width {hidden}"
        )
    theta = _shortest(file.get(f"{kind}.rope.freq_base", float) or 10000.0)
    config: JsonObject = {
        "model_type": kind,
        "architectures": [_CLASSES[kind]],
        "hidden_size": hidden,
        "intermediate_size": file.need(f"{kind}.feed_forward_length", int),
        "num_hidden_layers": file.need(f"{kind}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(f"{kind}.attention.head_count_kv", int) or heads,
        "max_position_embeddings": file.need(f"{kind}.context_length", int),
        "rms_norm_eps": _shortest(file.need(f"{kind}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": theta,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
    }
    if kind == "llama":
        config |= {
            "head_dim": head_dim,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        }
    scaling = _rope_scaling(file, kind, theta, head_dim)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _check_content(file: GgufFile, kind: str) -> None:
    """Refuse a file that holds something other than a whole dense language model."""
    content = file.get("general.type", str) or "model"
    if content == "adapter" or file.keys("adapter."):
        raise ModelError(
            f"{file.path}: this is an adapter (LoRA), not a model; import its base model, and take "
            "the adapter in the format of PEFT or mlx-lm"
        )
    if content == "mmproj" or kind == "clip":
        raise ModelError(
            f"{file.path}: this is the image part of a model (mmproj); import the language model's "
            "own file"
        )
    if content != "model":
        raise ModelError(f"{file.path}: holds no model, but {content!r}; import the model's file")
    if not file.tensors:
        raise ModelError(
            f"{file.path}: holds a vocabulary alone, no weights; import the model's own file"
        )
    experts = file.get(f"{kind}.expert_count", int) or 0
    if experts > 0 or "blk.0.ffn_gate_inp.weight" in file.tensors:
        raise ModelError(
            f"{file.path}: this is a mixture of {experts or 'several'} experts, which cannot be "
            "imported; use the model's safetensors"
        )


def _check_metadata(file: GgufFile, kind: str) -> None:
    """Refuse metadata that may change the computation and that the importer does not use."""
    context = file.need(f"{kind}.context_length", int)
    for key in sorted(file.keys(f"{kind}.") - _USED):
        value = file.value(f"{kind}.{key}")
        if key.startswith("rope.scaling.") or value in _WITHOUT_EFFECT.get(key, ()):
            continue
        if key == "attention.sliding_window" and isinstance(value, int) and value >= context:
            continue
        if key == "attention.scale" and isinstance(value, float) and _is_usual_scale(file, value):
            continue
        raise ModelError(
            f"{file.path}: {kind}.{key} is {value!r}, which may change what the model computes, and "
            "is not imported; use the model's safetensors"
        )


def _is_usual_scale(file: GgufFile, scale: float) -> bool:
    """Return whether a factor on attention scores is that of an architecture without the key."""
    kind = file.need("general.architecture", str)
    heads = max(file.need(f"{kind}.attention.head_count", int), 1)
    width = file.get(f"{kind}.attention.key_length", int)
    width = width or file.need(f"{kind}.embedding_length", int) // heads
    return scale == 0 or math.isclose(scale, max(width, 1) ** -0.5, rel_tol=1e-5)


def _rope_scaling(file: GgufFile, kind: str, theta: float, head_dim: int) -> JsonObject | None:
    """Build `rope_scaling` as llama.cpp reads it: a factor without a type is linear."""
    prefix = f"{kind}.rope.scaling."
    factor = file.get(f"{prefix}factor", float) or file.get(f"{kind}.rope.scale_linear", float)
    method = file.get(f"{prefix}type", str) or ("linear" if factor else "none")
    unknown = file.keys(prefix) - {"type", "factor", "original_context_length", "finetuned"}
    if "rope_freqs.weight" in file.tensors:
        if unknown or (method != "none" and factor not in (None, 1.0)):
            raise ModelError(
                f"{file.path}: rope_freqs.weight and rope scaling {method!r} together cannot be "
                "imported; use the model's safetensors"
            )
        return _llama3_scaling(file, theta, head_dim)
    if method not in ("none", "linear", "yarn") or unknown:
        raise ModelError(
            f"{file.path}: rope scaling {method!r} {sorted(unknown) or ''} cannot be imported; "
            "use the model's safetensors"
        )
    if method == "none" or (method == "linear" and factor in (None, 1.0)):
        return None
    if not factor or factor < 0:
        raise ModelError(f"{file.path}: {prefix}factor is {factor}; {_REMEDY}")
    scaling = {"rope_type": method, "factor": _shortest(factor)}
    original = file.get(f"{prefix}original_context_length", int)
    if method == "yarn" and original is not None:
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> JsonObject:
    """Find the parameters of Llama 3's scaling; the file holds only the divisors computed from them.

    Published models differ only in the factor, which is the largest divisor. The other divisors
    are checked against it.
    """
    tensor = file.tensors["rope_freqs.weight"]
    divisors = dequantize(tensor.data, tensor.kind).ravel()
    low, high, original = 1.0, 4.0, 8192
    factor = float(divisors.max())
    with np.errstate(all="ignore"):  # a damaged value equals nothing
        turns = original / (2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        expected = 1 / ((1 - smooth) / np.float64(factor) + smooth)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ModelError(
            f"{file.path}: rope_freqs.weight is not Llama 3's scaling, so it cannot be imported; "
            "use the model's safetensors"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _targets(file: GgufFile, config: JsonObject) -> dict[str, _Target]:
    """List every tensor that the model needs, by its GGUF name.

    Raises:
        ModelError: a tensor is missing, has another shape, or is unknown.
    """
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    permuted = config["model_type"] == "llama"
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    qkv = attention or config["model_type"] == "qwen2"
    layers = [  # GGUF name, Hugging Face name, rows, columns, interleaved heads, has a bias
        ("attn_q", "self_attn.q_proj", heads * head_dim, hidden, permuted * heads, qkv),
        ("attn_k", "self_attn.k_proj", kv_heads * head_dim, hidden, permuted * kv_heads, qkv),
        ("attn_v", "self_attn.v_proj", kv_heads * head_dim, hidden, 0, qkv),
        ("attn_output", "self_attn.o_proj", hidden, heads * head_dim, 0, attention),
        ("ffn_gate", "mlp.gate_proj", wide, hidden, 0, mlp),
        ("ffn_up", "mlp.up_proj", wide, hidden, 0, mlp),
        ("ffn_down", "mlp.down_proj", hidden, wide, 0, mlp),
    ]
    targets: dict[str, _Target] = {}

    def place(own: str, name: str, shape: tuple[int, ...], interleaved: int = 0) -> None:
        if own not in file.tensors:
            raise ModelError(f"{file.path}: tensor {own} is missing; {_REMEDY}")
        if (found := file.tensors[own].shape) != shape:
            raise ModelError(f"{file.path}: tensor {own} is {found}, not {shape}; {_REMEDY}")
        targets[own] = _Target(name, shape, interleaved)

    place("token_embd.weight", "model.embed_tokens.weight", (config["vocab_size"], hidden))
    place("output_norm.weight", "model.norm.weight", (hidden,))
    if not config["tie_word_embeddings"]:
        place("output.weight", "lm_head.weight", (config["vocab_size"], hidden))
    for n in range(config["num_hidden_layers"]):
        own, theirs = f"blk.{n}", f"model.layers.{n}"
        place(f"{own}.attn_norm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
        place(f"{own}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
        for name, layer, rows, columns, interleaved, bias in layers:
            place(f"{own}.{name}.weight", f"{theirs}.{layer}.weight", (rows, columns), interleaved)
            if bias:
                place(f"{own}.{name}.bias", f"{theirs}.{layer}.bias", (rows,), interleaved)
    if more := sorted(file.tensors.keys() - targets.keys() - {"rope_freqs.weight"}):
        raise ModelError(
            f"{file.path}: tensor {more[0]} is unknown in architecture {config['model_type']}, "
            "so this is another kind of model; use its safetensors"
        )
    return targets


def _dtype(file: GgufFile) -> Type:
    """Choose one type for all weights that are written.

    The type of the matrices decides: the norms are F32 in every GGUF file, and written as F32 they
    would turn everything after them into fp32. 16-bit matrices stay 16-bit. Quantized matrices become
    F32, which holds them exactly and trains best. From a billion parameters on, the folder would then
    be too big for a laptop, so they become F16, which is closer than BF16 because the scale of a
    block is an F16 number.
    """
    types = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    if types <= {Type.F32, Type.F16, Type.BF16}:
        return types.pop() if len(types) == 1 else Type.F32
    parameters = sum(tensor.size for tensor in file.tensors.values())
    return Type.F32 if parameters < 1_000_000_000 else Type.F16


def _write_weights(path: Path, file: GgufFile, targets: dict[str, _Target], dtype: Type) -> None:
    """Write a safetensors file a few rows at a time; its library needs the whole model in memory."""
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    end = 0
    for target in targets.values():
        start, end = end, end + int(np.prod(target.shape)) * (4 if dtype == Type.F32 else 2)
        header[target.name] = {
            "dtype": dtype.name,
            "shape": target.shape,
            "data_offsets": [start, end],
        }
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    with path.open("wb") as out:
        out.write(len(packed).to_bytes(8, "little") + packed)
        for name, target in targets.items():
            for values in _rows_of(file, name, target):
                largest = np.finfo(np.float16 if dtype == Type.F16 else np.float32).max
                if not (np.abs(values) <= largest).all():
                    raise ModelError(
                        f"{file.path}: tensor {name} holds values too large for {dtype.name}; "
                        "the file is damaged"
                    )
                out.write(quantize(values, dtype).tobytes())
        out.flush()
        os.fsync(out.fileno())


def _rows_of(file: GgufFile, name: str, target: _Target) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's values in the Hugging Face order, some rows at a time."""
    tensor = file.tensors[name]
    rows = target.shape[0] if target.heads or len(target.shape) > 1 else 1
    raw = tensor.data.reshape(rows, -1)
    order = np.arange(rows)
    if target.heads:
        order = order.reshape(target.heads, -1, 2).swapaxes(1, 2).ravel()
    step = max(1, _CHUNK * rows // tensor.size)
    for start in range(0, rows, step):
        try:
            yield dequantize(raw[order[start : start + step]], tensor.kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{file.path}: tensor {name} is of type {tensor.kind.name}, which cannot be "
                "imported; get the model in another quantization, such as Q8_0 or Q4_K"
            ) from error


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Make a folder to fill, which gets its name only when it is complete, and replaces nothing."""
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(out)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _ids(ids: TokenIds) -> JsonObject:
    return {
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos[0] if len(ids.eos) == 1 else ids.eos or None,
        "pad_token_id": ids.pad,
    }


def _shortest(value: float) -> float:
    """Return the shortest decimal of a float32: GGUF stores 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_json(path: Path, value: JsonObject) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
