"""LoRA and DoRA adapters: attach, save, load. Files are stock mlx-lm's, so its tools read them too.

Only coupled phases are not known there: mlx-lm refuses an adapter with them.
mlx-lm's LoRA layer computes y = Wx + scale · B(Ax): `scale` multiplies the update directly, where
other packages write alpha / rank. Its DoRA layer also trains the norm of each row of the weight.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from forty2.errors import ModelError, first_names, on_one_line
from forty2.files import JsonObject
from forty2.model.adapter_files import (
    LEAVES,
    STOP_TOKENS,
    TAGS,
    check_adapter_tensors,
    phase_settings,
    read_adapter_config,
    recorded_tags,
)
from forty2.model.adapter_keys import check_keys
from forty2.model.chat_template import TemplateSettings
from forty2.model.gradient_checkpointing import keyed_dropout
from forty2.model.merging import merged_weights
from forty2.model.peft_adapter import attach_peft
from forty2.model.phase_attention import attach_phase_attention, without_phase_attention
from forty2.model.replaced import mark_replaced, replaced_names
from forty2.model.tag_rows import (
    is_tag_rows,
    put_tag_rows,
    tag_weights,
    tagged_tables,
    tags_of,
    train_tag_rows,
    without_tag_rows,
)
from forty2.recipe.peft_adapter import BASE_SHA256, is_peft, read_peft
from forty2.recipe.saved_adapter import CONFIG as CONFIG
from forty2.recipe.saved_adapter import (
    PHASE_ATTENTION,
    TAG_ROWS,
    TAG_WEIGHTS,
    is_of_phases,
    last_phase,
    named_phase,
)
from forty2.recipe.saved_adapter import WEIGHTS as WEIGHTS
from forty2.recipe.schema import Adapter
from forty2.recipe.tags import AddedTags
from forty2.run_paths import expand_run_name, suggest_run

UNMERGED = "unmerged.safetensors"
"""File of adapter layers, and of the weights below them where earlier phases have changed these."""
TEMPLATE = "template.json"
"""File in a run folder that records its settings of the chat template."""
_MOST_WASTED = 0.05
"""Largest share of an adapter's parameters that may lie beyond the usable rank without a warning: the
routers of a mixture of experts are small, but so is their share."""


# --- on a model ---


class _SteadyDoRAEmbedding(DoRAEmbedding):  # type: ignore[misc]
    """mlx-lm's layer, with outputs of the embedding's dtype: its fp32 would spread to all blocks."""

    def __call__(self, x: mx.array) -> mx.array:
        output: mx.array = super().__call__(x)
        return output.astype(self.embedding.weight.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        output: mx.array = super().as_linear(x)
        return output.astype(x.dtype)


def attach_adapter(
    model: nn.Module, adapter: Adapter, *, seed: int, tags: AddedTags | None = None
) -> None:
    """Freeze the model and add new adapter layers that do not change its output yet: with B = 0.

    Args:
        tags: tags of the model whose rows are trained, too; None: it has none.

    Raises:
        ModelError: the adapter asks for blocks or layers that the model does not have, or that
            cannot have an adapter.
    """
    blocks = len(model.layers)
    if adapter.layers is not None and adapter.layers > blocks:
        raise ModelError(
            f"adapter.layers: {adapter.layers} are more than the {blocks} blocks of the model"
        )
    check_keys(model, adapter)
    freeze_base(model, tags)
    mx.random.seed(seed)
    config = adapter_config(adapter, model)
    parameters = config["lora_parameters"]
    try:
        linear_to_lora_layers(model, config["num_layers"], parameters, adapter.type == "dora")
        _prepare_layers(model)
        model(mx.array([[0, 0]]))  # lazy: nothing is computed
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ModelError(
            f"adapter.keys: with an adapter on {_adapted_layers(model)} the model does not run "
            f"({on_one_line(error)}); name other layers"
        ) from error
    if not lora_weights(model):
        raise ModelError("adapter.keys: left out, but no block holds a layer that takes LoRA")
    if adapter.phase_attention is not None:
        attach_phase_attention(model, adapter.phase_attention)
    if any(tags_of(layer) is not None for layer in dora_layers(model)):
        raise ModelError(
            "adapter.keys: names a table that holds the rows of tags, which dora cannot be put on; use "
            "lora, or name other layers"
        )


def freeze_base(model: nn.Module, tags: AddedTags | None) -> None:
    """Freeze a base model, but for the rows of its tags, if it has some."""
    model.freeze()
    if tags is not None and tags_of(model) is None:
        train_tag_rows(model, tags)
    for table in tagged_tables(model):
        table.unfreeze(recurse=False, keys=[TAG_ROWS])


def _prepare_layers(model: nn.Module) -> None:
    """Make mlx-lm's new adapter layers exact: dropout with a key, and DoRA's norms in fp32."""
    keyed_dropout(model)
    for module in model.modules():
        if type(module) is DoRAEmbedding:
            module.__class__ = _SteadyDoRAEmbedding
            module.m = mx.linalg.norm(module.embedding.weight.astype(mx.float32), axis=1)


def _adapted_layers(model: nn.Module) -> str:
    """Name the first and the number of the layers that have an adapter."""
    names = [name for name, module in reversed(model.named_modules()) if "lora_a" in module]
    return first_names(names, 1)


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """Return the parameters that training changes, by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def lora_weights(model: nn.Module) -> dict[str, mx.array]:
    """Return those of the trained parameters that mlx-lm knows: all but the rows of tags."""
    return {n: value for n, value in adapter_weights(model).items() if not is_tag_rows(n)}


def kept_weights(model: nn.Module) -> dict[str, mx.array]:
    """Return all that makes the model another than its base, but the rows of tags, by name.

    These are the adapter's parameters, trained or frozen, and the weights that replace the base's.
    """
    layers = {
        f"{name}.{leaf}" for name, m in model.named_modules() if "lora_a" in m for leaf in LEAVES
    }
    own = layers | replaced_names(model)
    return {
        name: value
        for name, value in tree_flatten(model.parameters())
        if name in own or is_of_phases(name)
    }


def wasted_rank(model: nn.Module) -> str | None:
    """Say so if the adapter's rank is above what its layers can use; None: it is not, or hardly.

    The product of the factors (in, rank) and (rank, out) has at most the rank min(in, out).
    """
    found = {name: _factors(m) for name, m in reversed(model.named_modules()) if "lora_a" in m}
    if not found:
        return None
    small = [name for name, one in found.items() if one.rank > one.usable]
    wasted = sum((found[n].rank - found[n].usable) * found[n].sides for n in small)
    share = wasted / sum(one.rank * one.sides for one in found.values())
    if share <= _MOST_WASTED:
        return None
    name = min(small, key=lambda n: found[n].usable)
    more = len(small) - 1
    others = f", {more} more layers no more than theirs" if more else ""
    if more == 1:
        others = ", and one more layer no more than its own"
    advice = ", or name larger layers in adapter.keys" * (len(small) < len(found))
    return (
        f"adapter.rank is {found[name].rank}, but {name} can use no more than {found[name].usable}"
        f"{others}: {share:.0%} of the adapter takes memory and adds nothing; set adapter.rank to "
        f"{found[name].usable} or less{advice}"
    )


class _Factors(NamedTuple):
    """Sizes of an adapter's two factors."""

    inputs: int
    rank: int
    outputs: int

    @property
    def usable(self) -> int:
        return min(self.inputs, self.outputs)

    @property
    def sides(self) -> int:
        return self.inputs + self.outputs


def _factors(layer: nn.Module) -> _Factors:
    """Read the sizes of a layer's factors; those of experts are (experts, rank, in) and (…, out, rank)."""
    a, b = layer.lora_a.shape, layer.lora_b.shape
    if len(a) == 3:
        return _Factors(a[2], a[1], b[1])
    return _Factors(a[0], a[1], b[1])


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Run the model as it was before its adapter; the adapter is back at the end of the block.

    Each adapted layer is replaced by the layer that it wraps: a scale of 0 would leave DoRA's norms.
    Tags have the rows that they began with.
    """
    adapted = [(name, module) for name, module in model.named_modules() if "lora_a" in module]
    wrapped = [(name, m.linear if "linear" in m else m.embedding) for name, m in adapted]
    model.update_modules(tree_unflatten(wrapped))
    try:
        with without_phase_attention(model), without_tag_rows(model):
            yield
    finally:
        model.update_modules(tree_unflatten(adapted))


def has_adapter(model: nn.Module) -> bool:
    """Return whether the model has an adapter that can be left out: layers on an unchanged base."""
    return layer_kind(model) is not None and not replaced_names(model)


def layer_kind(model: nn.Module) -> Literal["lora", "dora"] | None:
    """Return the kind of the model's adapter layers; None: it has none."""
    if dora_layers(model):
        return "dora"
    return "lora" if any("lora_a" in module for module in model.modules()) else None


def dora_layers(model: nn.Module) -> list[nn.Module]:
    """Return the model's DoRA layers."""
    return [m for m in model.modules() if isinstance(m, (DoRALinear, DoRAEmbedding))]


# --- in a folder ---


def adapter_config(adapter: Adapter, model: nn.Module) -> JsonObject:
    """Build mlx-lm's `adapter_config.json` for what a model carries, and what is not mlx-lm's."""
    parameters: JsonObject = {
        "rank": adapter.rank,
        "scale": adapter.scale,
        "dropout": adapter.dropout,
    }
    if adapter.keys is not None:
        parameters["keys"] = list(adapter.keys)
    config: JsonObject = {
        "fine_tune_type": "full" if replaced_names(model) else layer_kind(model) or adapter.type,
        "num_layers": len(model.layers) if adapter.layers is None else adapter.layers,
        "lora_parameters": parameters,
    }
    if adapter.phase_attention is not None:
        config[PHASE_ATTENTION] = asdict(adapter.phase_attention)
    if (tags := tags_of(model)) is not None:
        config[TAGS] = tags.to_json()
    return config


def save_adapter(
    model: nn.Module,
    adapter: Adapter,
    folder: Path,
    *,
    stop_token_ids: Sequence[int] = (),
    trained_only: bool = False,
) -> None:
    """Write the adapter, and the weights that replace the base's, into an existing folder.

    mlx-lm loads either adapter layers or weights. If there are both, the layers are merged into the
    weights, and a second file holds both for `restore_adapter`.

    Args:
        stop_token_ids: ids that ended the turns of its training rows. Whoever loads the adapter, or
            the model that it is merged into, also stops at these.
        trained_only: leave out what is frozen, for `restore_adapter` on a model that has it already.
    """
    weights = lora_weights(model) if trained_only else kept_weights(model)
    if not trained_only and replaced_names(model) and layer_kind(model) is not None:
        mx.save_safetensors(str(folder / UNMERGED), weights)
        weights = merged_weights(model, weights)
    config = adapter_config(adapter, model)
    if stop_token_ids:
        config[STOP_TOKENS] = sorted(set(stop_token_ids))
    write_mlx_adapter(folder, weights, tag_weights(model), config)


def write_mlx_adapter(
    folder: Path,
    weights: dict[str, mx.array],
    tag_rows: dict[str, mx.array],
    config: JsonObject,
) -> None:
    """Write an adapter's files, as mlx-lm reads them, into an existing folder."""
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    if tag_rows:
        mx.save_safetensors(str(folder / TAG_WEIGHTS), tag_rows)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def restore_adapter(model: nn.Module, folder: Path) -> None:
    """Load saved weights into a model that has the adapter layers already."""
    unmerged = folder / UNMERGED
    arrays = load_arrays(unmerged if unmerged.exists() else folder / WEIGHTS)
    if tags_of(model) is not None:
        arrays |= load_arrays(folder / TAG_WEIGHTS)
    model.load_weights(list(arrays.items()), strict=False)


def load_adapter(model: nn.Module, folder: Path, base: Path | None = None) -> None:
    """Put a saved adapter, of mlx-lm's form or PEFT's, on a bare model to use it without further training.

    The model has the adapter's tags already, if it has some (`tags.add_recorded_tags`).

    Args:
        base: the model's folder, which says where its layers are not those of its files; None: they are.

    Raises:
        ModelError: its files are missing or damaged, or made for a model of another shape.
    """
    origin = origin_of(folder)
    if is_peft(folder):
        found = read_peft(folder)
        attach_peft(model, found, load_arrays(found.weights), base, origin)
        return
    config = read_adapter_config(folder)
    kind = config.get("fine_tune_type")
    phases = phase_settings(folder / CONFIG, config)
    try:
        if kind != "full":
            parameters = config["lora_parameters"]
            linear_to_lora_layers(model, config["num_layers"], parameters, kind == "dora")
        for module in dora_layers(model):
            if type(module) is DoRAEmbedding:
                module.__class__ = _SteadyDoRAEmbedding
        if phases is not None:
            attach_phase_attention(model, phases)
        arrays = load_arrays(folder / WEIGHTS)
        check_adapter_tensors(model, arrays, folder, full=kind == "full", origin=origin)
        if kind == "full":
            arrays = _in_own_format(model, arrays)
            mark_replaced(model, arrays)
        model.load_weights(list(arrays.items()), strict=False)
        if (tags := recorded_tags(folder)) is not None:
            file = folder / TAG_WEIGHTS
            put_tag_rows(model, tags, load_arrays(file), file, origin)
    except ModelError:
        raise
    except Exception as error:  # a damaged config makes mlx-lm raise errors of many types
        raise ModelError(
            f"{folder}: the adapter does not fit this model: {on_one_line(error)}{origin}"
        ) from error


def _in_own_format(model: nn.Module, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Convert saved weights to the number format of those that they replace."""
    own = dict(tree_flatten(model.parameters()))
    return {name: value.astype(own[name].dtype) for name, value in arrays.items()}


def adapter_dir(path: str | Path) -> Path:
    """Find the folder of an adapter: the path itself, or a finished phase of a run.

    Args:
        path: an adapter folder; a run, for its last phase; or RUN/NAME for the phase NAME. A run may
            be given by its folder, its recipe's folder or its name.

    Raises:
        ModelError: there is none, or the folder holds a whole model.
    """
    folder = named_phase(path)
    if (folder / CONFIG).exists():
        if not (folder / WEIGHTS).exists() and not is_peft(folder):
            old = (
                "; adapters.npz is of an early mlx-lm" if (folder / "adapters.npz").exists() else ""
            )
            saved = max((file.name for file in folder.glob(f"*_{WEIGHTS}")), default="")
            step = f"; {saved} is of a step of the training: give it this name" if saved else ""
            raise ModelError(f"{folder}: {WEIGHTS} is missing{old or step}")
        return folder
    phase = last_phase(folder)
    if phase is not None:
        return phase
    if (folder / "config.json").exists() and any(folder.glob("model*.safetensors")):
        raise ModelError(f"{folder}: this is a whole model: give it as `model`")
    raise ModelError(
        f"{folder}: no adapter here ({CONFIG} is missing, and no finished phase){suggest_run(folder)}"
    )


class TrainedOn(NamedTuple):
    """The model that an adapter was trained on, from its run's record or PEFT's; None: not recorded."""

    name: str | None
    """Name in the recipe: a folder, a hub name or `smollm2`."""
    path: str | None
    """Folder that it was loaded from; earlier releases recorded it as the recipe names it."""
    sha256: str | None
    """Checksum of its weights and config."""
    from_run: str | None
    """That folder as seen from the run folder."""
    run: Path | None
    """The run folder; None: the adapter is in none."""


def trained_on(adapter: str | Path) -> TrainedOn:
    """Read which model an adapter was trained on.

    Args:
        adapter: a run folder, an adapter folder inside one, or a PEFT folder.
    """
    folder = expand_run_name(adapter).absolute()
    for place in (folder, *folder.parents[:2]):
        try:
            run = json.loads((place / "run.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(run, dict):
            keys = ("model", "model_path", "model_sha256", "model_from_run")
            found = [run.get(key) for key in keys]
            name, path, sha256, from_run = (v if isinstance(v, str) else None for v in found)
            return TrainedOn(name, path, sha256, from_run, place)
    return _named_by_peft(folder)


def _named_by_peft(folder: Path) -> TrainedOn:
    """Read the base model that a PEFT folder names; our export records its checksum, too."""
    name = sha256 = None
    if (folder / CONFIG).exists() and is_peft(folder):
        found = read_peft(folder)
        name = found.config.get("base_model_name_or_path")
        sha256 = found.record.get(BASE_SHA256)
    name, sha256 = (v if isinstance(v, str) and v else None for v in (name, sha256))
    return TrainedOn(name, name, sha256, None, None)


def trained_system(adapter: str | Path) -> str | None:
    """Return the system prompt that a run trained most rows of an adapter's phase with; None: none."""
    try:
        record = json.loads((adapter_dir(adapter) / "phase.json").read_bytes())
    except (OSError, ValueError):
        return None
    system = record.get("system") if isinstance(record, dict) else None
    return system if isinstance(system, str) and system else None


def choose_system(system: str | None, adapter: str | Path | None) -> str | None:
    """Return the system message to answer with: the user's, or else the one that the run trained with.

    Args:
        system: what the user gave; None: nothing; "": no system message.
        adapter: the run's adapter; None: the model has none.
    """
    return trained_system(adapter) if system is None and adapter is not None else system


def origin_of(adapter: Path) -> str:
    """Say which model an adapter was trained on, as the end of a message; "": it is not recorded.

    Adapters of mlx-lm name their model in their configuration.
    """
    name, path, *_ = trained_on(adapter)
    if name is None:
        try:
            config = json.loads((adapter / CONFIG).read_bytes())
        except (OSError, ValueError, RecursionError):
            config = None
        if isinstance(config, dict):
            name = config.get("model")
    if not isinstance(name, str):
        return ""
    return f"; it was trained on {name}" + (f" ({path})" if path not in (None, name) else "")


def recorded_template(adapter: str | Path) -> TemplateSettings | None:
    """Return the settings of the chat template that an adapter's run records; None: it records none.

    Args:
        adapter: a run folder, or an adapter folder inside one.
    """
    folder = expand_run_name(adapter).absolute()
    for place in (folder, *folder.parents[:2]):
        try:
            return TemplateSettings.from_json(json.loads((place / TEMPLATE).read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{place / TEMPLATE}: damaged: {on_one_line(error)}") from error
    return None


def load_arrays(path: Path) -> dict[str, mx.array]:
    """Load the arrays of a safetensors file, by name.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        loaded = mx.load(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    assert isinstance(loaded, dict)
    return loaded
