"""Every setting that changes the computation is used or refused, in several architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from support.models import TINY, tiny_loaded

from forty2.errors import ModelError
from forty2.model.loading import load

IDS = mx.array([[5, 7, 200, 31, 9, 80, 3, 44]])
CONTEXT = {"max_position_embeddings": 256, "tie_word_embeddings": True, "eos_token_id": 1}
GEMMA3 = {
    "head_dim": 8,
    "sliding_window": 4,
    "sliding_window_pattern": 3,
    "query_pre_attn_scalar": 8,
}
QWEN2 = {"sliding_window": 16, "rope_theta": 1e6}
THETA = {"rope_type": "default", "rope_theta": 500000.0}
LINEAR = THETA | {"rope_type": "linear", "factor": 4.0}
YARN = LINEAR | {"rope_type": "yarn", "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def save(
    folder: Path, architecture: str, written: dict[str, Any], built: dict[str, Any]
) -> mx.array:
    """Write a random model's folder with one configuration, after running it with another."""
    mx.random.seed(0)
    config = {"model_type": architecture, **TINY, **CONTEXT}
    model_class, arguments = _get_classes(config | built)
    model = model_class(arguments.from_dict(config | built))
    folder.mkdir()
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        {"format": "mlx"},
    )
    (folder / "config.json").write_text(json.dumps(config | written))
    tiny_loaded(model).tokenizer._tokenizer.save_pretrained(folder)
    logits: mx.array = model(IDS)
    return logits


@pytest.mark.parametrize("settings", [THETA, LINEAR, YARN, LLAMA3], ids=lambda s: s["rope_type"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "olmo2"])
def test_rotary_settings_of_transformers_5_are_used(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    older = {"rope_theta": 500000.0, "rope_scaling": settings}
    wanted = save(tmp_path / "m", architecture, {"rope_parameters": settings}, older)
    got = load(str(tmp_path / "m")).model(IDS)
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=1e-5)
    plain = save(tmp_path / "p", architecture, {}, {})
    assert not mx.allclose(plain, wanted, atol=1e-3), "the settings change something"


def test_rotary_settings_of_two_types_of_layers_are_used(tmp_path: Path) -> None:
    layers = {
        "full_attention": LINEAR,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    }
    older = {"rope_theta": 500000.0, "rope_local_base_freq": 1000.0, "rope_scaling": LINEAR}
    new = {"rope_parameters": layers, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
    wanted = save(tmp_path / "m", "gemma3_text", GEMMA3 | new, GEMMA3 | older)
    got = load(str(tmp_path / "m")).model(IDS)
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=1e-5)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mixtral", {"rope_parameters": LINEAR}, "computes other rotary positions"),
    ("cohere", {"rope_parameters": LINEAR}, "computes other rotary positions"),
    ("gemma", {"rope_parameters": LINEAR, "head_dim": 8}, "computes other rotary positions"),
    ("starcoder2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "other rotary positions"),
    ("llama", {"rope_parameters": YARN | {"attention_factor": 1.5}}, "other rotary positions"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
    ("gemma3_text", GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("qwen2", {}, "names no rope_theta; transformers then takes 10000.0"),
    ("mixtral", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("olmoe", {"clip_qkv": 8.0, "num_experts": 4, "num_experts_per_tok": 2}, "clip_qkv is 8.0"),
]


@pytest.mark.parametrize(("architecture", "written", "message"), REFUSED)
def test_a_setting_that_is_not_used_is_refused(
    architecture: str, written: dict[str, Any], message: str, tmp_path: Path
) -> None:
    built = {k: v for k, v in written.items() if not k.startswith("rope")}
    save(tmp_path / "m", architecture, written, built)
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
        load(str(tmp_path / "m"))


@pytest.mark.parametrize(
    "harmless",
    [
        {"hidden_act": "swish", "final_logit_softcapping": None, "attention_dropout": 0.1},
        {"pretraining_tp": 1, "use_cache": True, "some_note": "mine"},
    ],
)
def test_a_setting_without_effect_is_let_through(harmless: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path / "m", "llama", harmless, {})
    load(str(tmp_path / "m"))


def test_a_null_where_a_number_is_needed_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "m", "gemma2", {"head_dim": 8, "attn_logit_softcapping": None}, {"head_dim": 8})
    with pytest.raises(ModelError, match="cannot load the model"):
        load(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("architecture", "written", "tokens"),
    [
        ("mistral", {"sliding_window": 16}, 16),
        ("gemma2", {"sliding_window": 16, "head_dim": 8}, 16),
        ("qwen2", QWEN2 | {"use_sliding_window": True, "max_window_layers": 0}, 16),
        ("qwen2", QWEN2 | {"use_sliding_window": False}, 256),
        ("gemma3_text", GEMMA3, 256),
        ("llama", {}, 256),
    ],
)
def test_a_window_that_is_not_applied_limits_rows(
    architecture: str, written: dict[str, Any], tokens: int, tmp_path: Path
) -> None:
    save(tmp_path / "m", architecture, written, written)
    assert load(str(tmp_path / "m")).row_limit.tokens == tokens


def test_a_setting_that_mlx_lm_takes_in_its_own_way_is_warned_about(tmp_path: Path) -> None:
    written = {"rope_parameters": YARN | {"truncate": False, "rope_theta": 10000.0}}
    save(tmp_path / "m", "llama", written | {"head_dim": 32}, {"head_dim": 32})
    with pytest.warns(UserWarning, match=r"mlx-lm does not use rope_parameters\.truncate"):
        load(str(tmp_path / "m"))
