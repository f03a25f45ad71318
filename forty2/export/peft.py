"""An adapter as a folder of PEFT, and one of PEFT as a folder of mlx-lm. No number is rounded.

mlx-lm multiplies an update by `scale`, PEFT by alpha / rank; mlx-lm's factors are PEFT's transposed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from forty2.errors import ModelError, on_one_line
from forty2.export.card import MARK
from forty2.export.origin import RUN, STAGE
from forty2.files import JsonObject, check_free_space, staged_folder, write_json, write_text
from forty2.model.adapter import (
    TEMPLATE,
    adapter_dir,
    load_arrays,
    recorded_template,
    trained_on,
    trained_system,
    write_mlx_adapter,
)
from forty2.model.adapter_files import STOP_TOKENS, TAGS, phase_settings, read_adapter_config
from forty2.model.base_model import find_base_model
from forty2.model.configuration import read_config
from forty2.model.loading import LoadedModel, load, model_sha256, save_tokenizer
from forty2.model.peft_tensors import HEAD, PeftLayer, mlx_tensors, peft_layers, peft_rows
from forty2.model.source_layers import SourceLayers, source_layers
from forty2.model.starter import STARTER
from forty2.model.surgery import has_tied_head
from forty2.progress import Progress, bars, draws_bars
from forty2.recipe.peft_adapter import (
    BASE_SHA256,
    CONFIG,
    PEFT_WEIGHTS,
    PREFIX,
    RECORD,
    PeftAdapter,
    is_peft,
    is_target,
    read_peft,
)
from forty2.recipe.saved_adapter import TAG_ROWS, TAG_WEIGHTS, adapted_places, read_adapter_file

_MLX_CONFIG = "adapter_config"
"""Key of the record: the configuration that mlx-lm's form of the adapter had."""
_BLOCK = re.compile(r"(?P<before>.+?)\.(?P<number>\d+)\.(?P<key>.+)")
_STEPS = 2


class ExportedPeft(NamedTuple):
    """A folder of PEFT, and what its writer found."""

    path: Path
    base: str
    """Name of the base in the folder: of the hub, or a folder of this machine."""
    layers: int
    rank: int
    alpha: float
    notes: tuple[str, ...]
    """Warnings for the user about the exported folder."""


@draws_bars
def export_peft(
    target: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    replace: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> ExportedPeft:
    """Write an adapter as a folder that PEFT loads; its logits are the same.

    The folder appears whole or not at all.

    Args:
        target: a run folder (its last phase), RUN/PHASE or an adapter folder of mlx-lm.
        out: the folder to write.
        model: the base, as `load` takes it; the folder names it as its base. Default: the recorded one.
        replace: write over a folder of PEFT.

    Raises:
        ModelError: PEFT has no adapter that computes the same, or `out` holds something.
        RunError: the folder cannot be written.
    """
    out, folder = Path(out), adapter_dir(target)
    _check_out(out, folder, replace)
    _check_kind(folder)
    name = _base_of(target, model)
    progress("export", 0, _STEPS, {})
    loaded = load(name, folder, trust_remote_code=trust_remote_code, lazy=True)
    if loaded.quantized:
        raise ModelError(
            f"{loaded.path}: is quantized by mlx, which transformers cannot load as PEFT's base; merge the "
            "adapter into it (forty2 fuse), which dequantizes it, and share that model"
        )
    sources = source_layers(loaded.model, loaded.path)
    layers = peft_layers(loaded.model, sources)
    arrays = {n: v for layer, one in layers.items() for n, v in one.tensors(layer).items()}
    rows = _rows(folder, loaded, sources)
    for layer, value in rows.items():
        arrays[f"{PREFIX}{layer}.token_adapter.trainable_tokens_delta"] = value
    before = read_adapter_config(folder)
    base = str(loaded.path.absolute()) if _is_local(name) else name
    config = _config(base, layers, rows, loaded, sources, before)
    record: JsonObject = {
        "forty2": version("forty2"),
        BASE_SHA256: model_sha256(loaded.path),
        _MLX_CONFIG: before,
    }
    record |= {key: before[key] for key in (STOP_TOKENS, TAGS) if key in before}
    run = trained_on(folder).run
    if run is not None:  # stays on this machine: `push` makes the card from it, and leaves it out
        record |= {RUN: str(run), STAGE: folder.name}
    template = recorded_template(folder)
    notes = _notes(base, loaded, layers, bool(rows))
    progress("export", 1, _STEPS, {})
    check_free_space({out: sum(array.nbytes for array in arrays.values())})
    with staged_folder(out) as unfinished:
        mx.save_safetensors(str(unfinished / PEFT_WEIGHTS), arrays, {"format": "pt"})
        write_json(unfinished / CONFIG, config)
        write_json(unfinished / RECORD, record)
        if template is not None:
            write_json(unfinished / TEMPLATE, template.to_json())
        save_tokenizer(loaded, unfinished)
        card = _card(out.name, base, config, record, loaded, len(layers), trained_system(folder))
        write_text(unfinished / "README.md", card)
    progress("export", 2, _STEPS, {})
    return ExportedPeft(out, base, len(layers), config["r"], config["lora_alpha"], notes)


# --- checks ---


def _base_of(adapter: str | Path, model: str | None) -> str:
    """Return the base of an adapter: the one given, or the recorded one."""
    name = model if model is not None else find_base_model(adapter)
    if name is None:
        raise ModelError(f"{adapter}: does not record which model it is for; give it as `model`")
    return name


def _check_out(out: Path, source: Path, replace: bool) -> None:
    """Refuse to write over a folder that is not asked for, or holds something else.

    A folder of a run is never replaced: its phases are sealed and recorded.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ModelError(f"{out}: is a file; name another `out`")
    if not any(out.iterdir()):
        return
    if (
        not (out / CONFIG).exists()
        or (out / "SHA256SUMS").exists()
        or source.resolve().is_relative_to(out.resolve())
    ):
        raise ModelError(f"{out}: exists and holds something else; name another `out`")
    if not replace:
        raise ModelError(
            f"{out}: exists already; name another `out`, or replace it with `replace=True`"
        )


def _check_kind(folder: Path) -> None:
    """Refuse adapters that PEFT has no form for."""
    if is_peft(folder):
        raise ModelError(f"{folder}: is an adapter of PEFT already; copy the folder")
    config = read_adapter_config(folder)
    remedy = "merge it into its base (forty2 fuse), and share that model"
    if config.get("fine_tune_type") == "full":
        raise ModelError(f"{folder}: trains whole weights, not factors; {remedy}")
    if phase_settings(folder / CONFIG, config) is not None:
        raise ModelError(
            f"{folder}: has phase attention, which PEFT does not know; train one without "
            "adapter.phase_attention"
        )


def _is_local(name: str) -> bool:
    return name == STARTER or os.path.isdir(os.path.expanduser(name))


def _rows(folder: Path, loaded: LoadedModel, sources: SourceLayers) -> dict[str, mx.array]:
    """Return the trained rows of tags by PEFT's layer; empty: there are no tags.

    Raises:
        ModelError: the base's tables lack the rows, so PEFT could not load them onto it.
    """
    tags = loaded.tags
    if tags is None:
        return {}
    config = read_config(loaded.path)
    there = config.get("vocab_size", config.get("text_config", {}).get("vocab_size", 0))
    if tags.rows != there:
        raise ModelError(
            f"{folder}: its tags need {tags.rows:,} rows, and the base's tables have {there:,}, so PEFT "
            "could not load it onto the base; merge it into its base (forty2 fuse), and share that model"
        )
    return peft_rows(load_arrays(folder / TAG_WEIGHTS), sources)


def _notes(
    base: str, loaded: LoadedModel, layers: Mapping[str, PeftLayer], rows: bool
) -> tuple[str, ...]:
    notes = []
    if os.path.isabs(base):
        notes.append(
            f"the base is a folder of this machine ({base}): name the hub's model with `model` before you "
            "share the adapter"
        )
    if HEAD in layers and has_tied_head(loaded.model):
        notes.append(
            "the table of embeddings is the head, too; PEFT adapts both and cannot merge such an adapter: "
            "use it unmerged, or `forty2 fuse`"
        )
    if rows:
        notes.append("the tokenizer of the folder has the tags: load it from there")
    return tuple(notes)


# --- the configuration ---


def _config(
    base: str,
    layers: Mapping[str, PeftLayer],
    rows: Mapping[str, mx.array],
    loaded: LoadedModel,
    sources: SourceLayers,
    before: JsonObject,
) -> JsonObject:
    """Build PEFT's configuration."""
    ranks = {layer: one.a.shape[0] for layer, one in layers.items()}
    rank = min(ranks.values())
    alphas = {layer: exact_alpha(one.scale, ranks[layer]) for layer, one in layers.items()}
    alpha = next(alphas[layer] for layer in layers if ranks[layer] == rank)
    known = {part.source for parts in sources.parts.values() for part in parts}
    known |= sources.unknown | layers.keys()
    targets, blocks = _targets(layers, known)
    ids = list(range(loaded.tags.first, loaded.tags.end)) if loaded.tags is not None else []
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": before["lora_parameters"]["dropout"],
        "use_dora": any(one.norm is not None for one in layers.values()),
        "use_rslora": False,
        "target_modules": targets,
        "layers_to_transform": blocks,
        "layers_pattern": None,
        "rank_pattern": {re.escape(n): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(n): a for n, a in alphas.items() if a != alpha},
        "modules_to_save": None,
        "trainable_token_indices": dict.fromkeys(rows, ids) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def exact_alpha(scale: float, rank: int) -> float:
    """Return the alpha for which alpha / rank is a scale: a whole number where there is one.

    Raises:
        ModelError: no number gives the scale, also in the 32 bits that both sides compute with.
    """
    product = scale * rank
    if not 0 < product < math.inf:
        raise ModelError(f"scale is {scale!r}, and PEFT's alpha / rank is a number above 0")
    near = [round(product), product, math.nextafter(product, 0), math.nextafter(product, math.inf)]
    for alpha in near:
        if alpha / rank == scale:
            return int(alpha) if float(alpha).is_integer() else alpha
    for alpha in near[1:]:
        if np.float32(alpha / rank) == np.float32(scale):
            return alpha
    raise ModelError(
        f"scale {scale!r} cannot be written as alpha / {rank}; train with another rank"
    )


def _targets(layers: Iterable[str], known: Iterable[str]) -> tuple[list[str], list[int] | None]:
    """Name layers as PEFT does: by their last names, in some blocks or all; else each in full.

    Args:
        known: all layers of the model, of which short names must not fit others.

    Returns:
        `target_modules` and `layers_to_transform`.
    """
    wanted = set(layers)
    short = sorted({layer.rpartition(".")[2] for layer in wanted})
    places = [_BLOCK.fullmatch(layer) for layer in wanted]
    blocks = sorted({int(place["number"]) for place in places if place is not None})
    for numbers in (None, blocks):
        config = {"target_modules": short, "layers_to_transform": numbers}
        if {layer for layer in known if is_target(config, layer)} == wanted:
            return short, numbers
    return sorted(wanted), None


# --- the card ---


def _card(
    name: str,
    base: str,
    config: JsonObject,
    record: JsonObject,
    loaded: LoadedModel,
    layers: int,
    system: str | None,
) -> str:
    """Write the folder's README: what it is, of what base, and how to load it."""
    local = os.path.isabs(base)
    front = ["library_name: peft", "pipeline_tag: text-generation", "tags: [lora, forty2]"]
    if not local:
        front.insert(0, f"base_model: {json.dumps(base)}")
    kind = "DoRA" if config["use_dora"] else "LoRA"
    title = " ".join(name.split()) or "adapter"
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {title}",
        "",
        f"A {kind} adapter in PEFT's form: rank {config['r']}, alpha {config['lora_alpha']:g}, on {layers} "
        "layers.",
        f"Made by forty2 {record['forty2']} from an adapter of mlx-lm's form. No number was rounded.",
        "",
        "| | |",
        "|---|---|",
        f"| base | `{_in_cell(base)}` |",
        f"| checksum of its weights and config (sha256) | `{record[BASE_SHA256]}` |",
    ]
    if STOP_TOKENS in record:
        tokens = loaded.tokenizer.convert_ids_to_tokens(record[STOP_TOKENS])
        lines.append(f"| a reply ends at | {', '.join(f'`{_in_cell(str(t))}`' for t in tokens)} |")
    if system is not None:
        lines.append(f"| system message of most of its training rows | `{_in_cell(system)}` |")
    if loaded.tags is not None:
        lines.append(f"| tags | {', '.join(f'`{_in_cell(t)}`' for t in loaded.tags.tokens)} |")
    lines += [
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base!r})",
        'model = PeftModel.from_pretrained(base, "this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("this/folder")',
        "```",
        "",
        MARK,
        "",
    ]
    return "\n".join(lines)


def _in_cell(text: str) -> str:
    """Make a text fit for code in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


# --- to mlx-lm ---


class ExportedMlx(NamedTuple):
    """A folder of mlx-lm, made of one of PEFT."""

    path: Path
    layers: int
    rank: int
    scale: float


@draws_bars
def export_mlx(
    adapter: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    replace: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> ExportedMlx:
    """Write an adapter of PEFT as a folder of mlx-lm; one that `export_peft` wrote comes back byte for byte.

    Args:
        adapter: a folder of PEFT.
        out: the folder to write.
        model: the base, as `load` takes it. Default: the one that the folder names.
        replace: write over an adapter folder.

    Raises:
        ModelError: mlx-lm's form cannot hold it, or `out` holds something.
        RunError: the folder cannot be written.
    """
    out, folder = Path(out), adapter_dir(adapter)
    if not is_peft(folder):
        raise ModelError(f"{folder}: has mlx-lm's form already; copy the folder")
    _check_out(out, folder, replace)
    name = _base_of(adapter, model)
    found = read_peft(folder)
    file = read_adapter_file(str(folder))  # refuses what mlx-lm's form cannot hold
    progress("export", 0, _STEPS, {})
    loaded = load(name, folder, trust_remote_code=trust_remote_code, lazy=True)
    arrays, rank, scale = mlx_tensors(loaded.model)
    config = _mlx_config(found, file.type, arrays, rank, scale)
    template = recorded_template(folder)
    stored = load_arrays(file.tag_file) if file.tag_rows else {}
    order = [name for name, _ in loaded.model.named_modules()][::-1]  # as in training
    rows = {
        f"{layer}.{TAG_ROWS}": stored[file.tag_rows[f"{layer}.{TAG_ROWS}"]]
        for layer in order
        if f"{layer}.{TAG_ROWS}" in file.tag_rows
    }
    progress("export", 1, _STEPS, {})
    with staged_folder(out) as unfinished:
        write_mlx_adapter(unfinished, arrays, rows, config)
        if template is not None:
            write_json(unfinished / TEMPLATE, template.to_json())
        try:
            load(name, unfinished, trust_remote_code=trust_remote_code, lazy=True)
        except ModelError as error:
            reason = on_one_line(error).replace(str(unfinished), str(out))
            raise ModelError(
                f"{folder}: mlx-lm's form can only name the same layers in each of the last blocks, and this "
                f"adapter has others ({reason}); use the PEFT folder, or `forty2 fuse`"
            ) from error
    progress("export", 2, _STEPS, {})
    return ExportedMlx(out, len({tensor.rpartition(".")[0] for tensor in arrays}), rank, scale)


def _mlx_config(
    found: PeftAdapter, kind: str, arrays: Iterable[str], rank: int, scale: float
) -> JsonObject:
    """Return mlx-lm's configuration: the recorded one, if the tensors agree with it."""
    recorded: JsonObject = found.record.get(_MLX_CONFIG) or {}
    match recorded:  # the folder may have been edited since
        case {
            "fine_tune_type": str(type_),
            "lora_parameters": {"rank": int(r), "scale": int(s) | float(s)},
        }:
            if (type_, r) == (kind, rank) and np.float32(s) == np.float32(scale):
                return recorded
    blocks, keys = adapted_places({tensor.rpartition(".")[0] for tensor in arrays})
    parameters = {"rank": rank, "scale": scale, "dropout": found.dropout, "keys": sorted(keys)}
    config = {"fine_tune_type": kind, "num_layers": len(blocks), "lora_parameters": parameters}
    return config | {key: found.record[key] for key in (STOP_TOKENS, TAGS) if key in found.record}
