"""Load any model that mlx-lm loads, by folder, hub name or the starter's nickname."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm import utils as mlx_lm_utils

from forty2.errors import ModelError
from forty2.model.adapter import adapter_dir, load_adapter
from forty2.model.starter import STARTER, fetch_starter

_MOST_LAYERS = 10_000
"""A damaged count would have mlx-lm build layers until the memory is full."""


@dataclass(slots=True)
class LoadedModel:
    """A model ready to run, and where it came from."""

    model: nn.Module
    tokenizer: Any
    """mlx-lm's `TokenizerWrapper`: the Hugging Face tokenizer with its end-of-text ids."""
    config: dict[str, Any]
    path: Path
    name: str
    """What the user called it."""

    @property
    def quantised(self) -> bool:
        return "quantization" in self.config


def resolve(name: str) -> Path:
    """The folder of a model: itself, the starter's, or a snapshot from the hub."""
    if name == STARTER:
        return fetch_starter()
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        if not (path / "config.json").exists():
            raise ModelError(f"{path}: no config.json, so this is no model folder")
        return path
    if path.suffix == ".gguf":
        raise ModelError(f"{path}: convert it first: forty2 model import {path} --out FOLDER")
    if (
        os.path.exists(path)
        or path.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") != 1
    ):
        raise ModelError(
            f"{name}: no such model; give a model folder, a hub name (owner/name) or {STARTER!r}"
        )
    try:
        return Path(mlx_lm_utils._download(name))
    except Exception as error:  # the hub client's errors have no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name}: not a folder here, and the hub did not give it: {reason}"
        ) from error


def load(
    name: str,
    adapter: str | Path | None = None,
    *,
    trust_remote_code: bool = False,
    lazy: bool = False,
) -> LoadedModel:
    """Load a model, and an adapter on top of it when one is given.

    Only safetensors are read. On the CPU, 16-bit weights become fp32: 16-bit products run there
    many times slower, and the fp32 copy holds the same numbers.

    Args:
        name: folder, hub name, or `smollm2`.
        adapter: an adapter folder, or a run folder (then its last finished phase).
        trust_remote_code: let the model bring its own architecture file. Off unless asked for.
        lazy: do not read the weights yet.

    Raises:
        ModelError: nothing there, or files missing, or the adapter does not fit.
    """
    path = resolve(name)
    config = read_config(path)
    if config.get("model_file") is not None and not trust_remote_code:
        raise ModelError(
            f"{path}: brings architecture code of its own ({config['model_file']}); read it, and "
            "give --trust-remote-code if you trust it"
        )
    try:
        model, config = mlx_lm_utils.load_model(
            path, lazy=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # what a config makes of mlx-lm's architectures has many kinds
        raise ModelError(f"{path}: cannot load the model: {_one_line(error)}") from error
    tokenizer = _load_tokenizer(path, config, trust_remote_code)
    if mx.default_device() == mx.Device(mx.cpu):
        halves = (mx.float16, mx.bfloat16)
        if "quantization" not in config:
            model.update(
                tree_map(
                    lambda x: x.astype(mx.float32) if x.dtype in halves else x, model.parameters()
                )
            )
    if adapter is not None:
        folder = adapter_dir(adapter)
        load_adapter(model, folder)
        _warn_of_other_base(path, folder)
    model.eval()
    if mx.metal.is_available():  # keep the weights resident, as mlx-lm's own tools do
        mx.set_wired_limit(int(mx.device_info().get("max_recommended_working_set_size", 0)))
    if not lazy:
        try:
            mx.eval(model.parameters())
        except RuntimeError as error:
            raise ModelError(f"{path}: cannot read the weights: {_one_line(error)}") from error
    return LoadedModel(model, tokenizer, config, path, name)


def load_tokenizer(name: str) -> Any:
    """Only the tokenizer of a model."""
    path = resolve(name)
    return _load_tokenizer(path, read_config(path), trust_remote_code=False)


def read_config(path: Path) -> dict[str, Any]:
    """A model folder's config.json."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ModelError(f"{file}: names no model_type, so it is no model's config.json")
        layers = config.get("num_hidden_layers")
        if isinstance(layers, int) and layers > _MOST_LAYERS:
            raise ModelError(f"{file}: {layers:,} layers make no model; copy it from the model")
        return dict(mlx_lm_utils.load_config(path))
    except RecursionError as error:
        raise ModelError(f"{file}: nested too deeply; copy it from the model") from error
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file}: not readable: {_one_line(error)}") from error


def _load_tokenizer(path: Path, config: dict[str, Any], trust_remote_code: bool) -> Any:
    if not any(
        (path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise ModelError(
            f"{path}: no tokenizer (tokenizer.json is missing); copy it from the model"
        )
    try:
        tokenizer = mlx_lm_utils.load_tokenizer(
            path,
            {"trust_remote_code": trust_remote_code},
            eos_token_ids=config.get("eos_token_id"),
        )
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"{path}: cannot load the tokenizer: {_one_line(error)}") from error
    if not tokenizer.eos_token_ids:
        raise ModelError(f"{path}: the tokenizer names no end-of-text token (eos_token)")
    return tokenizer


def model_sha256(model: Path) -> str:
    """sha256 over a model folder's weights and config."""
    digest = hashlib.sha256()
    for file in sorted([*model.glob("model*.safetensors"), model / "config.json"]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _warn_of_other_base(model: Path, adapter: Path) -> None:
    """Say so if an adapter of a run of ours was trained on other weights, such as not yet fused ones."""
    try:
        run = json.loads((adapter.parent / "run.json").read_bytes())
        name, path, sha256 = (str(run[key]) for key in ("model", "model_path", "model_sha256"))
    except (OSError, ValueError, LookupError, TypeError):
        return  # of no run, or of one that tells nothing
    if Path(path) != model and sha256 != model_sha256(model):
        warnings.warn(
            f"{adapter} was trained on {name}, and {model} holds other weights: measure before you "
            "trust the two together",
            stacklevel=3,
        )


def stream(
    loaded: LoadedModel, prompt: Sequence[int], *, max_tokens: int, temperature: float, seed: int
) -> Iterator[str]:
    """Pieces of an answer as they come. Temperature 0 is greedy."""
    from mlx_lm.generate import stream_generate
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(seed)
    sampler = make_sampler(temp=temperature)
    for piece in stream_generate(
        loaded.model, loaded.tokenizer, list(prompt), max_tokens=max_tokens, sampler=sampler
    ):
        yield piece.text


def save(loaded: LoadedModel, out: Path) -> None:
    """Write weights, config, tokenizer and generation config, as stock mlx-lm reads them."""
    mlx_lm_utils.save(
        out, loaded.path, loaded.model, loaded.tokenizer, dict(loaded.config), donate_model=False
    )
    generation = loaded.path / "generation_config.json"
    if generation.exists():
        (out / generation.name).write_bytes(generation.read_bytes())


def parameter_count(model: nn.Module) -> int:
    """How many parameters the model has; a quantised weight counts as what it stands for."""
    return int(mlx_lm_utils.get_total_parameters(model))


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """What `forty2 model info` shows."""
    config = loaded.config
    quantisation = config.get("quantization")
    return {
        "name": loaded.name,
        "path": str(loaded.path),
        "architecture": config.get("model_type", "unknown"),
        "parameters": parameter_count(loaded.model),
        "layers": len(loaded.model.layers),
        "vocabulary": config.get("vocab_size"),
        "context": config.get("max_position_embeddings"),
        "quantised": "no" if not quantisation else json.dumps(quantisation),
        "chat template": "yes" if loaded.tokenizer.has_chat_template else "no",
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
