"""The stages of MyPT's phase 3a: counts, and that no wording or content of validation is trained on."""

from __future__ import annotations

import pytest

from forty2.benchmark.eval_prompt_files import load_eval_prompts
from forty2.data.build import build
from forty2.data.build.curriculum import STAGES, stage, stage_prompts
from forty2.data.build.curriculum.chat_rows import user
from forty2.errors import BenchmarkError

GATED = {"mypt-alpha": "format", "mypt-beta": "echo", "mypt-gamma": "gibberish", "mypt-3a2": "sums"}


@pytest.mark.parametrize("name", STAGES)
def test_nothing_of_a_prompt_is_trained_on_whatever_the_seed(name: str) -> None:
    prompts = {*stage_prompts(name)["prompts"].values()}
    first = stage(name, 42)
    assert first.train and first.valid
    assert prompts <= {user(row) for row in first.valid}
    templates, payloads = (
        {row[key] for row in first.valid if key in row} for key in ("template", "payload")
    )
    for rows in (first.train, stage(name, 7).train):
        assert not prompts & {user(row) for row in rows}
        assert not templates & {row.get("template") for row in rows}
        assert not payloads & {row.get("payload") for row in rows}


@pytest.mark.parametrize(("name", "bucket"), GATED.items())
def test_a_gated_bucket_has_enough_prompts(name: str, bucket: str) -> None:
    prompts = load_eval_prompts(f"builtin:{name}")
    assert sum(one.bucket == bucket for one in prompts.items) >= 35
    assert {one.match for one in prompts.items} == {"exact"} and prompts.form == "user"


def test_a_set_has_the_rows_that_it_states() -> None:
    stated = {"mypt-alpha": 840, "mypt-gamma": 2_100}
    assert {name: len(build(name).train) for name in stated} == stated
    assert len(build("mypt-alpha-full").train) > 840


def test_prompts_of_another_name_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="builtin:mypt-delta: there are no such eval prompts"):
        load_eval_prompts("builtin:mypt-delta")
