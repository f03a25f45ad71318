"""Adapters beside PEFT's own code: the same logits both ways. `make parity` installs PEFT and runs these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.models import tiny_loaded

from forty2.export.peft import export_mlx, export_peft
from forty2.model.adapter import adapter_weights, attach_adapter, save_adapter
from forty2.model.loading import load
from forty2.recipe.schema import Adapter
from forty2.recipe.tags import TagSettings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IDS = [[5, 6, 7, 8, 200, 3, 41, 299]]
MOST = 1e-4
"""Largest difference of a logit."""
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", "tie_word_embeddings": False},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8},
}


def save_base(folder: Path, model: str) -> Path:
    """Write a random model of transformers, with a tokenizer of bytes."""
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(**SIZES | MODELS[model])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_loaded().tokenizer._tokenizer.save_pretrained(folder)
    return folder


def logits_of_peft(base: Path, adapter: Path | None, ids: list[list[int]] = IDS) -> Any:
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    peft: Any = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)).logits.numpy()


def logits_of_ours(base: Path, adapter: Path | None, ids: list[list[int]] = IDS) -> Any:
    return np.asarray(load(str(base), adapter).model(mx.array(ids)).astype(mx.float32))


def train_ours(base: Path, folder: Path, adapter: Adapter, tags: TagSettings | None = None) -> Path:
    """Write an adapter of ours that changes much."""
    loaded = load(str(base), tags=tags)
    model = loaded.model
    attach_adapter(model, adapter, seed=1, tags=loaded.tags)
    mx.random.seed(2)
    moved = [(n, v + 0.2 * mx.random.normal(v.shape)) for n, v in adapter_weights(model).items()]
    model.load_weights(moved, strict=False)
    folder.mkdir()
    save_adapter(model, adapter, folder, stop_token_ids=[1])
    return folder


OURS = {
    "lora": Adapter(rank=4, scale=4.0, layers=2),
    "an odd scale": Adapter(rank=3, scale=0.1),
    "dora": Adapter(rank=4, scale=2.0, type="dora"),
}


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("model", MODELS)
def test_what_we_export_has_the_same_logits_in_peft(model: str, kind: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", model)
    ours = train_ours(base, tmp_path / "ours", OURS[kind])
    export_peft(ours, tmp_path / "peft", model=str(base))
    wanted, plain = logits_of_ours(base, ours), logits_of_peft(base, None)
    assert np.abs(logits_of_ours(base, None) - plain).max() < MOST
    assert np.abs(wanted - plain).max() > 0.1
    assert np.abs(logits_of_peft(base, tmp_path / "peft") - wanted).max() < MOST
    assert np.array_equal(logits_of_ours(base, tmp_path / "peft"), wanted)
    export_mlx(tmp_path / "peft", tmp_path / "back")
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (ours / name).read_bytes()


@pytest.mark.parametrize("model", ["llama", "tied"])
def test_tables_are_adapted_as_here(model: str, tmp_path: Path) -> None:
    keys = ["self_attn.q_proj", "model.embed_tokens", *["lm_head"] * (model == "llama")]
    base = save_base(tmp_path / "base", model)
    ours = train_ours(base, tmp_path / "ours", replace(OURS["lora"], keys=keys))
    export_peft(ours, tmp_path / "peft", model=str(base))
    wanted = logits_of_ours(base, ours)
    assert np.abs(logits_of_peft(base, tmp_path / "peft") - wanted).max() < MOST
    assert np.array_equal(logits_of_ours(base, tmp_path / "peft"), wanted)


@pytest.mark.parametrize("model", ["llama", "tied"])
def test_tags_are_tokens_as_here(model: str, tmp_path: Path) -> None:
    """In rows that the base's table has to spare."""
    transformers: Any = pytest.importorskip("transformers")
    base, peft = save_base(tmp_path / "base", model), tmp_path / "peft"
    tags = TagSettings(starts={"<note>": "a note", "</note>": "an end"}, pad_to=300)
    ours = train_ours(base, tmp_path / "ours", OURS["lora"], tags)
    export_peft(ours, peft, model=str(base))
    ids = transformers.AutoTokenizer.from_pretrained(peft)("a <note>b</note>").input_ids
    assert {258, 259} < {*ids}
    wanted = logits_of_ours(base, ours, [ids])
    assert np.abs(logits_of_peft(base, peft, [ids]) - wanted).max() < MOST
    assert np.abs(logits_of_peft(base, None, [ids]) - wanted)[..., 258:260].max() > 0.1


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "a list": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "a regular expression": (
        "qwen2",
        {"target_modules": r".*\.[12]\.(self_attn\.[qv]|mlp\.up)_proj"},
    ),
    "all linear": ("gemma2", {"target_modules": "all-linear"}),
    "all linear, joined": ("phi3", {"target_modules": "all-linear", "use_dora": True}),
    "some layers": (
        "llama",
        {
            "target_modules": ["q_proj", "o_proj"],
            "layers_to_transform": [0, 2],
            "layers_pattern": "layers",
        },
    ),
    "excluded": ("llama", {"target_modules": "all-linear", "exclude_modules": ["k_proj"]}),
    "patterns": (
        "qwen2",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
            "alpha_pattern": {"v_proj": 3, r"layers\.1\.mlp\.up_proj": 5},
        },
    ),
    "rsLoRA": ("llama", {"target_modules": ["v_proj"], "use_rslora": True, "r": 5}),
    "rsLoRA with patterns": (
        "llama",
        {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"up_proj": 3}},
    ),
    "DoRA": ("qwen2", {"target_modules": "all-linear", "use_dora": True}),
    "a whole head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "whole norms": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
    ),
    "a whole MLP": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]}),
    "an untied table": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "rows of tokens": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": [7, 200, 5]},
    ),
    "rows of a tied table": (
        "tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": [7, 200, 5]},
    ),
    "rows of both tables": (
        "llama",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [7, 8], "lm_head": [8, 200]},
        },
    ),
}


def train_peft(base: Path, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write an adapter of PEFT that changes much."""
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    peft: Any = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings})
    torch.manual_seed(4)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", THEIRS)
def test_what_peft_trained_has_the_same_logits_here(kind: str, tmp_path: Path) -> None:
    model, settings = THEIRS[kind]
    base = save_base(tmp_path / "base", model)
    theirs = train_peft(base, tmp_path / "peft", settings)
    wanted = logits_of_peft(base, theirs)
    assert np.abs(wanted - logits_of_peft(base, None)).max() > 0.1
    assert np.abs(logits_of_ours(base, theirs) - wanted).max() < MOST


def test_every_parameter_is_in_the_comparison(tmp_path: Path) -> None:
    """A base that transformers filled with zeros would hide differences."""
    base = save_base(tmp_path / "base", "llama")
    for name, value in tree_flatten(load(str(base)).model.parameters()):
        assert float(mx.abs(value).max()) > 0, name
