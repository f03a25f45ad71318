"""A run that goes by overrides is not resumed without them by accident."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import pytest
from support.cli import refused
from support.small_run import make_inputs

from forty2.errors import RunError
from forty2.files import write_json
from forty2.recipe.reading import read_recipe, to_yaml
from forty2.runs.missing_settings import refuse_missing_settings

STEPS = "phases.sft.steps=4", "phases.dpo.steps=3"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(0)
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a recipe of whole epochs, a day old."""
    text = (inputs / "recipe.yaml").read_text()
    text = text.replace("steps: 5,", "epochs: 10,")
    (tmp_path / "recipe.yaml").write_text(text)
    os.utime(tmp_path / "recipe.yaml", (1e9, 1e9))
    monkeypatch.chdir(tmp_path)


def begin(*overrides: str) -> Path:
    """Write what a run of the recipe with these overrides has in its folder once it has begun."""
    path = Path("run")
    path.mkdir()
    (path / "recipe.yaml").write_text(to_yaml(read_recipe("recipe.yaml", overrides).recipe, path))
    (path / "metrics.jsonl").touch()
    write_json(path / "run.json", {})
    return path


def missing(*overrides: str) -> str:
    """Return why the run is not resumed with these overrides; "": it is."""
    recipe = read_recipe("recipe.yaml", overrides).recipe
    keys = [override.partition("=")[0] for override in overrides]
    try:
        refuse_missing_settings(Path("run"), recipe, Path("recipe.yaml"), keys)
    except RunError as error:
        return str(error)
    return ""


def test_the_command_that_goes_on_is_printed() -> None:
    begin(*STEPS)
    line = refused("run", "recipe.yaml", "--run-dir", "run", "--resume")
    assert "run: goes by phases.sft.steps=4, phases.dpo.steps=3, which is not set now" in line
    assert (
        "forty2 run recipe.yaml --run-dir run --resume --set phases.sft.steps=4 --set "
        "phases.dpo.steps=3" in line
    )


@pytest.mark.parametrize(
    ("began", "now", "says"),
    [
        (STEPS, STEPS, ""),
        (STEPS, STEPS[:1], "goes by phases.dpo.steps=3, which"),
        (STEPS, ("phases.sft.epochs=10", "phases.dpo.steps=9"), ""),
        (("seed=7", "adapter.rank=4"), (), "goes by seed=7, adapter.rank=4, which"),
        (("phases.dpo.lr=0.5",), (), "goes by phases.dpo.lr=0.5, which"),
        (("phases.sft.eval_every_steps=1",), ("phases.sft.lr=0.5",), "eval_every_steps=1, which"),
        ((), ("seed=7",), ""),
        (("fuse=null",), (), ""),
        (("phases.sft.data=a/b.jsonl",), (), ""),
    ],
)
def test_settings_are_missing_that_nothing_decides_now(
    began: tuple[str, ...], now: tuple[str, ...], says: str
) -> None:
    """Neither those that an option sets, nor those that concern only what comes after all phases."""
    Path("a").mkdir()
    Path("a/b.jsonl").write_text("{}")
    begin(*began)
    found = missing(*now)
    assert says in found and bool(found) == bool(says)


def test_a_recipe_that_was_edited_or_a_run_that_has_not_begun_may_differ() -> None:
    path = begin(*STEPS)
    assert missing()
    os.utime("recipe.yaml")
    os.utime(path / "recipe.yaml", (1e9, 1e9))
    assert not missing()
    os.utime("recipe.yaml", (1e9 - 1, 1e9 - 1))
    assert missing()
    (path / "metrics.jsonl").unlink()
    assert not missing()
