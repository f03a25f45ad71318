"""The reference of recipe keys: complete, described, and in words."""

from __future__ import annotations

import pytest
import yaml

from forty2.errors import RecipeError
from forty2.recipe.keys import Key, as_markdown, as_text, sections
from forty2.recipe.reading import packaged_recipes, recipe_text
from forty2.recipe.schema import SECTIONS, keys_of
from forty2.training.objectives import OBJECTIVES

ALL = {section.name: section for section in sections()}


def key(section: str, name: str) -> Key:
    return next(key for key in ALL[section].keys if key.name == name)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_field_of_a_section_is_described(name: str) -> None:
    assert {key.name for key in ALL[name].keys} == {*keys_of(SECTIONS[name]).values()}
    assert ALL[name].about
    assert [key.name for key in ALL[name].keys if not key.about or not key.type] == []


def test_a_key_that_is_a_word_of_python_has_its_own_name() -> None:
    assert [key.name for key in ALL["replay"].keys] == ["from", "share"]
    assert key("replay", "from").required and "earlier phase" in key("replay", "from").about


def test_every_objective_and_every_section_below_a_phase_is_there() -> None:
    assert {
        "recipe",
        "adapter",
        *OBJECTIVES,
        "red_lines",
        "best",
        "until",
        "fuse",
        "benchmark",
    } <= (ALL.keys())


def test_every_key_of_the_packaged_recipes_is_there() -> None:
    for recipe in packaged_recipes():
        tree = yaml.safe_load(recipe_text(recipe))
        assert tree.keys() <= {key.name for key in ALL["recipe"].keys}
        for phase in tree["phases"].values():
            assert phase.keys() <= {key.name for key in ALL[phase["objective"]].keys}


@pytest.mark.parametrize(
    ("section", "name", "words"),
    [
        ("adapter", "rank", "whole number above 0"),
        ("adapter", "dropout", "number, at least 0 and below 1"),
        ("adapter", "keys", "list of text or null"),
        ("dpo", "lr", "number above 0 and below 1"),
        (
            "dpo",
            "loss",
            "one of sigmoid, robust, hinge, ipo, dpop, sigmoid_norm, exo_pair, nca_pair, "
            "bco_pair, sppo_hard, apo_zero, apo_down, discopop",
        ),
        ("sft", "lint", "true or false"),
        ("sft", "grad_checkpoint", "true or false, or whole number above 0"),
        ("sft", "best", "keys of best or null"),
        ("recipe", "seed", "whole number, at least 0"),
        ("recipe", "phases", "mapping of names to keys of cpo, dpo, kto, orpo, sft or simpo"),
        ("fuse", "quantize", "one of 4, 8, or null"),
    ],
)
def test_types_are_written_in_words(section: str, name: str, words: str) -> None:
    assert key(section, name).type == words


def test_defaults_are_what_a_recipe_takes_when_the_key_is_left_out() -> None:
    assert key("adapter", "scale").default == "10.0"
    assert key("sft", "optimizer").default == "adamw"
    assert key("sft", "lint").default == "true"
    assert key("sft", "valid").default == "null"
    beta = key("dpo", "beta")
    assert beta.required and beta.default is None
    assert not key("recipe", "adapter").required


def test_an_objective_describes_its_own_meaning_of_a_shared_key() -> None:
    assert key("dpo", "beta").about != key("kto", "beta").about
    assert key("dpo", "data").about == key("kto", "data").about


def test_one_section_is_printed_alone() -> None:
    text = as_text("adapter")
    assert "rank: whole number above 0; default 8" in text
    assert "beta" not in text
    assert text in as_text()


def test_another_section_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        RecipeError, match="adaptor: no such section or key; sections are recipe, adapter"
    ):
        as_text("adaptor")


def test_a_key_is_shown_once_for_all_objectives_that_have_it_alike() -> None:
    text = as_text("lr")
    assert text.startswith(
        "cpo, dpo, kto, orpo, sft, simpo: keys of a phase with objective: cpo, dpo,"
    )
    assert text.count("\n  lr: ") == 1
    assert as_text("phases.mine.lr") == text
    betas = [line for line in as_text("beta").splitlines() if line.startswith("  beta: ")]
    assert 1 < len(betas) < 6 and "\n  epochs: " not in as_text("steps")


def test_what_is_around_a_key_chooses_its_section() -> None:
    assert as_text("phases.sft.steps").startswith("sft: keys of a phase with objective: sft\n")
    assert as_text("phases.sft.steps").count("\n  steps: ") == 1
    assert as_text("benchmark.n").startswith("benchmark: keys below benchmark\n\n  n: ")
    assert as_text("phases.sft.best.metric").startswith("best: ")


def test_markdown_has_a_row_of_four_cells_for_every_key() -> None:
    rows = [line for line in as_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(section.keys) for section in ALL.values())
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
