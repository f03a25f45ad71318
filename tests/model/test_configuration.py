"""Configurations are read under all the names of their keys, and give a limit and the ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forty2.errors import ModelError
from forty2.model.configuration import complete, read_config, row_limit

LINEAR = {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0}
LLAMA: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 100}


def test_rotary_settings_get_their_older_names() -> None:
    found = complete(LLAMA | {"rope_parameters": LINEAR})
    assert found["rope_theta"] == 500000.0
    assert found["rope_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 4.0}
    assert found["rope_parameters"] == LINEAR
    plain = complete(LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
    assert plain["rope_theta"] == 7.0 and "rope_scaling" not in plain


def test_settings_of_two_types_of_layers_get_their_older_names() -> None:
    sliding = {"rope_type": "default", "rope_theta": 10000.0}
    layers = {"full_attention": LINEAR, "sliding_attention": sliding}
    found = complete({"model_type": "gemma3_text", "rope_parameters": layers})
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (500000.0, 10000.0)
    assert found["rope_scaling"]["factor"] == 4.0


def test_a_nested_configuration_is_completed_too() -> None:
    found = complete({"model_type": "x", "text_config": LLAMA | {"rope_parameters": LINEAR}})
    assert found["text_config"]["rope_theta"] == 500000.0 and "rope_theta" not in found


@pytest.mark.parametrize(
    "older", [{"rope_theta": 10000.0}, {"rope_scaling": {"type": "linear", "factor": 2.0}}]
)
def test_a_contradiction_is_refused(older: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(older))} is .* but rope_parameters says"):
        complete(LLAMA | older | {"rope_parameters": LINEAR})


def test_completing_twice_changes_nothing() -> None:
    once = complete(LLAMA | {"rope_parameters": LINEAR})
    assert complete(once) == once


def test_other_names_that_transformers_knows_are_added() -> None:
    assert complete({"model_type": "qwen3_moe", "num_local_experts": 8})["num_experts"] == 8


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 1}, None, 1),
        ({"eos_token_id": 1}, {"eos_token_id": [2, 1]}, [2, 1]),
        ({"eos_token_id": [1, 3]}, {"eos_token_id": 0}, [0, 1, 3]),
        ({"text_config": {"eos_token_id": 4}}, None, 4),
        ({}, None, None),
    ],
)
def test_every_end_is_collected(
    config: dict[str, Any], generation: dict[str, Any] | None, expected: object, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_config(tmp_path).get("eos_token_id") == expected


@pytest.mark.parametrize(
    ("config", "window", "tokens"),
    [
        (LLAMA, None, 100),
        (LLAMA, 30, 30),
        (LLAMA, 300, 100),
        (LLAMA | {"rope_parameters": LINEAR}, None, 400),
        (
            LLAMA
            | {"rope_parameters": LINEAR | {"rope_type": "yarn"}}
            | {"max_position_embeddings": 400},
            None,
            1600,
        ),
        ({"model_type": "mamba"}, None, 32768),
        ({"model_type": "gpt2", "n_positions": 50}, None, 50),
        ({"model_type": "gemma3", "text_config": LLAMA | {"model_type": "gemma3_text"}}, None, 100),
    ],
)
def test_the_longest_row(config: dict[str, Any], window: int | None, tokens: int) -> None:
    assert row_limit(config, window).tokens == tokens


def test_a_longer_row_is_refused_with_its_place() -> None:
    limit = row_limit(LLAMA, None)
    limit.refuse(100, "a.jsonl:1")
    with pytest.raises(ModelError, match=r"a\.jsonl:7: 101 tokens are more than 100, the model's"):
        limit.refuse(101, "a.jsonl:7")
