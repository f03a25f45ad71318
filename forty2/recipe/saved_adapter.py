"""Adapters to start from, read without mlx: a run's, an mlx-lm folder's or a PEFT folder's.

Rank, layers and keys are read from the names and shapes of the tensors, which a safetensors file
lists at its beginning; the scale is in the folder's configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from forty2.errors import ModelError, RunError
from forty2.files import JsonObject, find_damage, is_number
from forty2.recipe.document import Document, Problem
from forty2.recipe.peft_adapter import CONFIG as CONFIG
from forty2.recipe.peft_adapter import (
    RECORD,
    is_peft,
    read_config,
    read_peft,
    tensor_shapes,
)
from forty2.recipe.tags import BUILT_IN, AddedTags
from forty2.run_paths import expand_run_name, finished_phases, suggest_run

WEIGHTS = "adapters.safetensors"
PHASE_ATTENTION = "phase_attention"
"""Key of the configuration with the settings of phase attention, and the module of its tensors."""
TAG_WEIGHTS = "tags.safetensors"
"""File with the rows of tags. They are none of mlx-lm's tensors of an adapter, so it finds them in none
of its own files."""
TAG_ROWS = "tag_rows"
"""Last part of the names of their tensors."""
TAGS = "tags"
"""Key of adapter_config.json with the tags that the adapter was trained with; other readers of adapters
ignore it."""
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
    tag_rows: Mapping[str, str] = field(default_factory=dict)
    """Names of the tags' rows in their file, where it has others than ours; else empty."""

    @property
    def tag_file(self) -> Path:
        """The file of the tags' rows."""
        return self.weights if self.transposed else self.folder / TAG_WEIGHTS

    def sha256(self) -> str:
        """Hash the weights and the configuration."""
        digest = hashlib.sha256()
        rows = [self.tag_file] if self.tags is not None else []
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


def named_phase(path: str | Path) -> Path:
    """Return the folder of the phase that RUN/NAME names, or the folder that a user's name stands for.

    Raises:
        ModelError: the run has no finished phase of this name.
        RunError: several runs have this name.
    """
    folder = expand_run_name(path)
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
            mlx-lm or PEFT; a run by its folder, its recipe's folder or its name.

    Raises:
        ModelError: there is none, it is damaged, or it is of a kind that cannot be trained on.
    """
    folder = named_phase(path)
    if not folder.exists():
        raise ModelError(f"{path}: no such folder{suggest_run(path)}")
    if folder.is_file():
        raise ModelError(f"{path}: is a file; name the folder that it lies in")
    if not (folder / CONFIG).exists():
        phase = last_phase(folder)
        if phase is None:
            raise ModelError(
                f"{path}: no adapter here ({CONFIG} is missing, and no finished phase)"
                f"{suggest_run(path)}"
            )
        folder = phase
    if (folder / "SHA256SUMS").exists() and (damage := find_damage(folder)):
        raise ModelError(f"{damage}; copy the adapter again, or train it again")
    config = read_config(folder / CONFIG)
    if is_peft(folder, config):
        return _read_peft(folder)
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
    except (ModelError, RunError, OSError) as error:
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
    if not is_number(scale):
        raise ModelError(
            f"{folder / CONFIG}: lora_parameters.scale is missing; add the factor that multiplies "
            "the update (alpha / rank, where a package writes alpha)"
        )
    found = _described(folder, folder / WEIGHTS, float(scale))
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
    return replace(found, tags=_recorded_tags(folder / CONFIG, config))


def _recorded_tags(file: Path, config: JsonObject) -> AddedTags | None:
    try:
        return AddedTags.from_json(config[TAGS]) if config.get(TAGS) is not None else None
    except ValueError as error:
        raise ModelError(f"{file}: {TAGS} is no record of tags; copy the file again") from error


def _read_peft(folder: Path) -> AdapterFile:
    """Describe a PEFT folder that has one rank and one scale, and factors alone."""
    found = read_peft(folder)
    tags = _recorded_tags(folder / RECORD, found.record)
    rows_of_tags = tags is not None and all(
        rows.ids == tuple(range(tags.first, tags.end)) for rows in found.rows.values()
    )
    if found.whole or (found.rows and not rows_of_tags):
        first = next(iter([*found.whole.values(), *(rows.tensor for rows in found.rows.values())]))
        raise ModelError(
            f"{folder}: holds {first}, which is no factor of a layer and cannot be trained on; make it a model "
            "with `forty2 fuse`, and name that as the recipe's model, without init_from"
        )
    # an adapter's rank and scale are one each in a recipe
    for what, values in (
        ("ranks", {one.rank for one in found.layers.values()}),
        ("scales", {one.scale for one in found.layers.values()}),
    ):
        if len(values) > 1:
            raise ModelError(
                f"{folder}: its {what} are {sorted(values)}; only one can be trained on: make it a model "
                "with `forty2 fuse`, and name that as the recipe's model, without init_from"
            )
    tensors: dict[str, str] = {}
    norms: dict[str, str] = {}
    for layer, one in found.layers.items():
        tensors |= {f"{layer}.lora_a": one.a, f"{layer}.lora_b": one.b}
        norms |= {f"{layer}.m": one.norm} if one.norm is not None else {}
    any_layer = next(iter(found.layers.values()))
    blocks, keys = adapted_places(found.layers)
    return AdapterFile(
        type="dora" if norms else "lora",
        folder=folder,
        weights=found.weights,
        tensors=tensors | norms,
        transposed=True,
        rank=any_layer.rank,
        scale=any_layer.scale,
        layers=len(blocks) or None,
        keys=tuple(sorted(keys)),
        tags=tags,
        tag_rows={f"{layer}.{TAG_ROWS}": rows.tensor for layer, rows in found.rows.items()},
    )


def adapted_places(layers: Iterable[str]) -> tuple[set[int], set[str]]:
    """Return the numbers of the blocks that layers are in, and the layers' names there."""
    blocks, keys = set[int](), set[str]()
    for layer in layers:
        block = _BLOCK.fullmatch(layer)
        keys.add(block["key"] if block else layer)
        blocks |= {int(block["number"])} if block else set()
    return blocks, keys


def _described(folder: Path, weights: Path, scale: float) -> AdapterFile:
    """Describe an adapter of mlx-lm by the tensors of its file."""
    tensors: dict[str, str] = {}
    norms: dict[str, str] = {}
    phases: dict[str, str] = {}
    ranks, layers = set[int](), set[str]()
    for name, shape in tensor_shapes(weights).items():
        if is_of_phases(name):
            phases[name] = name
            continue
        found = _OUR_TENSOR.fullmatch(name)
        if found is None:
            raise ModelError(f"{weights}: holds {name}, which is not part of a LoRA adapter")
        layer = found["layer"]
        if found["factor"] is None:
            norms[f"{layer}.m"] = name
            continue
        factor = found["factor"]
        tensors[f"{layer}.lora_{factor}"] = name
        if len(shape) < 2:
            raise ModelError(f"{weights}: {name} has the shape {shape}, which no factor has")
        # Of a mixture of experts the shapes are (experts, rank, in) and (experts, out, rank).
        ranks.add(shape[-2 if (len(shape) == 3) == (factor == "a") else -1])
        layers.add(layer)
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
    blocks, keys = adapted_places(layers)
    return AdapterFile(
        type="dora" if norms else "lora",
        folder=folder,
        weights=weights,
        tensors=tensors | norms | phases,
        transposed=False,
        rank=ranks.pop(),
        scale=scale,
        layers=len(blocks) or None,
        keys=tuple(sorted(keys)),
    )
