"""Tiny random models of the architectures that are exported, as folders with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from forty2.export.gguf.bpe import PROBE
from forty2.model.loading import build_unloaded

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|stop|>")
TAGS = ("<think>", "</think>", "<note to self>")
"""Tags that are text: they stay in a reply."""
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {
    "qwen2": _CL100K.replace("{1,3}", ""),
    "llama-bpe": _CL100K,
    "dbrx": _CL100K,  # Phi-4's, which merges even where a whole word is a token
}
"""Patterns with which the families publish their tokenizers."""


def byte_level(kind: str, text: str = PROBE, size: int = 420) -> Tokenizer:
    """Train a byte-level BPE tokenizer with a family's rule for cutting text into words."""
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in WORDS)
    first: Any = None
    if kind in WORDS:
        first = pre_tokenizers.Split(Regex(WORDS[kind]), "isolated")
    elif kind == "smollm":
        first = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte]) if first else byte
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def sentence_piece(scheme: str, text: str = PROBE, size: int = 700) -> Tokenizer:
    """Train a BPE tokenizer as converted from SentencePiece: every way to divide a token is a merge.

    Args:
        scheme: where a space is written before a text: "prepend" or "converted" as Llama 2, "always",
            "first", or "never" as Gemma.
    """
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=size - 260, show_progress=False)
    learned.train_from_iterator([f" {line}" for line in text.split("\n")], trainer)
    pieces = sorted(learned.get_vocab(), key=lambda piece: learned.get_vocab()[piece])
    listed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {piece: n for n, piece in enumerate(listed)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    replace = normalizers.Replace(" ", "▁")
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif scheme == "converted":  # as transformers 5 converts Llama 2
        doubled = normalizers.Replace(Regex(r"\A▁"), "▁▁")
        tokenizer.normalizer = normalizers.Sequence([replace, doubled])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    elif scheme == "never":  # as Gemma
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def with_tokens(
    backend: Tokenizer, *, bos: str | None = None, stripped: bool = False, **settings: Any
) -> Any:
    """Add control tokens, tags and a chat template to a tokenizer.

    Args:
        bos: the token that goes before every text; None: none does.
        stripped: control tokens and tags take in the white space after them, as Phi-3's.
    """
    never = {"<unk>", "<s>", "<|endoftext|>"}
    more = ("<unk>", "</s>") if stripped else ()

    def made(token: str, special: bool) -> AddedToken:
        rstrip = stripped and token not in never
        return AddedToken(token, special=special, normalized=False, rstrip=rstrip)

    backend.add_special_tokens([made(token, True) for token in (*CONTROL, *more)])
    backend.add_tokens([made(tag, False) for tag in TAGS])
    if bos is not None:
        backend.add_special_tokens([AddedToken(bos, special=True, normalized=False)])
        framing = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=framing
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{
            "bos_token": bos or "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "chat_template": CHATML,
            **settings,
        },
    )


HIDDEN, HEADS, KV_HEADS, HEAD, WIDE = 64, 4, 2, 16, 96
_CONFIG: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "eos_token_id": None,
}
_GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "hidden_activation": "gelu_pytorch_tanh",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32, "tie_word_embeddings": False},
    "mistral": {"head_dim": HEAD, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {"pad_token_id": 0, "tie_word_embeddings": False},
    "gemma2": {
        **_GEMMA,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
        "sliding_window": 128,
    },
    "gemma3_text": {
        **_GEMMA,
        "num_hidden_layers": 7,
        "sliding_window": 24,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 10000.0,
    },
    "smollm3": {"num_hidden_layers": 5},
    "granite": {
        "attention_multiplier": 0.15,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.7,
        "attention_bias": False,
        "mlp_bias": False,
    },
}
"""What each architecture's config.json has beside the common part."""


def save_family(
    folder: Path,
    kind: str,
    tokenizer: Any = None,
    *,
    spare: int = 5,
    dtype: mx.Dtype = mx.float32,
    **changes: Any,
) -> Path:
    """Write a random model of an architecture, whose every value matters to the logits.

    Args:
        tokenizer: of transformers; default: byte-level with Qwen's rule.
        spare: rows of the embeddings without a token.
    """
    tokenizer = tokenizer or with_tokens(byte_level("qwen2"))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = {"model_type": kind, **_CONFIG, **CONFIGS[kind], **changes}
    config |= {"vocab_size": len(tokenizer) + spare, "eos_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(json.dumps(config))
    model = build_unloaded(config)
    if kind == "gemma3_text" and config["tie_word_embeddings"]:
        model.pop("lm_head")
    rng = np.random.default_rng(7)
    weights = {}
    for name, old in tree_flatten(model.parameters()):
        scale = 0.25 if old.ndim > 1 else 0.3
        values = rng.normal(size=old.shape) * scale
        if old.ndim == 1:  # Gemma's norms add 1; multiples of 1/1024 survive that unrounded
            values = np.round(values * 1024) / 1024 + ("norm" in name and "gemma" not in kind)
        weights[name] = mx.array(values.astype(np.float32)).astype(dtype)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder
