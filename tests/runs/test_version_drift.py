"""Runs that older releases began: they go on, or one line says why not and what to do.

`old_runs/` holds a run as each format's own release left it, stopped in its second phase
(`old_runs/make.py`):

unsealed    format 1, checkpoints without checksums
sealed      format 1, checkpoints with checksums and one best adapter a phase
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from forty2.errors import RunError
from forty2.files import find_damage, read_json
from forty2.recipe.reading import load_recipe
from forty2.runs.folder import VERSION
from forty2.runs.pipeline import run

OLD = Path(__file__).parents[1] / "old_runs"


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the inputs and both runs, and the working directory."""
    shutil.copytree(OLD / "inputs", tmp_path, dirs_exist_ok=True)
    for name in ("unsealed", "sealed"):
        shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return tmp_path


def resume(name: str) -> list[dict[str, Any]]:
    """The metrics of a run, gone on with to its end."""
    path = run(load_recipe("recipe.yaml"), run_dir=name, resume=True).path
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def steps(metrics: list[dict[str, Any]], key: str) -> list[int]:
    return [m["step"] for m in metrics if m["phase"] == "dpo" and key in m]


def test_a_run_with_sealed_checkpoints_goes_on_from_the_newest(begun: Path) -> None:
    before = [json.loads(line) for line in Path("sealed/metrics.jsonl").read_text().splitlines()]
    assert read_json(Path("sealed/run.json"))["version"] == 1 < VERSION
    after = resume("sealed")
    assert steps(before, "loss") == [1, 2, 3, 4, 5] and steps(after, "loss") == list(range(1, 8))
    to_4 = [m for m in before if m["phase"] == "sft" or m["step"] <= 4]
    assert after[: len(to_4)] == to_4  # what came after the checkpoint came again
    assert read_json(Path("sealed/run.json"))["version"] == VERSION
    assert find_damage(Path("sealed/phase1_sft")) is find_damage(Path("sealed/phase2_dpo")) is None
    record = read_json(Path("sealed/phase2_dpo/phase.json"))
    assert record["kept_step"] == max(steps(after, "valid_loss"))  # the best of a falling loss
    assert sorted(p.name for p in Path("sealed/work/phase2_dpo").iterdir()) == ["best6", "step6"]


def test_a_best_adapter_of_an_old_run_is_still_the_best(begun: Path) -> None:
    """With steps after it that are all worse: its file is found under the new name."""
    state = Path("sealed/work/phase2_dpo/step4/state.json")
    record = read_json(state)
    assert record["best"]["step"] == 4
    with pytest.raises(RunError, match=r"unheard: .*go on with that one, or delete"):
        rewrite(state, {**record, "unheard": 1})
        resume("sealed")
    rewrite(state, {**record, "best": {"step": 4, "valid": {**record["valid"], "loss": -1.0}}})
    best = Path("sealed/work/phase2_dpo/best4/adapters.safetensors").read_bytes()
    resume("sealed")
    assert read_json(Path("sealed/phase2_dpo/phase.json"))["kept_step"] == 4
    assert Path("sealed/phase2_dpo/adapters.safetensors").read_bytes() == best


def rewrite(state: Path, record: dict[str, Any]) -> None:
    from forty2.files import seal, write_json

    write_json(state, record)
    seal(state.parent)


def test_an_unsealed_checkpoint_is_refused_and_deleting_it_is_enough(begun: Path) -> None:
    with pytest.raises(RunError) as error:
        resume("unsealed")
    assert str(error.value) == (
        "unsealed/work/phase2_dpo/last: a checkpoint without checksums, by a release that wrote "
        "none; go on with that release, or delete unsealed/work/phase2_dpo: the phase starts "
        "anew"
    )
    assert read_json(Path("unsealed/run.json"))["version"] == 1  # so that release can
    shutil.rmtree("unsealed/work/phase2_dpo")
    assert steps(resume("unsealed"), "loss") == list(range(1, 8))


def test_both_old_runs_end_alike(begun: Path) -> None:
    resume("sealed")
    shutil.rmtree("unsealed/work/phase2_dpo")
    shutil.rmtree("fused")
    resume("unsealed")
    # Not the same bytes: the sealed run's first steps were taken by the old release, which formed
    # other batches and rounded otherwise.
    one, other = (
        read_json(Path(run, "phase2_dpo", "phase.json")) for run in ("sealed", "unsealed")
    )
    assert one["steps"] == other["steps"]
    for metric, value in one["valid"].items():
        assert value == pytest.approx(other["valid"][metric], rel=0.05, abs=0.05), metric


def test_what_a_newer_release_wrote_is_refused_with_what_to_do(begun: Path) -> None:
    record = read_json(Path("sealed/run.json"))
    Path("sealed/run.json").write_text(json.dumps({**record, "version": VERSION + 1}))
    with pytest.raises(RunError, match=r"run format 3, this one reads 1 to 2\); go on with that"):
        resume("sealed")
    Path("sealed/run.json").write_text(json.dumps(record))
    recipe = Path("sealed/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("steps: 7", "steps: 7\n    warp: 9"))
    with pytest.raises(RunError, match=r"recipe.yaml:\d+: phases.dpo.warp: unknown key.*; go on"):
        resume("sealed")


def test_a_run_does_not_go_on_with_another_recipe_or_model(begun: Path) -> None:
    old = Path("recipe.yaml").read_text()
    Path("recipe.yaml").write_text(old.replace("beta: 0.1", "beta: 0.2"))
    with pytest.raises(RunError, match=r"another recipe .*beta: 0\.1 → 0\.2.*sealed/recipe.yaml"):
        resume("sealed")
    Path("recipe.yaml").write_text(old)
    weights = bytearray(Path("model/model.safetensors").read_bytes())
    weights[-1] ^= 1
    Path("model/model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match=r"other weights than model holds now .*put those back"):
        resume("sealed")
