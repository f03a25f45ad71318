"""PEFT's configuration and tensors, read without mlx: which layers they name, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.peft_folders import Arrays, factors, random_array, save_peft

from forty2.errors import ModelError
from forty2.recipe.peft_adapter import is_peft, is_target, read_peft

LAYER = "model.layers.1.self_attn.q_proj"
FACTORS = factors({LAYER: (32, 32)})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"target_modules": ["q_proj"]}, True),
        ({"target_modules": ["attn.q_proj"]}, False),  # only whole parts of a name
        ({"target_modules": ["proj"]}, False),
        ({"target_modules": [LAYER], "layers_to_transform": [7]}, True),  # in full: in any block
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}, True),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, False),
        ({"target_modules": ["q_proj"], "layers_to_transform": []}, True),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "h"}, False),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["layers"]},
            True,
        ),
        ({"target_modules": r".*\.1\..*q_proj"}, True),
        ({"target_modules": "q_proj"}, False),  # a regular expression of the whole name
        ({"target_modules": "all-linear"}, None),
        ({"target_modules": "ALL-LINEAR", "exclude_modules": ["q_proj"]}, False),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["self_attn"]}, False),
        ({}, False),
    ],
)
def test_a_configuration_names_layers_as_peft_reads_it(
    config: dict[str, Any], named: bool | None
) -> None:
    assert is_target(config, LAYER) is named


def test_the_first_pattern_that_fits_gives_rank_and_alpha(tmp_path: Path) -> None:
    arrays = factors({LAYER: (32, 32), "model.layers.11.self_attn.q_proj": (32, 32)}, q_proj=2)
    ranks, alphas = {"q_proj": 2, LAYER: 9}, {"1.self_attn.q_proj": 10, "q_proj": 3}
    found = read_peft(
        save_peft(tmp_path / "peft", arrays, rank_pattern=ranks, alpha_pattern=alphas)
    )
    assert {one.rank for one in found.layers.values()} == {2}
    # the dot of the pattern is no part of "11"
    assert [one.scale for _, one in sorted(found.layers.items())] == [5.0, 1.5]


def test_names_of_every_release_are_read(tmp_path: Path) -> None:
    a, b = FACTORS.values()
    for number, arrays in enumerate(
        (
            {f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b},
            {f"{LAYER}.lora_A.default.weight": a, f"{LAYER}.lora_B.default.weight": b},
        )
    ):
        found = read_peft(save_peft(tmp_path / str(number), arrays))
        assert list(found.layers) == [LAYER]
    norms: Arrays = {
        "model.norm.modules_to_save.default.weight": random_array(32),
        f"{LAYER}.lora_magnitude_vector.weight": random_array(32),
    }
    config = {"use_dora": True, "modules_to_save": ["norm"]}
    found = read_peft(save_peft(tmp_path / "norms", {**FACTORS, **norms}, **config))
    assert list(found.whole) == ["model.norm.weight"] and found.layers[LAYER].norm is not None


def test_what_peft_wrote_is_known_by_its_configuration_or_its_weights(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "peft", FACTORS)
    assert is_peft(folder)
    (folder / "adapter_config.json").write_text("{")
    assert is_peft(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapters.safetensors")
    assert not is_peft(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": 5}, "target_modules should be names of layers"),
        ({"target_modules": ["q_proj", 5]}, "target_modules should be names of layers"),
        ({"target_modules": "("}, "target_modules: ( is no regular expression"),
        ({"exclude_modules": {"q_proj": 1}}, "exclude_modules should be names of layers"),
        ({"modules_to_save": "lm_head"}, "modules_to_save should be names of layers"),
        ({"layers_pattern": 5}, "layers_pattern should be names of layers"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform should be whole numbers"),
        ({"trainable_token_indices": 5}, "trainable_token_indices should be ids"),
        ({"r": 4.0}, "r or lora_alpha is missing, or no number above 0"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern should give a number above 0"),
        ({"rank_pattern": [4]}, "rank_pattern should give a number above 0"),
        ({"use_qalora": True}, "asks for use_qalora (true), which forty2 does not compute"),
        ({"init_lora_weights": "pissa"}, 'asks for init_lora_weights ("pissa")'),
        ({"bias": "lora_only"}, 'asks for bias ("lora_only")'),
        ({"peft_type": "IA3"}, "peft_type is IA3; forty2 reads LORA alone"),
    ],
)
def test_a_configuration_that_is_damaged_or_asks_for_more_is_one_line(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        read_peft(save_peft(tmp_path / "peft", FACTORS, **config))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "peft" / "adapter_config.json"))


@pytest.mark.parametrize(
    ("rows", "indices"),
    [
        ((2, 32), [7]),
        ((2, 32), [7, 7]),
        ((2, 32), [7, -1]),
        ((2, 32), {"wte": [7, 8]}),
        ((2, 32), None),
        ((2, 32), {"embed_tokens": 5}),
    ],
)
def test_rows_that_no_ids_belong_to_are_refused(
    rows: tuple[int, int], indices: Any, tmp_path: Path
) -> None:
    name = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    arrays = {**FACTORS, name: random_array(*rows)}
    with pytest.raises(ModelError, match="trainable_token_indices does not name the 2 rows of"):
        read_peft(save_peft(tmp_path / "peft", arrays, trainable_token_indices=indices))


def test_dora_on_an_embedding_is_refused(tmp_path: Path) -> None:
    arrays = {
        "embed_tokens.lora_embedding_A": random_array(4, 300),
        "embed_tokens.lora_embedding_B": random_array(32, 4),
        "embed_tokens.lora_magnitude_vector": random_array(32),
    }
    with pytest.raises(ModelError, match="has DoRA on embed_tokens, an embedding"):
        read_peft(save_peft(tmp_path / "peft", arrays, use_dora=True))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "peft", FACTORS)
    assert read_peft(folder).record == {}
    (folder / "forty2.json").write_text(json.dumps([1]))
    with pytest.raises(ModelError, match=r"forty2\.json: holds no adapter's configuration"):
        read_peft(folder)
