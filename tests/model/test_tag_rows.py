"""Rows of tags are trained in place of the tables' own, and are all that is trained of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.models import save_tiny, tiny_model
from support.tagged_models import ADAPTER, ADDED, KINDS, SETTINGS, tagged, with_tags

from forty2.errors import ModelError
from forty2.export.fusing import fuse
from forty2.model.adapter import (
    adapter_weights,
    attach_adapter,
    load_arrays,
    restore_adapter,
    save_adapter,
    without_adapter,
)
from forty2.model.initial_adapter import attach_initial_adapter
from forty2.model.loading import load
from forty2.model.tag_rows import head_table, is_tag_rows, tag_weights
from forty2.model.tags import find_tables
from forty2.recipe.reading import load_recipe

IDS = mx.array([[5, 258, 200, 259, 31, 300]])


def move(model: Any) -> mx.array:
    """Change all that is trained; return the logits then."""
    for name, value in adapter_weights(model).items():
        change = 0.2 * mx.random.normal(value.shape, key=mx.random.key(len(name)))
        model.load_weights([(name, value + change)], strict=False)
    logits: mx.array = model(IDS)
    return logits


def saved(folder: Path, *, tied: bool = True, keys: list[str] | None = None) -> mx.array:
    """Write a model and an adapter with tags on it; return the logits of both together."""
    save_tiny(folder / "model", tie_word_embeddings=tied)
    loaded = load(str(folder / "model"), tags=SETTINGS)
    adapter = replace(ADAPTER, keys=keys)
    attach_adapter(loaded.model, adapter, seed=1, tags=loaded.tags)
    logits = move(loaded.model)
    (folder / "adapter").mkdir()
    save_adapter(loaded.model, adapter, folder / "adapter", stop_token_ids=[259])
    return logits


@pytest.mark.parametrize(("architecture", "tied"), KINDS)
def test_nothing_changes_until_the_rows_are_trained(architecture: str, tied: bool) -> None:
    before = with_tags(architecture, tied=tied)(IDS)
    model = with_tags(architecture, tied=tied)
    attach_adapter(model, ADAPTER, seed=1, tags=ADDED)
    np.testing.assert_allclose(model(IDS), before, atol=1e-5)
    assert len(tag_weights(model)) == (1 if tied else 2)


@pytest.mark.parametrize(("architecture", "tied"), KINDS)
def test_rows_of_their_own_compute_what_rows_in_the_tables_would(
    architecture: str, tied: bool
) -> None:
    model = tagged(architecture, tied=tied)
    own = move(model)
    for table in find_tables(model):
        table.weight[ADDED.first : ADDED.end] = table.tag_rows
    with_rows_in_tables = model(IDS)
    for table in find_tables(model):
        table.tag_rows = table.tag_rows * 0  # they alone count: so all logits change
    assert mx.abs(model(IDS) - own).max() > 0.1
    np.testing.assert_allclose(with_rows_in_tables, own, atol=1e-6)


def test_a_model_without_tags_has_no_table_of_them() -> None:
    assert head_table(tiny_model()) is None


def test_rows_are_fp32_and_computed_with_in_the_precision_of_the_model() -> None:
    model = with_tags()
    model.set_dtype(mx.bfloat16)
    attach_adapter(model, ADAPTER, seed=1, tags=ADDED)
    assert model(IDS).dtype == mx.bfloat16
    assert {value.dtype for value in tag_weights(model).values()} == {mx.float32}


def test_a_bias_of_the_head_holds_for_tags_too() -> None:
    model = with_tags(tied=False)
    model.lm_head.bias = mx.arange(320.0)
    before = model(IDS)
    attach_adapter(model, ADAPTER, seed=1, tags=ADDED)
    np.testing.assert_allclose(model(IDS), before, atol=1e-5)


def test_without_the_adapter_tags_are_as_they_began() -> None:
    before, model = with_tags()(IDS), tagged()
    with_it = move(model)
    with without_adapter(model):
        np.testing.assert_allclose(model(IDS), before, atol=1e-6)
    np.testing.assert_array_equal(model(IDS), with_it)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("keys", [None, ["self_attn.q_proj", "model.embed_tokens"]])
def test_an_adapter_keeps_its_tags(tmp_path: Path, tied: bool, keys: list[str] | None) -> None:
    wanted = saved(tmp_path, tied=tied, keys=keys)
    loaded = load(str(tmp_path / "model"), tmp_path / "adapter")
    np.testing.assert_allclose(loaded.model(IDS), wanted, atol=1e-5)
    assert loaded.tags == ADDED and loaded.tokenizer.encode("<a>") == [258]
    assert 259 in loaded.tokenizer.eos_token_ids


@pytest.mark.parametrize("tied", [True, False])
def test_restored_rows_are_the_same_bytes(tmp_path: Path, tied: bool) -> None:
    model = tagged(tied=tied)
    move(model)
    save_adapter(model, ADAPTER, tmp_path)
    other = tagged(tied=tied)
    restore_adapter(other, tmp_path)
    for name, value in adapter_weights(model).items():
        np.testing.assert_array_equal(adapter_weights(other)[name], value)


@pytest.mark.parametrize("tied", [True, False])
def test_tags_survive_fusing_into_mlx_lm_and_transformers(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoConfig, AutoTokenizer

    wanted = saved(tmp_path, tied=tied)
    fused = fuse(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "fused")
    assert fused.parity_kl < 1e-6
    model, tokenizer = mlx_lm.load(str(tmp_path / "fused"))
    np.testing.assert_allclose(model(IDS), wanted, atol=1e-4)
    assert tokenizer.encode("x<a>y</a>") == [89, 258, 90, 259]
    assert 259 in tokenizer.eos_token_ids
    theirs = AutoTokenizer.from_pretrained(tmp_path / "fused")
    assert theirs("x<a>y</a>", add_special_tokens=False)["input_ids"] == [89, 258, 90, 259]
    assert theirs.decode([89, 258, 90, 259], skip_special_tokens=True) == "xy"
    assert AutoConfig.from_pretrained(tmp_path / "fused").vocab_size == ADDED.rows
    before, after = (
        load_arrays(tmp_path / name / "model.safetensors") for name in ("model", "fused")
    )
    for name in ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]:
        np.testing.assert_array_equal(after[name][: ADDED.first], before[name][: ADDED.first])


def test_stock_mlx_lm_reads_the_adapter_without_its_tags(tmp_path: Path) -> None:
    saved(tmp_path)
    model, tokenizer = mlx_lm.load(str(tmp_path / "model"), adapter_path=str(tmp_path / "adapter"))
    ours = load(str(tmp_path / "model"), tmp_path / "adapter").model
    plain = mx.array([[5, 200, 31]])
    np.testing.assert_allclose(
        model(plain)[..., : ADDED.first], ours(plain)[..., : ADDED.first], atol=1e-5
    )
    assert len(tokenizer.encode("<a>")) > 1


def test_a_next_run_goes_on_from_an_adapter_with_tags(tmp_path: Path) -> None:
    wanted = saved(tmp_path)
    phases = {"p": {"objective": "sft", "data": "builtin:spark-sft", "steps": 1, "lr": 1e-3}}
    given = {
        "version": 1,
        "name": "next",
        "model": str(tmp_path / "model"),
        "init_from": str(tmp_path / "adapter"),
        "phases": phases,
    }
    recipe = load_recipe(given)
    assert recipe.tags == list(ADDED.tokens)
    loaded = load(recipe.model, tags=SETTINGS)
    attach_initial_adapter(loaded.model, recipe, seed=3, tags=loaded.tags)
    np.testing.assert_allclose(loaded.model(IDS), wanted, atol=1e-5)
    with pytest.raises(Exception, match=r"tags: are others than those of .*\(<a>, </a>\)"):
        load_recipe({**given, "tags": ["<other>"]})
    other = load(recipe.model, tags=replace(SETTINGS, pad_to=10))
    with pytest.raises(ModelError, match=r"tags\.safetensors: holds the tags' rows of another"):
        attach_initial_adapter(other.model, recipe, seed=3, tags=other.tags)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("shape", "does not hold 2 rows"),
        ("name", "does not hold 2 rows"),
        ("nan", "not finite"),
        ("missing", r"tags\.safetensors: cannot be read"),
        ("record", "no record of tags"),
        ("first", "trained on another model"),
    ],
)
def test_damaged_rows_are_refused(tmp_path: Path, damage: str, message: str) -> None:
    saved(tmp_path)
    file, config = (
        tmp_path / "adapter" / "tags.safetensors",
        tmp_path / "adapter" / "adapter_config.json",
    )
    ((name, rows),) = load_arrays(file).items()
    mx.eval(rows)
    changed = {
        "shape": {name: rows[:1]},
        "name": {"x": rows},
        "nan": {name: rows * mx.nan},
    }
    record = json.loads(config.read_text())
    if damage in changed:
        mx.save_safetensors(str(file), changed[damage])
    elif damage == "missing":
        file.unlink()
    else:
        record["tags"] |= {"rows": None} if damage == "record" else {"first_id": 9}
        config.write_text(json.dumps(record))
    with pytest.raises(ModelError, match=message):
        load(str(tmp_path / "model"), tmp_path / "adapter")


def test_dora_on_the_tables_of_tags_is_refused() -> None:
    with pytest.raises(ModelError, match="which dora cannot be put on"):
        tagged(type="dora", keys=["self_attn.q_proj", "model.embed_tokens"])
    assert any(map(is_tag_rows, adapter_weights(tagged(type="dora"))))


def test_the_table_itself_is_not_trained() -> None:
    names = {name for name, _ in tree_flatten(tagged(tied=False).trainable_parameters())}
    tables = {name for name in names if "embed_tokens" in name or "lm_head" in name}
    assert tables == {"model.embed_tokens.tag_rows", "lm_head.tag_rows"}
