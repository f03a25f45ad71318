"""Adapters to start from: what is read of them without mlx, and what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.recipes import GOOD, problems, write

from forty2.errors import ModelError
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.saved_adapter import read_adapter_file
from forty2.recipe.schema import PhaseAttention

LAYERS = "mlp.up_proj", "self_attn.q_proj"
PEFT = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "up_proj"],
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": True,
    "base_model_name_or_path": "someone/model",
}


def save_peft(folder: Path, rank: int = 4, blocks: range = range(1, 3), **config: Any) -> Path:
    """Write an adapter as PEFT does: A is (rank, in), B is (out, rank)."""
    folder.mkdir(exist_ok=True)
    arrays = {}
    for block in blocks:
        for layer in LAYERS:
            name = f"base_model.model.model.layers.{block}.{layer}"
            arrays[f"{name}.lora_A.weight"] = np.ones((rank, 32), np.float32)
            arrays[f"{name}.lora_B.weight"] = np.ones((8, rank), np.float32)
    save_file(arrays, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PEFT, "r": rank, **config}))
    return folder


def save_mlx(folder: Path, *, phases: bool = False, **config: Any) -> Path:
    """Write an adapter as mlx-lm does: A is (in, rank), B is (rank, out)."""
    folder.mkdir(exist_ok=True)
    arrays = {}
    if phases:
        arrays["model.layers.1.phase_attention.gate"] = np.zeros(32, np.float32)
    for layer in LAYERS:
        arrays[f"model.layers.2.{layer}.lora_a"] = np.ones((32, 4), np.float32)
        arrays[f"model.layers.2.{layer}.lora_b"] = np.ones((4, 8), np.float32)
    save_file(arrays, folder / "adapters.safetensors")
    lora = {"rank": 4, "scale": 1.5, "dropout": 0.0}
    whole = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": lora, **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    return folder


def test_the_shape_is_that_of_the_tensors(tmp_path: Path) -> None:
    peft, mlx = save_peft(tmp_path / "peft"), save_mlx(tmp_path / "mlx", num_layers=-1)
    found = read_adapter_file(str(peft))
    assert (found.rank, found.scale, found.layers, found.keys) == (4, 1.5, 2, LAYERS)
    assert found.tensors["model.layers.1.mlp.up_proj.lora_a"].endswith("up_proj.lora_A.weight")
    found = read_adapter_file(str(mlx))
    assert (found.rank, found.scale, found.layers, found.keys) == (4, 1.5, 1, LAYERS)
    assert not found.transposed


def test_rank_stabilized_scale_is_alpha_by_the_root_of_the_rank(tmp_path: Path) -> None:
    found = read_adapter_file(str(save_peft(tmp_path / "peft", use_rslora=True)))
    assert found.scale == 6 / math.sqrt(4)


def test_the_hash_is_of_weights_and_configuration(tmp_path: Path) -> None:
    one, same = save_peft(tmp_path / "one"), save_peft(tmp_path / "same")
    hashes = [read_adapter_file(str(folder)).sha256() for folder in (one, same)]
    assert hashes[0] == hashes[1]
    save_peft(same, lora_alpha=7)
    assert read_adapter_file(str(same)).sha256() != hashes[0]


def test_what_the_recipe_leaves_out_is_taken_from_it(tmp_path: Path) -> None:
    peft = save_peft(tmp_path / "peft")
    text = GOOD + f"init_from: {peft}\n"
    given = (
        "adapter: {rank: 4, layers: null, dropout: 0.1, keys: [mlp.up_proj, self_attn.q_proj]}\n"
    )
    for section in ("", "adapter: {}\n", given):
        recipe = load_recipe(write(tmp_path, text + section))
        adapter = recipe.adapter
        assert (adapter.rank, adapter.scale, adapter.layers) == (4, 1.5, 2)
        assert adapter.keys is not None and set(adapter.keys) == set(LAYERS)
        assert adapter.dropout == (0.1 if section == given else 0)
    (tmp_path / "again").mkdir()
    assert load_recipe(write(tmp_path / "again", to_yaml(recipe))) == recipe


def test_each_key_that_contradicts_it_is_named_with_its_line(tmp_path: Path) -> None:
    peft = save_peft(tmp_path / "peft")
    section = "adapter:\n  rank: 8\n  layers: 3\n  keys: [self_attn.q_proj]\n"
    found = problems(tmp_path, GOOD + f"init_from: {peft}\n" + section, "adapter.scale=2")
    assert found == [
        "`overrides`: adapter.scale: is 2, but peft has 1.5; remove the key to take that",
        "recipe.yaml:14: adapter.rank: is 8, but peft has 4; remove the key to take that",
        "recipe.yaml:15: adapter.layers: is 3, but peft has 2; remove the key to take that",
        "recipe.yaml:16: adapter.keys: is ['self_attn.q_proj'], but peft has "
        "['mlp.up_proj', 'self_attn.q_proj']; remove the key to take that",
    ]
    assert problems(tmp_path, GOOD + "init_from: nowhere\n") == [
        "recipe.yaml:12: init_from: nowhere: no such folder"
    ]


def test_a_run_is_named_by_its_recipe_s_folder_or_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("adapters", "mine")
    run.mkdir(parents=True)
    save_peft(run / "phase1_sft")
    (run / "run.json").touch()
    Path("shop").mkdir()
    Path("next").mkdir()
    Path("shop", "recipe.yaml").write_text("name: mine\n")
    for name in ("mine", "shop", "../shop", "shop/sft", "mine/sft", "../adapters/mine"):
        file = write(Path("next"), GOOD + f"init_from: {name}\n")
        found = str(run / "sft" if name.endswith("sft") else run)
        assert load_recipe(file).init_from == found
    for name in ("mine", "shop", "shop/sft"):
        recipe = load_recipe(write(Path("next"), GOOD), [f"init_from={name}"])
        assert read_adapter_file(recipe.init_from or "").folder == run / "phase1_sft"
        assert f"init_from: {os.path.relpath(recipe.init_from or '', 'next')}" in to_yaml(
            recipe, Path("next")
        )
    assert problems(Path("next"), GOOD + "init_from: mime\n") == [
        "recipe.yaml:12: init_from: mime: no such folder; did you mean adapters/mine?"
    ]


def test_phase_attention_is_taken_over_or_new(tmp_path: Path) -> None:
    settings = {"block": 1, "oscillators": 4, "steps": 2, "dt": 0.1, "coupling": 1.0}
    phased = save_mlx(tmp_path / "phased", phases=True, phase_attention=settings)
    wanted = PhaseAttention(block=1, oscillators=4, steps=2)
    text = GOOD + f"init_from: {phased}\n"
    for section in ("", "adapter: {phase_attention: {block: 1, oscillators: 4}}\n"):
        assert load_recipe(write(tmp_path, text + section)).adapter.phase_attention == wanted
    other = problems(tmp_path, text + "adapter: {phase_attention: {block: 2}}\n")
    assert (
        len(other) == 1 and "adapter.phase_attention: is {'block': 2}, but phased has" in other[0]
    )
    text = GOOD + f"init_from: {save_mlx(tmp_path / 'plain')}\n"
    recipe = load_recipe(write(tmp_path, text + "adapter: {phase_attention: {block: 2}}\n"))
    assert recipe.adapter.phase_attention == PhaseAttention(block=2)
    for damaged in ({"phases": True}, {"phase_attention": settings}):
        with pytest.raises(ModelError, match="the tensors do not agree with that"):
            read_adapter_file(str(save_mlx(tmp_path / "damaged", **damaged)))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "use_dora is true, and the tensors do not agree"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head, which modules_to_save names"),
        ({"trainable_token_indices": [7]}, "lacks the rows of tokens"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is 2, but the tensors of model.layers.1"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern: ( is no regular expression"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern should give a number above 0"),
        ({"alpha_pattern": {"q_proj": 2}}, "its scales are [0.5, 1.5]; only one can be trained on"),
        ({"bias": "all"}, 'asks for bias ("all"), which forty2 does not compute; merge'),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "asks for target_parameters"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights ("pissa")'),
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"lora_alpha": None}, "r or lora_alpha is missing"),
    ],
)
def test_what_peft_offers_beyond_two_factors_is_refused_by_name(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        read_adapter_file(str(save_peft(tmp_path / "peft", **config)))
    assert says in str(error.value) and str(tmp_path / "peft") in str(error.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is dora"),
        ({"fine_tune_type": "full"}, "name the fused model as the recipe's model"),
        ({"lora_parameters": {"rank": 4, "alpha": 8}}, "lora_parameters.scale is missing"),
    ],
)
def test_mlx_adapters_of_other_kinds_are_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=says):
        read_adapter_file(str(save_mlx(tmp_path / "mlx", **config)))


def test_damaged_and_incomplete_files_are_named(tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        with pytest.raises(ModelError) as error:
            read_adapter_file(str(folder))
        return str(error.value).replace(f"{tmp_path}/", "")

    peft = save_peft(tmp_path / "peft")
    weights = peft / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for part in (b"", whole[:5], whole[:60], whole[:-1], b"\xff" * 8 + whole[8:]):
        weights.write_bytes(part)
        assert said(peft) == (
            "peft/adapter_model.safetensors: damaged or not complete; copy it again"
        )
    a, b = np.ones((4, 32), np.float32), np.ones((8, 4), np.float32)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    for arrays, says in (
        ({f"{name}.lora_A.weight": a}, "is there without its other factor"),
        ({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, "lm_head.weight": a}, "lm_head"),
        ({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, "../../x": a}, "holds ../../x"),
        ({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b[:, :2]}, "have rank 2 and 4"),
    ):
        save_file(arrays, weights)
        assert says in said(peft)
    weights.rename(peft / "adapter_model.bin")
    assert "a pickle may run code" in said(peft)
    (peft / "adapter_model.bin").unlink()
    assert "adapter_model.safetensors is missing" in said(peft)
    (peft / "adapter_config.json").write_text("{")
    assert "adapter_config.json: not readable" in said(peft)
    assert "no adapter here" in said(tmp_path)
