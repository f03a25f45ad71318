"""Sentence encoders: the computation in float64 NumPy, texts to compare by, and a small random model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

Floats = npt.NDArray[np.float64]

TEXTS = (
    "A train leaves at nine and travels 120 km. How long does it take at 80 km/h?",
    "Write a function that reverses a list.",
    "",
    " \n ",
    "Wie heißt die Hauptstadt von Österreich?",
    "法国的首都是哪里？",
    "Какая столица Франции? 🗼",
    "<b>Bold</b> & \"quoted\" '$x^2$'",
    "word " * 400,
    "x" * 300,
)
"""Short, empty, blank, in other scripts, with markup, and longer than a model reads."""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "the", "capital", "of", "france", "?")


def embed_in_float64(folder: Path, texts: list[str], longest: int) -> Floats:
    """Compute embeddings text by text, without padding, as the papers' equations have them."""
    config = json.loads((folder / "config.json").read_bytes())
    loaded: dict[str, mx.array] = mx.load(str(folder / "model.safetensors"))  # type: ignore[assignment]
    w = {name: np.array(value.astype(mx.float32), np.float64) for name, value in loaded.items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return np.stack([_embed(w, config, tokenizer.encode(text.strip()).ids) for text in texts])


def _embed(w: dict[str, Floats], config: dict[str, Any], ids: list[int]) -> Floats:
    def linear(name: str, x: Floats) -> Floats:
        return np.add(x @ w[f"{name}.weight"].T, w[f"{name}.bias"])

    def norm(name: str, x: Floats) -> Floats:
        middle, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        scaled: Floats = (x - middle) / np.sqrt(spread + config["layer_norm_eps"])
        return np.add(scaled * w[f"{name}.weight"], w[f"{name}.bias"])

    heads, size = (
        config["num_attention_heads"],
        config["hidden_size"] // config["num_attention_heads"],
    )
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            linear(f"{layer}.attention.self.{part}", x)
            .reshape(len(ids), heads, size)
            .swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(size)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (powers / powers.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), -1)
        mixed = linear(f"{layer}.attention.output.dense", mixed)
        x = norm(f"{layer}.attention.output.LayerNorm", x + mixed)
        inner = linear(f"{layer}.intermediate.dense", x)
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    mean: Floats = x.mean(0)
    return np.divide(mean, np.linalg.norm(mean))


def save_tiny_encoder(folder: Path) -> Path:
    """Write a random sentence-transformers model of a few words."""
    from forty2.inference.embedding import tensor_shapes

    config = {"model_type": "bert", "layer_norm_eps": 1e-12, "vocab_size": len(WORDS), **SIZES}
    folder.mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    files: dict[str, object] = {
        "config.json": config,
        "modules.json": [
            {"path": path, "type": f"sentence_transformers.models.{kind}"}
            for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"), ("2", "Normalize"))
        ],
        "1_Pooling/config.json": {
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), "utf-8")
    mx.random.seed(3)
    weights = {name: mx.random.normal(shape) * 0.3 for name, shape in tensor_shapes(config).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
