"""The model that a run was trained on is found from any folder, or a line says that it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.runs import short_checks
from support.small_run import make_inputs

from forty2.cli import main
from forty2.errors import ModelError
from forty2.files import read_json
from forty2.model.base_model import find_base_model

OLD = Path(__file__).parents[1] / "old_runs"
RECIPE = """
version: 1
name: mine
model: {model}
max_length: 96
adapter: {{rank: 2, layers: 2}}
phases:
  sft: {{objective: sft, data: sft.jsonl, steps: 1, lr: 1.0e-2, lint: false}}
benchmark: null
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another working directory than that of the run, with another model of the same name in it."""
    mx.random.seed(1)
    folder = make_inputs(tmp_path / "elsewhere")
    monkeypatch.chdir(folder)
    return folder


def project(folder: Path, monkeypatch: pytest.MonkeyPatch, model: str = "model") -> Path:
    """Run a recipe in a new project folder; return the run folder."""
    mx.random.seed(0)
    make_inputs(folder)
    (folder / "mine.yaml").write_text(RECIPE.format(model=model))
    with short_checks(), monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FORTY2_CACHE", str(folder / "cache"))
        done = CliRunner().invoke(main, ["run", "mine.yaml"])
    assert done.exit_code == 0, done.output
    return folder / "adapters" / "mine"


def old_project(folder: Path) -> Path:
    """Lay out a run of an earlier release in its project folder; return the run folder."""
    shutil.copytree(OLD / "inputs", folder)
    return Path(shutil.copytree(OLD / "sealed", folder / "adapters" / "old"))


@pytest.mark.parametrize("model", ["model", "./model", "../project/model"])
def test_the_model_of_a_run_is_found_from_any_folder(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    run = project(tmp_path / "project", monkeypatch, model)
    assert read_json(run / "run.json")["model_path"] == str(tmp_path / "project" / "model")
    for adapter in (run, run / "phase1_sft", Path("../project/adapters/mine")):
        found = find_base_model(adapter)
        assert found is not None and Path(found).resolve() == tmp_path / "project" / "model"
    line = ["generate", "-a", str(run), "-p", "hi", "--max-tokens", "2"]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 0 and "warning" not in done.output, done.output
    monkeypatch.chdir(tmp_path / "project")
    assert find_base_model("adapters/mine") == model  # as the user would write it here


def test_the_model_is_found_after_both_were_moved(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose recipe names it by its absolute path."""
    for model in ("model", str(tmp_path / "project" / "model")):
        run = project(tmp_path / "project", monkeypatch, model)
        moved = (tmp_path / "project").rename(tmp_path / "moved")
        assert find_base_model(moved / "adapters" / "mine") == str(moved / "model")
        assert not run.exists()
        shutil.rmtree(moved)


def test_the_model_of_an_old_run_is_found_by_its_weights(tmp_path: Path, elsewhere: Path) -> None:
    run = old_project(tmp_path / "project")
    assert read_json(run / "run.json")["model_path"] == "model"
    assert find_base_model(run) == str(tmp_path / "project" / "model")


def test_a_folder_with_other_weights_is_not_taken_for_it(tmp_path: Path, elsewhere: Path) -> None:
    run = old_project(tmp_path / "project")
    shutil.rmtree(tmp_path / "project" / "model")
    message = f"was trained on the model folder model, and {elsewhere}/model holds other weights"
    with pytest.raises(ModelError, match=message):
        find_base_model(run)
    refused = CliRunner().invoke(main, ["generate", "-a", str(run), "-p", "hi"])
    assert refused.exit_code == 2 and "give the model as --model" in refused.output


def test_a_model_that_is_gone_is_one_line(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = project(tmp_path / "project", monkeypatch)
    for folder in (tmp_path / "project", elsewhere):
        shutil.rmtree(folder / "model")
    refused = CliRunner().invoke(main, ["generate", "-a", str(run), "-p", "hi"])
    assert refused.exit_code == 2 and refused.output.count("\n") == 1
    assert f"was trained on the model folder {tmp_path}/project/model, which is" in refused.output
    assert "give it as --model" in refused.output


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"model": "smollm2", "model_path": "/cache/models/smollm2-135m"}, "smollm2"),
        (
            {"model": "owner/name", "model_path": "/cache/models--owner--name/snapshots/0"},
            "owner/name",
        ),
        ({"model": "owner/name"}, "owner/name"),
        ({}, None),
    ],
)
def test_a_name_that_is_no_folder_is_left_as_it_is(
    tmp_path: Path, record: dict[str, str], name: str | None
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert find_base_model(tmp_path) == name
