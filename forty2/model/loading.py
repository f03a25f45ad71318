"""Loading of any model that mlx-lm loads, by folder, hub name or the starter's nickname."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.tokenizer_utils import TokenizerWrapper

from forty2.errors import ModelError, first_line, on_one_line
from forty2.files import JsonObject
from forty2.model import cpu_kernels
from forty2.model.adapter import adapter_dir, load_adapter, recorded_template, trained_on
from forty2.model.adapter_files import recorded_stop_tokens, recorded_tags
from forty2.model.chat_template import TemplateSettings, apply_settings, stop_clock
from forty2.model.configuration import (
    GENERATION,
    RowLimit,
    named_context,
    read_config,
    read_generation_config,
    row_limit,
)
from forty2.model.quantization import is_quantized
from forty2.model.starter import STARTER, fetch_starter
from forty2.model.tags import (
    add_recorded_tags,
    add_tags,
    add_to_tokenizer,
    check_template_tags,
)
from forty2.model.tokenizer_files import load_tokenizer_files
from forty2.model.unread_settings import check_settings, recorded_settings, unused_window
from forty2.model.vocabulary import check_vocabulary
from forty2.model.weights import check_finite, check_weight_files
from forty2.recipe.tags import AddedTags, TagSettings
from forty2.run_paths import expand_run_name, suggest_run


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, and where it came from."""

    model: nn.Module
    tokenizer: TokenizerWrapper
    """Hugging Face tokenizer with its end-of-text ids."""
    config: JsonObject
    """Contents of the model's config.json."""
    path: Path
    """Folder of the model."""
    name: str
    """Name that the user gave: a folder, a hub name or `smollm2`."""
    tags: AddedTags | None = None
    """Special tokens that the model in the folder does not have; None: none."""

    @property
    def quantized(self) -> bool:
        """Whether the weights are quantized."""
        return is_quantized(self.config)

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids at which generation ends: of the tokenizer, the configurations and the adapter.

        The tokenizer's own is the first.
        """
        first = self.tokenizer.eos_token_id
        return [first, *sorted(set(self.tokenizer.eos_token_ids) - {first})]

    @property
    def row_limit(self) -> RowLimit:
        """The longest row that the model computes rightly."""
        return row_limit(self.config, unused_window(self.model, self.config))


def resolve_model(name: str) -> Path:
    """Find a model's folder: the path itself, the starter's, or a snapshot from the hub.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached.
    """
    if name == STARTER:
        return fetch_starter()
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        if not (path / "config.json").exists():
            _refuse_run(name)
            base = _base_of_adapter(path) or suggest_run(path)
            raise ModelError(f"{path}: no config.json, so this is not a model folder{base}")
        return path
    if path.suffix == ".gguf":
        raise ModelError(f"{path}: convert it first: forty2 model import {path} --out FOLDER")
    if (
        os.path.exists(path)
        or path.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") != 1
    ):
        _refuse_run(name)
        raise ModelError(
            f"{name}: no such model; give a model folder, a hub name (owner/name) or {STARTER!r}"
            f"{suggest_run(name)}"
        )
    try:
        return Path(mlx_lm_utils._download(name))
    except Exception as error:  # the hub client's errors have no common base
        raise ModelError(
            f"{name}: no such folder here, and the hub did not provide it: {first_line(error)}"
            f"{suggest_run(name)}"
        ) from error


def _refuse_run(name: str) -> None:
    """Refuse the name of a run where a model is taken."""
    run = expand_run_name(name)
    if os.path.exists(run / "run.json"):
        raise ModelError(f"{name}: is the run {run}, not a model: give it as `adapter`")


def _base_of_adapter(path: Path) -> str:
    """Say so if a folder holds an adapter in place of a model, and which model it is for."""
    if not (path / "adapter_config.json").exists():
        return ""
    try:
        record = json.loads((path / "adapter_config.json").read_bytes())
        base = record.get("base_model_name_or_path") or record.get("model")
    except (OSError, ValueError, AttributeError):
        base = None
    model = f"its model, {base}," if isinstance(base, str) else "the model that it is for,"
    return f" but an adapter's; give {model} as the model, and this as the adapter"


def load(
    name: str,
    adapter: str | Path | None = None,
    *,
    template: TemplateSettings | None = None,
    tags: TagSettings | None = None,
    trust_remote_code: bool = False,
    lazy: bool = False,
    share: LoadedModel | None = None,
) -> LoadedModel:
    """Load a model, and an adapter on top of it when one is given.

    Only safetensors are read. On the CPU, 16-bit weights become fp32, which holds the same numbers,
    because 16-bit products are many times slower there. On an x86 CPU this also installs the
    functions of `cpu_kernels`.

    Args:
        name: folder, hub name, or `smollm2`.
        adapter: an adapter folder, or a run folder (then its last finished phase).
        template: settings of the chat template; those that the adapter's run records hold where these
            say nothing.
        tags: special tokens to add; an adapter brings its own along.
        trust_remote_code: run the architecture code that a model brings along.
        lazy: leave the weights on disk until something computes with them.
        share: the same model without an adapter, loaded before. Its weights are used and are in memory
            once, but for those that the adapter replaces or enlarges.

    Raises:
        ModelError: the model or the adapter is missing or damaged, or they do not fit together.
    """
    path = resolve_model(name)
    config = read_config(path)
    if config.get("model_file") is not None and not trust_remote_code:
        raise ModelError(
            f"{path}: brings architecture code of its own ({config['model_file']}); read it, and "
            "give `trust_remote_code=True` if you trust it"
        )
    check_weight_files(path, config)
    cpu_kernels.install()
    model, config = _build(path, config, trust_remote_code)
    template = template or TemplateSettings()
    if adapter is not None:
        template = template.over(recorded_template(adapter) or TemplateSettings())
    tokenizer = load_tokenizer_files(path, config, trust_remote_code)
    _set_template(tokenizer, template, path)
    check_vocabulary(tokenizer, config, path)
    if mx.default_device() == mx.Device(mx.cpu) and not is_quantized(config):
        model.update(tree_map(_to_fp32, model.parameters()))
    if share is not None:
        model.update(share.model.parameters())
    added = None
    if tags is not None and adapter is None:
        added, config = add_tags(model, config, tokenizer, tags)
    if adapter is not None:
        folder = adapter_dir(adapter)
        added = recorded_tags(folder)
        if added is not None:
            config = add_recorded_tags(model, config, tokenizer, added)
        load_adapter(model, folder, path)
        tokenizer.eos_token_ids = {*tokenizer.eos_token_ids, *recorded_stop_tokens(folder)}
        message = other_base(path, folder)
        if message is not None:
            warnings.warn(message, stacklevel=2)
    check_template_tags(tokenizer, template.source)
    model.eval()
    if mx.metal.is_available():  # keep the weights resident, as mlx-lm's own tools do
        mx.set_wired_limit(int(mx.device_info().get("max_recommended_working_set_size", 0)))
    if not lazy:
        try:
            mx.eval(model.parameters())
        except RuntimeError as error:
            raise ModelError(f"{path}: cannot read the weights: {on_one_line(error)}") from error
        check_finite(model, path)
    return LoadedModel(model, tokenizer, config, path, name, added)


def _build(path: Path, config: JsonObject, trust_remote_code: bool) -> tuple[nn.Module, JsonObject]:
    """Build a model with its weights still on disk; refuse settings that mlx-lm does not use."""
    try:
        with recorded_settings() as read:
            model, config = mlx_lm_utils.load_model(
                path, lazy=True, model_config=config, trust_remote_code=trust_remote_code
            )
            model(mx.array([[0, 0]]))  # lazy: nothing is computed, but settings are read
    except Exception as error:  # a config can make mlx-lm's architectures raise errors of any type
        raise ModelError(f"{path}: cannot load the model: {_reason(error, config)}") from error
    if config.get("model_file") is None:  # architecture code that comes with the model is its own
        check_settings(model, config, read, path / "config.json")
    return model, config


def build_unloaded(config: JsonObject) -> nn.Module:
    """Build a model of the shape that a config.json names; its random weights are not computed."""
    build, arguments = mlx_lm_utils._get_classes(config)
    model: nn.Module = build(arguments.from_dict(config))
    return model


def _reason(error: Exception, config: JsonObject) -> str:
    """Say why mlx-lm could not build a model, in terms of the model's files."""
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if key in config and type(config[key]) is not int:
            return (
                f"{key} must be a whole number in config.json, not {config[key]!r}; copy the file from "
                "the model"
            )
    unknown = re.fullmatch(r"Model type (.+) not supported\.", str(error))
    if unknown is not None:
        return (
            f"mlx-lm does not know the architecture {unknown[1]!r} (model_type in config.json); update "
            "mlx-lm, or take another model"
        )
    missing = re.search(r"missing \d+ required positional arguments?: (.*)", str(error))
    if missing is not None:
        return f"config.json lacks {missing[1]}, which mlx-lm needs; copy the file from the model"
    return on_one_line(error)


def load_tokenizer(
    name: str, template: TemplateSettings | None = None, tags: TagSettings | None = None
) -> TokenizerWrapper:
    """Load a model's tokenizer without the model.

    Args:
        template: settings of the chat template.
        tags: special tokens to add.

    Raises:
        ModelError: there is no such model, or its tokenizer is missing or damaged.
    """
    path = resolve_model(name)
    tokenizer = load_tokenizer_files(path, read_config(path), trust_remote_code=False)
    template = template or TemplateSettings()
    _set_template(tokenizer, template, path)
    if tags is not None:
        add_to_tokenizer(tokenizer, tags)
    check_template_tags(tokenizer, template.source)
    return tokenizer


def _set_template(tokenizer: TokenizerWrapper, settings: TemplateSettings, path: Path) -> None:
    """Write settings into a tokenizer's chat template."""
    written = settings.source is not None or settings.options or settings.system_turn == "fold"
    if written and settings.source is None and tokenizer.chat_template is None:
        raise ModelError(
            f"{path}: the tokenizer has no chat template to set options of; give one (chat_template)"
        )
    undated = apply_settings(tokenizer.chat_template, settings, str(path))
    dated = stop_clock(undated, settings.today)
    if dated != tokenizer.chat_template:
        tokenizer.chat_template = dated
        tokenizer.has_chat_template = True
        tokenizer._chat_template = None  # mlx-lm's renderer in place of a template
    if dated != undated:
        tokenizer.undated_template = undated
        tokenizer.template_date = settings.today.isoformat()


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write weights, config, tokenizer and generation config, as stock mlx-lm reads them.

    The configurations name every id that ends a reply, those of an adapter included. The chat
    template has its settings written into it, but reads the clock again.
    """
    ids, tokenizer = loaded.stop_token_ids, loaded.tokenizer
    stops = ids if len(ids) > 1 else ids[0]
    config = dict(loaded.config) | {"eos_token_id": stops}
    with _with_clock(tokenizer):
        mlx_lm_utils.save(folder, loaded.path, loaded.model, tokenizer, config, donate_model=False)
    generation = read_generation_config(loaded.path)
    if generation or isinstance(stops, list):
        generation["eos_token_id"] = stops
        (folder / GENERATION).write_text(json.dumps(generation, indent=2) + "\n", "utf-8")


def save_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """Write the tokenizer alone, with the chat template as `save_model` writes it."""
    with _with_clock(loaded.tokenizer):
        loaded.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _with_clock(tokenizer: TokenizerWrapper) -> Iterator[None]:
    """Give a tokenizer the chat template that reads the clock, until the end of the block."""
    dated = tokenizer.chat_template
    tokenizer.chat_template = undated_template(tokenizer)
    try:
        yield
    finally:
        tokenizer.chat_template = dated


def undated_template(tokenizer: TokenizerWrapper) -> object:
    """Return the chat template with its settings, but with the clock running."""
    return getattr(tokenizer, "undated_template", tokenizer.chat_template)


# --- facts about a model ---


def model_sha256(folder: Path) -> str:
    """Compute the sha256 of a model folder's weights and config."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("model*.safetensors"), folder / "config.json"]):
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()


def parameter_count(model: nn.Module) -> int:
    """Count the model's parameters; a quantized weight counts as the weight before quantizing."""
    return int(mlx_lm_utils.get_total_parameters(model))


def model_facts(loaded: LoadedModel) -> dict[str, str | int | None]:
    """Collect what `forty2 model info` shows, by label."""
    config = loaded.config
    quantization = config.get("quantization")
    return {
        "name": loaded.name,
        "path": str(loaded.path),
        "architecture": config.get("model_type", "unknown"),
        "parameters": parameter_count(loaded.model),
        "layers": len(loaded.model.layers),
        "vocabulary": config.get("vocab_size"),
        "context": named_context(config),
        "quantized": "no" if not quantization else json.dumps(quantization),
        "chat template": "yes" if loaded.tokenizer.has_chat_template else "no",
    }


def other_base(model: Path, adapter: Path) -> str | None:
    """Say so if an adapter was trained on other weights, such as those before an earlier fusing."""
    base = trained_on(adapter)
    if base.path is None or base.sha256 is None:
        return None
    if base.path == os.path.abspath(model) or base.sha256 == model_sha256(model):
        return None
    return (
        f"{adapter} was trained on {base.name}, and {model} holds other weights: measure before "
        "you trust the two together"
    )


def _to_fp32(weight: mx.array) -> mx.array:
    return weight.astype(mx.float32) if weight.dtype in (mx.float16, mx.bfloat16) else weight
