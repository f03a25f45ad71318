"""Random models of a few thousand weights, in five architectures."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import gemma2, llama, phi3, qwen2

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
    """A random model of a few thousand weights."""
    mx.random.seed(seed)
    if architecture == "sliding":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        arguments = llama.ModelArgs(
            model_type="llama", sliding_window=6, layer_types=kinds, **TINY | changes
        )
        model: Any = llama.Model(arguments)
    else:
        module = {"llama": llama, "qwen2": qwen2, "phi3": phi3, "gemma2": gemma2}[architecture]
        extra = {"head_dim": 8} if architecture == "gemma2" else {}
        model = module.Model(module.ModelArgs(model_type=architecture, **extra, **TINY | changes))
    mx.eval(model.parameters())
    model.eval()
    return model
