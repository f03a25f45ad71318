"""Tags of a recipe: which are taken, and what is said about those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recipes import GOOD, problems, write

from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.tags import BUILT_IN, AddedTags, check_tags, tag_settings, with_tags


def test_mypt_names_its_nineteen_tags_in_the_order_of_their_ids(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, f"tags: mypt\n{GOOD}"))
    settings = tag_settings(recipe)
    assert settings is not None
    tags = list(settings.starts)
    assert len(tags) == 19 and tags[-1] == "<myPT_eot>"
    assert tags[:6] == [
        f"<{slash}myPT_{name}>" for name in ("system", "user", "assistant") for slash in ("", "/")
    ]
    assert all(settings.starts.values()) and tags == list(BUILT_IN["mypt"])


def test_a_tag_without_a_description_begins_as_the_pieces_of_its_text(tmp_path: Path) -> None:
    settings = tag_settings(load_recipe(write(tmp_path, f"tags: [<a>, <b>]\n{GOOD}")))
    assert settings is not None and settings.starts == {"<a>": "<a>", "<b>": "<b>"}


def test_a_mapping_gives_descriptions_and_tokens_and_survives_writing(tmp_path: Path) -> None:
    text = (
        f"tags: {{<a>: one thing, <b>: [two, tokens]}}\ntags_init: {{noise: 0.1, seed: 3}}\n{GOOD}"
    )
    recipe = load_recipe(write(tmp_path, text))
    settings = tag_settings(recipe)
    assert settings is not None
    assert settings.starts == {"<a>": "one thing", "<b>": ("two", "tokens")}
    assert (settings.noise, settings.seed) == (0.1, 3)
    assert load_recipe(write(tmp_path, to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tags: mypy", "'mypy' is no built-in set of tags; use mypt"),
        ("tags: []", "should be a list of tags"),
        ("tags: 3", "should be a list of tags"),
        ("tags: ['']", "'' should be 1 to 64 characters"),
        ("tags: [3]", "3 is no text; put it in quotes"),
        ("tags: ['<a b>']", "'<a b>' should be 1 to 64 characters of ASCII without white space"),
        ("tags: [<ä>]", "'<ä>' should be"),
        ("tags: [<a>, <a>]", "<a> is there twice"),
        ("tags: [<a><b>, <b>]", "<b> is a part of <a><b>; give it another name"),
        ("tags: {<a>: ''}", "<a>: should be a description, or a list of tokens"),
        ("tags: {<a>: []}", "<a>: should be a description, or a list of tokens"),
        ("tags_init: {noise: 0.1}", "there are no tags; name them in tags"),
        ("tags_init: {pad_to: 65537}", "should be less than or equal to 65536, not 65537"),
    ],
)
def test_what_is_no_tag_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (found,) = problems(tmp_path, f"{text}\n{GOOD}")
    assert found.startswith("recipe.yaml:1: tags") and message in found


def test_ten_thousand_tags_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tags: 10,000 are too many \(limit 1,000\)"):
        check_tags([f"<{n}>" for n in range(10_000)])


def test_a_learning_rate_of_tags_needs_tags(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("lr: 1e-4", "lr: 1e-4, tags_lr: 1e-3"))
    assert "sft: tags_lr is there, but no tags" in found


def test_a_base_with_other_tags_is_another_base(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, GOOD))
    tagged = load_recipe(write(tmp_path, f"tags: [<a>]\n{GOOD}"))
    noisy = load_recipe(write(tmp_path, f"tags: [<a>]\ntags_init: {{noise: 0.1}}\n{GOOD}"))
    assert with_tags("x", plain) == "x"
    assert len({with_tags("x", recipe) for recipe in (plain, tagged, noisy)}) == 3


@pytest.mark.parametrize("record", [None, [], {"tokens": []}, {"tokens": ["<a>"], "first_id": 1}])
def test_a_damaged_record_is_told_from_a_whole_one(record: object) -> None:
    whole = AddedTags(("<a>",), 258, 320)
    assert AddedTags.from_json(whole.to_json()) == whole
    with pytest.raises(ValueError, match="no record"):
        AddedTags.from_json(record)
