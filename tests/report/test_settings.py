"""Settings of a recipe that are not the defaults, and its data files."""

from __future__ import annotations

import pytest

from forty2.recipe.reading import load_recipe, packaged_recipes, to_yaml
from forty2.report.run_types import PhaseRecord
from forty2.report.settings import RecipeTables, recipe_tables

RECIPE = """
version: 1
name: shop
model: starter
max_length: 1024
adapter: {rank: 16, scale: 10.0}
phases:
  first:
    objective: sft
    data: chats.json
    valid: held.json
    lr: 0.001
    batch_size: 4
    red_lines: {spike: stop, stuck: warn}
benchmark: {margin: 0.02, tasks: [{task: mmlu}]}
"""
PHASE = PhaseRecord("first", "sft", 10, 1200, 30, 1.0, 10, [], [])


def tables(text: str, phases: list[PhaseRecord] | None = None) -> RecipeTables:
    found = recipe_tables(text, phases or [])
    assert found is not None
    return found


def test_settings_that_equal_the_default_are_left_out() -> None:
    changed = {row[0]: row[1:] for row in tables(RECIPE).changed.rows}
    assert changed["adapter.rank"] == ("16", "8")
    assert changed["first.red_lines.spike"] == ("stop", "warn")
    assert changed["benchmark.margin"] == ("0.02", "0.01")
    assert changed["first.lr"] == ("0.001", "none")  # it has no default
    left_out = {"max_length", "adapter.scale", "first.batch_size", "first.red_lines.stuck"}
    assert not left_out & set(changed)


def test_data_files_have_their_rows_once_the_phase_is_finished() -> None:
    rows = [("first, data", "chats.json", "1,200"), ("first, valid", "held.json", "30")]
    assert tables(RECIPE, [PHASE]).data.rows == rows
    assert [row[2] for row in tables(RECIPE).data.rows] == ["–", "–"]


def test_a_key_that_this_release_does_not_know_is_shown() -> None:
    changed = tables(RECIPE + "later: 3\n").changed.rows
    assert ("later", "3", "none") in changed


@pytest.mark.parametrize("name", packaged_recipes())
def test_the_same_settings_are_shown_with_the_defaults_spelled_out(name: str) -> None:
    recipe = load_recipe(name)
    rows = tables(to_yaml(recipe)).changed.rows
    assert rows and not [row for row in rows if row[1] == row[2]]


@pytest.mark.parametrize(
    "text", ["name: [", "just a text", "phases: 3", "", "- a", "a: &a [*a]", "a: 2020-99-99"]
)
def test_a_text_that_is_no_recipe_has_no_tables(text: str) -> None:
    assert recipe_tables(text, []) is None


def test_characters_that_yaml_spells_out_stay_spelled_out() -> None:
    changed = tables(RECIPE.replace("name: shop", 'name: "a\\u202eb\\ud800"')).changed.rows
    assert ("name", r"a\u202eb\ud800", "none") in changed
