"""Adapters to start from, read without mlx: a run's, an mlx-lm folder's or a PEFT folder's.

Rank, layers and keys are read from the names and shapes of the tensors, which a safetensors file
lists at its beginning; the scale is in the folder's configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeGuard

from forty2.errors import ModelError
from forty2.files import JsonObject, find_damage
from forty2.recipe.document import Document, Problem
from forty2.recipe.tags import BUILT_IN, AddedTags
from forty2.run_paths import finished_phases

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
PHASE_ATTENTION = "phase_attention"
"""Key of the configuration with the settings of phase attention, and the module of its tensors."""
TAG_WEIGHTS = "tags.safetensors"
"""File with the rows of tags. They are none of mlx-lm's tensors of an adapter, so it finds them in none
of its own files."""
TAGS = "tags"
"""Key of adapter_config.json with the tags that the adapter was trained with; other readers of adapters
ignore it."""
PEFT_WEIGHTS = "adapter_model.safetensors"
_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors allows no more."""
_PEFT_PLAIN: Mapping[str, tuple[object, ...]] = {
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
"""Values of PEFT's keys under which an adapter is A and B alone, on an unchanged base."""
_PEFT_UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "use_qalora",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
)
"""PEFT's keys that ask for more than A and B, unless they are empty."""
_PEFT_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?:embedding_)?(?P<factor>[AB])"
    r"(?:\.default)?(?:\.weight)?"
)
_OUR_TENSOR = re.compile(r"(?P<layer>.+)\.(?:lora_(?P<factor>[ab])|(?P<norm>m))")
"""A factor, or the norms of a weight's rows that DoRA trains too."""
_BLOCK = re.compile(r"(?P<before>.+?)\.(?P<number>\d+)\.(?P<key>.+)")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter on disk, and its shape in a recipe's words."""

    type: Literal["lora", "dora"]
    folder: Path
    weights: Path
    """File of its tensors."""
    tensors: Mapping[str, str]
    """Names of the tensors in the file, by their names in mlx-lm."""
    transposed: bool
    """Whether the factors are (rank, in) and (out, rank), as PEFT stores them."""
    rank: int
    scale: float
    layers: int | None
    """Number of blocks that it adapts; None: it adapts only what is outside of them."""
    keys: tuple[str, ...]
    """Names of the layers that it adapts: within a block, or in full outside of blocks."""
    phase_attention: JsonObject | None = None
    """Settings of its phase attention; None: it has none."""
    tags: AddedTags | None = None
    """Tags that it was trained with; None: it has none."""

    def sha256(self) -> str:
        """Hash the weights and the configuration."""
        digest = hashlib.sha256()
        rows = [self.folder / TAG_WEIGHTS] if self.tags is not None else []
        for file in (self.weights, self.folder / CONFIG, *rows):
            with file.open("rb") as data:
                digest.update(hashlib.file_digest(data, "sha256").digest())
        return digest.hexdigest()

    def __str__(self) -> str:
        blocks = f"{self.layers or 0} block{'s' * (self.layers != 1)}"
        return f"{self.folder} (rank {self.rank}, scale {self.scale:g}, {blocks})"


def is_of_phases(tensor: str) -> bool:
    """Return whether a tensor of this name is part of phase attention."""
    return tensor.split(".")[-2:-1] == [PHASE_ATTENTION]


def last_phase(run: Path) -> Path | None:
    """Return the folder of a run's last finished phase; None: it has none, or is no run."""
    return next(reversed(finished_phases(run, CONFIG)), None)


def named_phase(folder: Path) -> Path:
    """Return the folder of the phase that RUN/NAME names, or the folder itself.

    Raises:
        ModelError: the run has no finished phase of this name.
    """
    if folder.exists() or not (folder.parent / "run.json").exists():
        return folder
    names = {name: phase for phase, name in finished_phases(folder.parent, CONFIG).items()}
    if folder.name not in names:
        there = ", ".join(names) or "none"
        raise ModelError(f"{folder}: no finished phase of this name; the run has {there}")
    return names[folder.name]


def read_adapter_file(path: str) -> AdapterFile:
    """Read the shape of an adapter.

    Args:
        path: a run (its last finished phase), RUN/NAME for its phase NAME, or an adapter folder of
            mlx-lm or PEFT.

    Raises:
        ModelError: there is none, it is damaged, or it is of a kind that cannot be trained on.
    """
    folder = named_phase(Path(os.path.expanduser(path)))
    if not folder.exists():
        raise ModelError(f"{path}: no such folder")
    if folder.is_file():
        raise ModelError(f"{path}: is a file; name the folder that it lies in")
    if not (folder / CONFIG).exists():
        phase = last_phase(folder)
        if phase is None:
            raise ModelError(
                f"{path}: no adapter here ({CONFIG} is missing, and no finished phase)"
            )
        folder = phase
    if (folder / "SHA256SUMS").exists() and (damage := find_damage(folder)):
        raise ModelError(f"{damage}; copy the adapter again, or train it again")
    config = _read_config(folder / CONFIG)
    if "peft_type" in config or "lora_alpha" in config:
        return _read_peft(folder, config)
    return _read_mlx(folder, config)


def take_shape(document: Document) -> list[Problem]:
    """Fill in, in place, what a recipe's adapter section leaves to the adapter of `init_from`.

    Returns:
        What is wrong with that adapter, and keys of the section that it contradicts.
    """
    path, section = document.tree.get("init_from"), document.tree.get("adapter")
    if not isinstance(path, str) or not isinstance(section, dict | None):
        return []  # reported as a value of another type
    try:
        adapter = read_adapter_file(path)
    except (ModelError, OSError) as error:
        return [document.problem(("init_from",), str(error))]
    shape: JsonObject = {
        "type": adapter.type,
        "rank": adapter.rank,
        "scale": adapter.scale,
        "layers": adapter.layers,
        "keys": list(adapter.keys),
    }
    if adapter.phase_attention is not None:  # where it has none, a new one may be added
        shape[PHASE_ATTENTION] = adapter.phase_attention
    section = document.tree["adapter"] = dict(section or {})
    problems = []
    for key, value in shape.items():
        given = section.get(key)
        if given is None or (_agree(given, value) and isinstance(value, dict)):
            section[key] = value
        elif not _agree(given, value):
            message = f"is {given}, but {adapter.folder} has {value}; remove the key to take that"
            problems.append(document.problem(("adapter", key), message))
    if adapter.tags is not None:
        problems += _take_tags(document, adapter.folder, adapter.tags)
    return problems


def _take_tags(document: Document, folder: Path, tags: AddedTags) -> list[Problem]:
    """Give a recipe the tags of the adapter of `init_from`; return what it contradicts."""
    given = document.tree.get("tags")
    if given is None:
        document.tree["tags"] = list(tags.tokens)
        return []
    named = BUILT_IN.get(given, ()) if isinstance(given, str) else given
    if not isinstance(named, list | Mapping) or tuple(named) == tags.tokens:
        return []  # a value of another type is reported as such
    message = f"are others than those of {folder} ({', '.join(tags.tokens)}); remove the key to take those"
    return [document.problem(("tags",), message)]


def _agree(given: object, value: object) -> bool:
    if isinstance(given, list) and isinstance(value, list):
        return set(map(str, given)) == set(value)
    if isinstance(given, dict) and isinstance(value, dict):
        return all(key in value and _agree(one, value[key]) for key, one in given.items())
    if isinstance(given, int | float) and isinstance(value, float):
        return math.isclose(given, value, rel_tol=1e-6)
    return given == value


def _read_config(file: Path) -> JsonObject:
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: holds no adapter's configuration")
    return config


def _read_mlx(folder: Path, config: JsonObject) -> AdapterFile:
    kind = config.get("fine_tune_type", "lora")
    if kind == "full":
        raise ModelError(
            f"{folder}: replaces weights of its base, so it cannot be trained on as an adapter; fuse it "
            "(forty2 fuse), and name the fused model as the recipe's model, without init_from"
        )
    if kind not in ("lora", "dora"):
        raise ModelError(
            f"{folder / CONFIG}: fine_tune_type is {kind}; only lora and dora can be trained on"
        )
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if not _is_number(scale):
        raise ModelError(
            f"{folder / CONFIG}: lora_parameters.scale is missing; add the factor that multiplies "
            "the update (alpha / rank, where a package writes alpha)"
        )
    found = _described(folder, folder / WEIGHTS, _OUR_TENSOR, float(scale))
    phases = config.get(PHASE_ATTENTION)
    if bool(phases) != any(map(is_of_phases, found.tensors)):
        raise ModelError(
            f"{folder / CONFIG}: {PHASE_ATTENTION} is {json.dumps(phases)}, and the tensors do not "
            "agree with that; copy both files again"
        )
    found = dataclasses.replace(found, phase_attention=phases)
    if (kind == "dora") != (found.type == "dora"):
        raise ModelError(
            f"{folder / CONFIG}: fine_tune_type is {kind}, but the tensors are those of {found.type}; "
            "copy both files again"
        )
    if config.get(TAGS) is None:
        return found
    try:
        return replace(found, tags=AddedTags.from_json(config[TAGS]))
    except ValueError as error:
        raise ModelError(
            f"{folder / CONFIG}: {TAGS} is no record of tags; copy the file again"
        ) from error


def _read_peft(folder: Path, config: JsonObject) -> AdapterFile:
    file = folder / CONFIG
    if config.get("peft_type", "LORA") != "LORA":
        raise ModelError(f"{file}: peft_type is {config['peft_type']}; only LORA can be trained on")
    asked = [key for key in _PEFT_UNSUPPORTED if config.get(key)]
    asked += [key for key, plain in _PEFT_PLAIN.items() if config.get(key) not in plain]
    if asked:
        values = ", ".join(f"{key} ({json.dumps(config[key])})" for key in asked)
        raise ModelError(
            f"{file}: asks for {values[:200]}, which forty2 cannot train on; merge the adapter into "
            "its base with PEFT, and name the merged model as the recipe's model"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (_is_number(rank) and _is_number(alpha) and rank >= 1 and alpha > 0):
        raise ModelError(
            f"{file}: r or lora_alpha is missing, or no number above 0; copy the file from the adapter"
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not (folder / PEFT_WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise ModelError(
            f"{folder / 'adapter_model.bin'}: a pickle may run code, so it is not read; save the "
            "adapter as safetensors with PEFT"
        )
    found = _described(folder, folder / PEFT_WEIGHTS, _PEFT_TENSOR, scale)
    if found.rank != rank:
        raise ModelError(
            f"{file}: r is {rank}, but the tensors have rank {found.rank}; copy both files again"
        )
    return found


def _described(folder: Path, weights: Path, pattern: re.Pattern[str], scale: float) -> AdapterFile:
    """Describe an adapter by the tensors of its file, whose names the pattern takes apart."""
    tensors: dict[str, str] = {}
    norms: dict[str, str] = {}
    phases: dict[str, str] = {}
    ranks, blocks, keys = set[int](), set[int](), set[str]()
    transposed = pattern is _PEFT_TENSOR
    for name, shape in _shapes(weights).items():
        if is_of_phases(name):
            phases[name] = name
            continue
        found = pattern.fullmatch(name)
        if found is None:
            raise ModelError(f"{weights}: holds {name}, which is not part of a LoRA adapter")
        layer = found["layer"]
        if found["factor"] is None:
            norms[f"{layer}.m"] = name
            continue
        factor = found["factor"].lower()
        tensors[f"{layer}.lora_{factor}"] = name
        if len(shape) < 2:
            raise ModelError(f"{weights}: {name} has the shape {shape}, which no factor has")
        # Of a mixture of experts the shapes are (experts, rank, in) and (experts, out, rank).
        first = transposed or len(shape) == 3
        ranks.add(shape[(-2 if first else -1) if factor == "a" else (-1 if first else -2)])
        block = _BLOCK.fullmatch(layer)
        keys.add(block["key"] if block else layer)
        blocks |= {int(block["number"])} if block else set()
    missing = [n for n in tensors if f"{n[:-1]}{'b' if n.endswith('a') else 'a'}" not in tensors]
    if missing or not tensors:
        what = f"{missing[0]} is there without its other factor" if missing else "holds no tensor"
        raise ModelError(f"{weights}: {what}; copy the file again")
    if len(ranks) > 1:
        raise ModelError(
            f"{weights}: its ranks are {sorted(ranks)}; only one rank can be trained on"
        )
    if norms and len(norms) != len(tensors) / 2:
        raise ModelError(
            f"{weights}: some layers have DoRA's norms, others not; copy the file again"
        )
    return AdapterFile(
        type="dora" if norms else "lora",
        folder=folder,
        weights=weights,
        tensors=tensors | norms | phases,
        transposed=transposed,
        rank=ranks.pop(),
        scale=scale,
        layers=len(blocks) or None,
        keys=tuple(sorted(keys)),
    )


def _shapes(file: Path) -> dict[str, list[int]]:
    """Read the shape of every tensor from the beginning of a safetensors file."""
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                raise ValueError
            header = json.loads(data.read(length))
            end = data.seek(0, os.SEEK_END)
        header.pop("__metadata__", None)
        shapes = {str(name): [int(n) for n in one["shape"]] for name, one in header.items()}
        ends = [8 + length + int(one["data_offsets"][1]) for one in header.values()]
        if max(ends, default=end) > end or not all(shapes.values()):
            raise ValueError
    except FileNotFoundError as error:
        raise ModelError(f"{file} is missing; copy it from the adapter") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: damaged or not complete; copy it again") from error
    return shapes


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
