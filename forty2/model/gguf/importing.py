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

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from forty2.errors import ModelError
from forty2.files import JsonObject
from forty2.model.gguf.architectures import ARCHITECTURES, NUMBERS, Architecture, Weight
from forty2.model.gguf.file import GgufFile
from forty2.model.gguf.rope_scaling import FACTORS, read_rope_scaling, shortest
from forty2.model.gguf.tokenizer import TokenIds, read_tokenizer

_QWEN = ("qwen2", "qwen3")
_REMEDY = "download the file again"
_CHUNK = 1 << 22
"""Most values in memory at a time while weights are written."""


_USED = {
    *NUMBERS,
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scale_linear",
    "vocab_size",
}
"""Metadata of every architecture that the importer reads, besides rope.scaling."""
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


def import_gguf(gguf_path: Path, out: Path) -> Path:
    """Write a GGUF file's model as a folder of safetensors, config and tokenizer.

    Quantized tensors are dequantized, so that the model can be trained and fused in full
    precision. The folder appears whole or not at all, and never replaces one with files in it.

    Args:
        gguf_path: a file of one of `ARCHITECTURES`, with a byte-level BPE tokenizer.
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
    architecture = _architecture(file)
    config = _config(file, architecture)
    tokenizer = read_tokenizer(file, config["max_position_embeddings"])
    targets = _targets(file, config, architecture)
    if tokenizer.size > config["vocab_size"]:
        raise ModelError(
            f"{gguf_path}: {tokenizer.size} tokens, but embeddings for {config['vocab_size']}"
        )
    if architecture.name in _QWEN and tokenizer.rule != "qwen2":
        # transformers gives every such model this rule, whatever tokenizer.json says
        raise ModelError(
            f"{gguf_path}: pre-tokenizer {tokenizer.pre!r} with architecture {architecture.name} "
            "cannot be imported; use the model's safetensors"
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


def _architecture(file: GgufFile) -> Architecture:
    """Find the architecture, and refuse content and metadata that are not imported."""
    kind = file.need("general.architecture", str)
    _check_content(file, kind)
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: architecture {kind!r} cannot be imported, only "
            f"{', '.join(ARCHITECTURES)}; use the model's safetensors"
        )
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path}: tensor token_embd.weight is missing; {_REMEDY}")
    _check_metadata(file, ARCHITECTURES[kind])
    return ARCHITECTURES[kind]


def _config(file: GgufFile, architecture: Architecture) -> JsonObject:
    """Build `config.json`, without token ids and dtype."""
    kind = architecture.name
    defaults = {
        "attention.head_count_kv": file.get(f"{kind}.attention.head_count", int),
        "rope.freq_base": 10000.0,
    }
    config: JsonObject = {
        "model_type": architecture.model_types[0],
        "architectures": [architecture.model_class],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        **architecture.settings,
    }
    for key, number in (NUMBERS | dict(architecture.numbers)).items():
        value = file.get(f"{kind}.{key}", number.kind) or defaults.get(key)
        if value is None and key in NUMBERS:
            value = file.need(f"{kind}.{key}", number.kind)
        if value is not None:
            config[number.name] = shortest(value) if number.kind is float else value
    config |= _head_settings(file, architecture, config)
    if architecture.optional_bias:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    return config | read_rope_scaling(file, architecture, config)


def _head_settings(file: GgufFile, architecture: Architecture, config: JsonObject) -> JsonObject:
    """Return the settings of `config.json` that follow from the heads' size."""
    kind, hidden = architecture.name, config["hidden_size"]
    heads = config["num_attention_heads"]
    head = file.get(f"{kind}.attention.key_length", int) or hidden // max(heads, 1)
    rotated = file.get(f"{kind}.rope.dimension_count", int) or head
    if heads < 1 or head < 2 or head % 2:
        raise ModelError(f"{file.path}: {heads} heads of {head} are impossible; {_REMEDY}")
    for key in ("attention.value_length", "rope.dimension_count"):
        if key == "rope.dimension_count" and architecture.partly_rotated:
            continue
        if (file.get(f"{kind}.{key}", int) or head) != head:
            raise ModelError(
                f"{file.path}: {kind}.{key} is not the head size {head}, which no importable model has"
            )
    if not architecture.own_head_size and head * heads != hidden:
        raise ModelError(f"{file.path}: {heads} heads of {head} do not add up to width {hidden}")
    settings: JsonObject = {"head_dim": head} if architecture.own_head_size else {}
    if architecture.partly_rotated:
        settings["partial_rotary_factor"] = rotated / head
    scalar = architecture.query_scalar(config | {"head_dim": head})
    return settings if scalar is None else settings | {"query_pre_attn_scalar": scalar}


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


def _check_metadata(file: GgufFile, architecture: Architecture) -> None:
    """Refuse metadata that may change the computation and that the importer does not use."""
    kind = architecture.name
    context = file.need(f"{kind}.context_length", int)
    for key in sorted(file.keys(f"{kind}.") - _USED - architecture.numbers.keys()):
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


def _targets(file: GgufFile, config: JsonObject, architecture: Architecture) -> dict[str, Weight]:
    """List every tensor that the model needs, by its GGUF name.

    Raises:
        ModelError: a tensor is missing, has another shape, or is unknown.
    """
    targets = {}
    for name, weight in architecture.weights(config):
        if name not in file.tensors:
            raise ModelError(f"{file.path}: tensor {name} is missing; {_REMEDY}")
        if (found := file.tensors[name].shape) != weight.shape:
            raise ModelError(
                f"{file.path}: tensor {name} is {found}, not {weight.shape}; {_REMEDY}"
            )
        targets[name] = weight
    if more := sorted(file.tensors.keys() - targets.keys() - FACTORS):
        raise ModelError(
            f"{file.path}: tensor {more[0]} is unknown in architecture {architecture.name}, "
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


def _write_weights(path: Path, file: GgufFile, targets: dict[str, Weight], dtype: Type) -> None:
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


def _rows_of(file: GgufFile, name: str, target: Weight) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's values in the Hugging Face order, some rows at a time."""
    tensor = file.tensors[name]
    rows = target.shape[0] if target.heads or len(target.shape) > 1 else 1
    raw = tensor.data.reshape(rows, -1)
    order = target.rows_from_gguf(rows)
    step = max(1, _CHUNK * rows // tensor.size)
    for start in range(0, rows, step):
        try:
            values = dequantize(raw[order[start : start + step]], tensor.kind)
            yield values - np.float32(target.offset) if target.offset else values
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


def _write_json(path: Path, value: JsonObject) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
