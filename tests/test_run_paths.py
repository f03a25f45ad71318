"""A run is found by what a user calls it, and its phases in the order of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.errors import RunError
from forty2.run_paths import (
    expand_run_name,
    finished_phases,
    phase_label,
    run_folder,
    suggest_run,
)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a recipe named `shop`, whose run has a finished phase; it is the working directory's."""
    monkeypatch.chdir(tmp_path)
    recipe, run = Path("mine", "bicycles"), Path("adapters", "shop")
    for folder in (recipe, run / "phase1_sft"):
        folder.mkdir(parents=True)
    (recipe / "recipe.yaml").write_text("version: 1\nname: shop\n")
    (run / "run.json").touch()
    (run / "recipe.yaml").write_text("name: other\n")
    (run / "phase1_sft" / "adapter_config.json").touch()
    return recipe


def test_a_recipe_folder_and_a_name_stand_for_their_run(shop: Path) -> None:
    run = Path("adapters", "shop")
    for name in (shop, f"{shop}/", shop.absolute(), "shop", "shop/", run):
        assert expand_run_name(name) == run_folder(name) == run
    for name in (shop / "sft", "shop/sft"):
        assert expand_run_name(name) == run / "sft"
    assert expand_run_name("shop/phase1_sft") == run / "phase1_sft"


def test_a_recipe_without_a_name_is_named_after_its_folder(shop: Path) -> None:
    (shop / "recipe.yaml").rename("recipe.yaml")
    Path("shop").mkdir()
    for text in ("version: 1", "{", "name: ../shop", "[]"):
        Path("shop", "recipe.yaml").write_text(text)
        assert expand_run_name("./shop") == Path("adapters", "shop")


@pytest.mark.parametrize(
    "file", ["config.json", "adapter_config.json", "phase1_x/adapter_config.json"]
)
def test_a_model_or_an_adapter_of_the_same_name_stands_for_itself(shop: Path, file: str) -> None:
    for folder in (shop, Path("shop")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
        assert expand_run_name(folder) == folder


@pytest.mark.usefixtures("shop")
def test_names_of_the_hub_and_of_nothing_stand_for_themselves() -> None:
    for name in (
        "shop/model",
        "owner/shop",
        "shp",
        "./none/shop",
        "x" * 5000,
        "/shop",
        "..",
        "adapters",
    ):
        assert expand_run_name(name) == Path(name)


@pytest.mark.usefixtures("shop")
def test_a_sweep_s_recipe_is_not_taken_for_that_of_a_run() -> None:
    sweep = Path("adapters", "sweep")
    sweep.mkdir()
    (sweep / "recipe.yaml").write_text("name: shop\n")
    assert expand_run_name(sweep) == sweep


def test_what_was_meant_is_suggested(shop: Path) -> None:
    assert suggest_run("shp") == suggest_run("adapter/shopp") == "; did you mean adapters/shop?"
    assert suggest_run("else") == suggest_run("adapters/shop") == ""
    assert suggest_run("shop/dpo") == "; the finished phases of adapters/shop are sft"
    assert suggest_run(shop / "dpo") == suggest_run("shop/dpo")
    Path("adapters", "shop", "run.json").unlink()
    assert suggest_run(shop).endswith(f"no run in adapters/shop yet: forty2 run {shop}")
    with pytest.raises(RunError, match="no run in adapters/shop yet"):
        run_folder(shop)


def test_phases_are_found_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    names = [f"name_{n}.x" for n in range(12)]
    for number, name in enumerate(names, 1):
        folder = tmp_path / phase_label(number, name)
        folder.mkdir()
        (folder / "phase.json").touch()
    (tmp_path / "phases_of_mine").mkdir()
    (tmp_path / "phases_of_mine" / "phase.json").touch()
    (tmp_path / phase_label(13, "unfinished")).mkdir()
    assert [*finished_phases(tmp_path).values()] == names
