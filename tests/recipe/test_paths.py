"""Paths in a recipe lead from its file, wherever the command is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.recipes import GOOD

from forty2.errors import RecipeError
from forty2.recipe.paths import STORED
from forty2.recipe.reading import load_recipe, to_yaml

SHOP = """\
version: 1
name: shop
model: models/tiny
chat_template: chat.jinja
phases:
  sft: {objective: sft, data: data/chats.jsonl, valid: data/held.jsonl, eval_prompts: ask.json,
    steps: 1, lr: 1e-4}
  more: {objective: sft, data: "builtin:spark-sft", valid: "hub:owner/name", steps: 1, lr: 1e-4,
    replay: [{from: sft, share: 0.1}, {from: data/old.jsonl, share: 0.1}]}
fuse: {out: fused}
benchmark:
  questions: questions.json
  tasks: [truthfulqa, {task: mmlu, data: mmlu}]
"""
FILES = (
    "chat.jinja",
    "data/chats.jsonl",
    "data/held.jsonl",
    "data/old.jsonl",
    "ask.json",
    "questions.json",
    "mmlu/x",
)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `shop` in the working directory, with a recipe and all its files."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "shop")
    (tmp_path / "shop" / "recipe.yaml").write_text(SHOP, "utf-8")
    return Path("shop")


def fill(folder: Path) -> None:
    for name in (*FILES, "models/tiny/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", "utf-8")


def paths_of(recipe_text: str) -> list[str]:
    keys = ("model", "chat_template", "data", "valid", "eval_prompts", "out", "questions", "from")
    lines = (line.strip().removeprefix("- ").split(": ") for line in recipe_text.splitlines())
    return [value for key, *rest in lines if key in keys for value in rest if value != "null"]


def test_every_path_leads_from_the_recipe_and_names_stay(shop: Path) -> None:
    assert paths_of(to_yaml(load_recipe(shop / "recipe.yaml"))) == [
        "shop/models/tiny",
        "shop/chat.jinja",
        "shop/data/chats.jsonl",
        "shop/data/held.jsonl",
        "shop/ask.json",
        "builtin:spark-sft",
        "hub:owner/name",
        "sft",
        "shop/data/old.jsonl",
        "shop/fused",
        "shop/questions.json",
        "shop/mmlu",
    ]


def test_a_folder_stands_for_the_recipe_in_it(shop: Path) -> None:
    assert load_recipe(shop) == load_recipe(shop / "recipe.yaml")


def test_a_mistyped_folder_is_named_by_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"shpo: no such recipe, .*; did you mean shop\?"):
        load_recipe("shpo")


def test_a_folder_without_a_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe; the folder holds no recipe"):
        load_recipe(tmp_path)


def test_the_same_recipe_is_read_from_inside_its_folder(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    assert "data: data/chats.jsonl" in to_yaml(load_recipe("recipe.yaml"))


def test_a_stored_recipe_leads_from_where_it_is_stored_also_after_a_move(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path("adapters", "shop")
    run.mkdir(parents=True)
    recipe = load_recipe(shop)
    (run / "recipe.yaml").write_text(to_yaml(recipe, run), "utf-8")
    (run / "run.json").write_text("{}", "utf-8")
    assert "data: ../../shop/data/chats.jsonl" in (run / "recipe.yaml").read_text("utf-8")
    assert load_recipe(run) == recipe

    there = Path("colleague")
    there.mkdir()
    shutil.move("shop", there)
    shutil.move("adapters", there)
    monkeypatch.chdir(there)
    assert load_recipe(run) == recipe


def test_a_recipe_of_an_earlier_release_leads_from_the_working_directory(shop: Path) -> None:
    run = Path("adapters", "shop")
    run.mkdir(parents=True)
    recipe = load_recipe(shop)
    (run / "recipe.yaml").write_text(to_yaml(recipe), "utf-8")
    (run / "run.json").write_text("{}", "utf-8")
    assert load_recipe(run) == recipe
    assert to_yaml(recipe, run).startswith(STORED)


def test_an_override_leads_from_the_working_directory(shop: Path) -> None:
    Path("mine.jsonl").write_text("{}", "utf-8")
    recipe = load_recipe(shop, ["phases.sft.data=mine.jsonl"])
    assert recipe.phases["sft"].data == "mine.jsonl"


def test_an_absolute_path_stays_absolute(shop: Path, tmp_path: Path) -> None:
    data = tmp_path / "shop" / "data" / "chats.jsonl"
    (shop / "recipe.yaml").write_text(SHOP.replace("data/chats.jsonl", str(data)), "utf-8")
    recipe = load_recipe(shop)
    assert recipe.phases["sft"].data == str(data)
    assert f"data: {data}" in to_yaml(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("data/chats.jsonl", "phases.sft.data", "data/chats.jsonl"),
        ("chat.jinja", "chat_template", "chat.jinja"),
        ("mmlu", "benchmark.tasks.1.data", "mmlu"),
        ("models", "model", "models/tiny"),
    ],
)
def test_what_is_found_from_the_working_directory_only_is_said(
    shop: Path, name: str, key: str, value: str
) -> None:
    shutil.move(shop / name, shop / "moved")
    fill(Path())
    with pytest.raises(RecipeError) as error:
        load_recipe(shop)
    text = str(error.value)
    assert text.startswith("shop/recipe.yaml:") and f": {key}: shop/{value}: no such" in text
    assert text.endswith(f"so write ../{value}") and "\n" not in text


def test_a_model_of_the_hub_is_no_folder(shop: Path) -> None:
    (shop / "recipe.yaml").write_text(SHOP.replace("models/tiny", "owner/name-0.5B"), "utf-8")
    recipe = load_recipe(shop)
    assert recipe.model == "owner/name-0.5B"
    assert "model: owner/name-0.5B\n" in to_yaml(recipe, Path("adapters/shop"))


def test_the_starter_and_packaged_recipes_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes", "mine.yaml").write_text(GOOD, "utf-8")
    assert load_recipe("recipes/mine.yaml").model == "smollm2"
    assert load_recipe("demo").model == "smollm2"
