"""Random models of a few thousand weights, in five architectures, and a tokenizer of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import gemma2, llama, mistral3, mixtral, phi3, qwen2
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forty2.model import cpu_kernels
from forty2.model.loading import LoadedModel

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
}
ARCHITECTURES = ["llama", "sliding", "qwen2", "phi3", "gemma2"]


def tiny_model(architecture: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Build a random model of a few thousand weights, with the CPU kernels that loading installs."""
    cpu_kernels.install()
    mx.random.seed(seed)
    if architecture == "sliding":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        arguments = llama.ModelArgs(
            model_type="llama", sliding_window=6, layer_types=kinds, **TINY | changes
        )
        model: Any = llama.Model(arguments)
    elif architecture == "nested":  # as models that also see: a language model within
        text = {"model_type": "llama", **TINY} | changes
        nested = mistral3.ModelArgs.from_dict({"model_type": "mistral3", "text_config": text})
        model = mistral3.Model(nested)
    else:
        module = {
            "llama": llama,
            "qwen2": qwen2,
            "phi3": phi3,
            "gemma2": gemma2,
            "mixtral": mixtral,
        }[architecture]
        extra = {"head_dim": 8} if architecture == "gemma2" else {}
        model = module.Model(module.ModelArgs(model_type=architecture, **extra, **TINY | changes))
    mx.eval(model.parameters())
    model.eval()
    return model


def tiny_loaded(
    model: nn.Module | None = None,
    *,
    front: bool = False,
    template: str | None = None,
    length: int = 512,
    ends: Sequence[int] = (),
) -> LoadedModel:
    """Build a tiny model with a tokenizer of bytes: ids 0 and 1 are <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{byte: i for i, byte in enumerate(alphabet, 2)}}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.add_special_tokens(["<s>", "</s>"])
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    if front:
        bytewise.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return LoadedModel(
        model if model is not None else tiny_model(),
        TokenizerWrapper(tokenizer, eos_token_ids=list(ends)),
        {"max_position_embeddings": length},
        Path("nowhere"),
        "tiny",
    )


def save_tiny(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny llama and its tokenizer of bytes as a model folder that `load` reads."""
    one = tiny_loaded(tiny_model(seed=seed, **changes))
    folder.mkdir(parents=True, exist_ok=True)
    one.tokenizer._tokenizer.save_pretrained(folder)
    config = {"model_type": "llama", "eos_token_id": 1, "tie_word_embeddings": True}
    config |= TINY | changes
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(one.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder
