"""A translated recipe as YAML is the recipe that a run takes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from forty2.cli import main
from forty2.recipe.reading import load_recipe

FILES = Path(__file__).parent / "phasegpt"


@pytest.mark.parametrize("track", ["track_a", "track_b", "track_c"])
def test_what_convert_prints_is_the_recipe_that_a_run_takes(
    track: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(FILES / f"{track}.yaml")
    result = CliRunner().invoke(main, ["recipe", "convert", source])
    assert result.exit_code == 0
    Path("ours.yaml").write_text(result.stdout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_recipe("ours.yaml") == load_recipe(source)
    comments = [line for line in result.stdout.splitlines() if line.lstrip().startswith("#")]
    assert any("model.lora_config.lora_alpha" in line for line in result.stdout.splitlines())
    assert "# Without a counterpart:" in comments
    assert all(len(line) <= 100 for line in comments if source not in line)


def test_a_recipe_of_ours_is_not_converted() -> None:
    result = CliRunner().invoke(main, ["recipe", "convert", "phasegpt-track-a"])
    assert result.exit_code == 2
    assert "is a recipe of ours already" in result.output
