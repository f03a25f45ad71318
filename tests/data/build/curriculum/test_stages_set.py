"""The stages of MyPT's phase 3a: counts, and that no wording or content of validation is trained on."""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from forty2.benchmark.eval_prompt_files import load_eval_prompts
from forty2.data.build import build
from forty2.data.build.curriculum import STAGES, stage_prompts
from forty2.data.build.curriculum import stage as build_stage
from forty2.data.build.curriculum.chat_rows import SYSTEM, user
from forty2.data.build.curriculum.held_out import words
from forty2.data.library import material
from forty2.errors import BenchmarkError
from forty2.recipe.reading import load_recipe

stage = functools.cache(build_stage)


@pytest.mark.parametrize("name", STAGES)
def test_nothing_of_a_prompt_is_trained_on_whatever_the_seed_and_the_stage(name: str) -> None:
    prompts = {*stage_prompts(name)["prompts"].values()}
    asked = [row for seed in (42, 43, 44) for row in stage(name, seed).valid]
    assert prompts <= {user(row) for row in asked}
    templates, payloads = (
        {row[key] for row in asked if key in row} for key in ("template", "payload")
    )
    for other in STAGES if payloads else (name,):
        for rows in (stage(other, 42).train, stage(other, 7).train):
            assert rows
            assert not prompts & {user(row) for row in rows}
            assert not templates & {row.get("template") for row in rows}
            assert not payloads & {row.get("payload") for row in rows}


@pytest.mark.parametrize("language", ["en", "de"])
def test_no_wording_that_operators_are_asked_in_is_one_of_the_echoes(language: str) -> None:
    held = {row["template"] for row in stage("mypt-operators", 42).valid}
    texts = material("curriculum/operators")[language]["copy"]
    asked = {words(texts[int(name[-2:]) - 1]) for name in held if f"copy-{language}" in name}
    assert asked and not asked & set(map(words, material("curriculum/echo")[language]["templates"]))


def test_no_sentence_that_something_is_extracted_from_is_trained_on() -> None:
    trained = [user(row) for row in stage("mypt-operators", 7).train]
    for row in stage("mypt-operators", 42).valid:
        if row["operator"] == "extract":
            # The last sentence, up to the payload with its marks and from there on.
            before, after = (part[-12:] for part in user(row).split(row["payload"], 1))
            before, after = before[:-1].rpartition(": ")[2], after[1:]
            assert not any(before in text and text.endswith(after) for text in trained)


def test_the_recipe_gates_what_is_asked_in_both_languages() -> None:
    gates = {}
    for phase in load_recipe("mypt-phase3a").phases.values():
        assert phase.gate and phase.eval_prompts == phase.data
        prompts = load_eval_prompts(phase.eval_prompts)
        asked = Counter((item.bucket, item.system == SYSTEM["de"]) for item in prompts.items)
        for bucket, share in phase.gate.items():
            gates[bucket] = share
            for german in (False, True):
                assert bucket == "all" or asked[bucket, german] == 25, (bucket, german)
        assert {one.match for one in prompts.items} == {"exact"} and prompts.form == "user"
    reached = {"format": 0.95, "echo": 0.8, "anti": 0.8, "gibberish": 0.8}
    assert gates == reached | {"copy": 0.8, "wrap": 0.8, "extract": 0.6, "all": 0.75}


def test_a_set_has_the_rows_that_it_states() -> None:
    stated = {"mypt-alpha": 840, "mypt-gamma": 2_100, "mypt-operators": 1_500}
    assert {name: len(build(name).train) for name in stated} == stated
    assert len(build("mypt-alpha-full").train) > 840
    operators = Counter(row["operator"] for row in build("mypt-operators").train)
    assert min(operators.values()) > 450


def test_prompts_of_another_name_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="builtin:mypt-delta: there are no such eval prompts"):
        load_eval_prompts("builtin:mypt-delta")
