"""A model as a GGUF file, which llama.cpp, Ollama and LM Studio run.

The gguf package writes the header and quantizes. Tensors are taken from the disk, converted and written
one after another, some rows at a time, so that the model need not fit into the memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUFWriter, LlamaFileType
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_VERSION
from gguf.gguf_writer import WriterState
from gguf.quants import quantize
from numpy.typing import NDArray

from forty2.errors import ModelError
from forty2.export.gguf.architecture import Described, describe_model
from forty2.export.gguf.modelfile import Modelfile, modelfile_of
from forty2.export.gguf.vocabulary import Vocabulary, export_vocabulary, model_name
from forty2.files import atomic_write, check_free_space, refuse_no_file
from forty2.model.adapter import choose_system
from forty2.model.base_model import find_model_and_adapter
from forty2.model.chat_template import TemplateSettings
from forty2.model.gguf.file import Value
from forty2.model.loading import LoadedModel, load, undated_template
from forty2.model.merging import merge_adapter
from forty2.model.quantization import dequantize
from forty2.progress import Progress, bars, draws_bars

TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
"""Types of matrices that can be written, and their numbers in the file."""
_VOCABULARY = ("token_embd.weight", "output.weight")
_FINE_FOR_VOCABULARY = (Type.F32, Type.F16, Type.BF16, Type.Q8_0)
_MAGIC = b"GGUF"
"""Beginning of every GGUF file."""
_CHUNK = 1 << 22
"""Most values that are converted at a time."""


class Exported(NamedTuple):
    """A GGUF file, and what its writer found."""

    path: Path
    type: str
    """One of `TYPES`."""
    architecture: str
    """llama.cpp's name."""
    tensors: int
    vocabulary: Vocabulary
    modelfile: Modelfile | None
    """Ollama's file, if one was written."""
    notes: tuple[str, ...]
    """Changes to the model, and differences of llama.cpp that a user should know."""


@draws_bars
def export_gguf(
    target: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    type: str = "f16",
    ollama: bool = False,
    system: str | None = None,
    replace: bool = False,
    template: TemplateSettings | None = None,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> Exported:
    """Write a model, or the result of a run, as a GGUF file.

    An adapter is merged first, in full precision, and a quantized base is dequantized. The file appears
    whole or not at all.

    Args:
        target: a model, as `load` takes it; or a run folder, RUN/PHASE or an adapter folder.
        out: the file to write.
        adapter: adapter on the model.
        type: one of `TYPES`, for the matrices. Vectors stay F32; with fewer than 8 bits the embeddings
            and the head are Q8_0, and rows that are no multiple of 32 are F16.
        ollama: also write `Modelfile.FILE` for Ollama: both files, or none.
        system: system message in Ollama's file. Default: the one of most rows that the run trained on.
        replace: write over existing files.
        template: settings of the chat template.

    Raises:
        ModelError: llama.cpp would compute or tokenize something else, as far as forty2 knows, or the
            file is there already.
        RunError: the file cannot be written.
    """
    out = Path(out)
    if type not in TYPES:
        raise ModelError(f"type {type!r} cannot be written, only {', '.join(TYPES)}")
    _check_out(out, replace, _MAGIC)
    modelfile_path = out.with_name(f"Modelfile.{out.stem}") if ollama else None
    if modelfile_path is not None:
        _check_out(modelfile_path, replace, b"")
    model, adapter = find_model_and_adapter(target, adapter)
    loaded = load(model, adapter, template=template, trust_remote_code=trust_remote_code, lazy=True)
    loaded, notes = _merged(loaded, adapter is not None)
    described = describe_model(loaded)
    vocabulary = export_vocabulary(
        loaded.tokenizer, described.vocabulary_rows, loaded.stop_token_ids, str(loaded.path)
    )
    tokenizer, name = loaded.tokenizer, Path(target).resolve().name
    values = _values(described, vocabulary, name, type)
    source = undated_template(tokenizer)
    if isinstance(source, str):
        values["tokenizer.chat_template"] = source
    del loaded  # its weights are freed one by one
    plan = _plan(described, Type[type.upper()])
    if coarse := sum(p.kind == Type.F16 != Type[type.upper()] for p in plan.values()):
        notes.append(f"{coarse} tensors are F16: their rows are no multiple of 32")
    modelfile = None
    if modelfile_path is not None:
        system = choose_system(system, adapter)
        adds_bos = bool(values["tokenizer.ggml.add_bos_token"])
        modelfile = modelfile_of(
            tokenizer, vocabulary.stops, adds_bos=adds_bos, gguf=out.name, system=system
        )._replace(path=modelfile_path)
    with _written(modelfile):
        _write(out, values, described, plan, progress)
    return Exported(
        out,
        type,
        described.architecture.name,
        len(plan),
        vocabulary,
        modelfile,
        (*notes, *vocabulary.notes),
    )


@contextlib.contextmanager
def _written(modelfile: Modelfile | None) -> Iterator[None]:
    """Write Ollama's file, which gets its name only if the block, which writes the other, succeeds."""
    if modelfile is None:
        yield
        return
    with atomic_write(modelfile.path) as file:
        file.write(modelfile.text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())  # a full disk shows now
        yield


def _check_out(path: Path, replace: bool, beginning: bytes) -> None:
    """Refuse to write over what is not asked for, or was not made by an export.

    Args:
        beginning: bytes with which a file begins that may be replaced; a model's own weights do not.

    Raises:
        ModelError: there is such a file, or another.
        RunError: it is a folder, a device or a pipe.
    """
    refuse_no_file(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        if file.read(len(beginning)) != beginning:
            raise ModelError(f"{path}: exists and is no GGUF file; name another `out`")
    if not replace:
        raise ModelError(
            f"{path}: exists already; name another `out`, or replace it with `replace=True`"
        )


def _merged(loaded: LoadedModel, adapted: bool) -> tuple[LoadedModel, list[str]]:
    """Merge the adapter and dequantize the base, both when a weight is written; say what was done."""
    notes = []
    if adapted:
        merge_adapter(loaded.model)
        notes.append("the adapter was merged into its base")
    if loaded.quantized:
        bits = loaded.config["quantization"].get("bits", "a few")
        model, config = dequantize(loaded.model, loaded.config)
        loaded = dataclasses.replace(loaded, model=model, config=config)
        notes.append(
            f"the base is quantized to {bits} bits and was dequantized: export the full-precision "
            "model for the best result"
        )
    return loaded, notes


def _values(described: Described, vocabulary: Vocabulary, name: str, type: str) -> dict[str, Value]:
    """Return the metadata of the model and its tokenizer."""
    return {
        "general.type": "model",
        "general.name": model_name(name, vocabulary.stripped),
        "general.file_type": int(TYPES[type]),
        "general.quantization_version": GGML_QUANT_VERSION,
        **described.values,
        **vocabulary.values,
    }


# --- tensors ---


class _Planned(NamedTuple):
    """A tensor of the file."""

    kind: Type
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        values, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // int(values) * int(size)


def _plan(described: Described, kind: Type) -> dict[str, _Planned]:
    """Choose the type of every tensor."""
    plan = {name: _Planned(Type.F32, array.shape) for name, array in described.factors.items()}
    for name, (weight, _) in described.weights.items():
        own = kind if len(weight.shape) > 1 else Type.F32
        if name in _VOCABULARY and own not in _FINE_FOR_VOCABULARY:
            own = Type.Q8_0
        if weight.shape[-1] % GGML_QUANT_SIZES[own][0]:
            own = Type.F16
        plan[name] = _Planned(own, weight.shape)
    return plan


def _write(
    out: Path,
    values: Mapping[str, Value],
    described: Described,
    plan: Mapping[str, _Planned],
    progress: Progress,
) -> None:
    """Write the file; the weights are taken out of `described`."""
    writer = GGUFWriter(None, described.architecture.name)
    for key, value in values.items():
        _add(writer, key, value)
    for name, planned in plan.items():
        writer.add_tensor_info(
            name, planned.shape, np.dtype(np.float32), planned.bytes, raw_dtype=planned.kind
        )
    check_free_space({out: sum(planned.bytes for planned in plan.values())})
    with atomic_write(out) as file:
        writer.fout, writer.state = [file], WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _pad(file)
        for done, (name, planned) in enumerate(plan.items()):
            progress("export", done, len(plan), {})
            for rows in _rows(name, planned, described):
                file.write(quantize(rows, planned.kind).data)
            _pad(file)
            mx.clear_cache()
        progress("export", len(plan), len(plan), {})


def _rows(name: str, planned: _Planned, described: Described) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's values in llama.cpp's order, some rows at a time.

    Raises:
        ModelError: a value is not finite, or too large for the type.
    """
    if name in described.factors:
        yield described.factors[name]
        return
    weight, array = described.weights.pop(name)
    largest = np.finfo(np.float32 if planned.kind in (Type.F32, Type.BF16) else np.float16).max
    matrix = array.reshape(weight.shape[0], -1)
    order = weight.rows_for_gguf(weight.shape[0])
    step = max(1, _CHUNK // matrix.shape[1])
    for start in range(0, len(order), step):
        rows = matrix[mx.array(order[start : start + step])].astype(mx.float32)
        values = np.asarray(rows) + np.float32(weight.offset)
        if not (np.abs(values) <= largest).all():
            reason = "is not finite" if not np.isfinite(values).all() else "is too large for it"
            raise ModelError(
                f"{weight.name}: a value {reason}, so the tensor cannot be written as "
                f"{planned.kind.name}" + ("; take bf16 or f32" if "large" in reason else "")
            )
        yield values if len(weight.shape) > 1 else values.ravel()


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    """Add metadata of the type that llama.cpp expects for a Python type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _pad(file: IO[bytes]) -> None:
    """Fill the file up to where a tensor may begin."""
    file.write(b"\0" * (-file.tell() % GGUF_DEFAULT_ALIGNMENT))
