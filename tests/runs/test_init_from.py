"""Runs that go on from an adapter: what they begin with, record, refuse and hand on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx_lm.tuner.utils import load_adapters
from support.small_run import make_inputs

from forty2.benchmark.replies import Faults
from forty2.cli import main
from forty2.errors import RunError
from forty2.files import read_json
from forty2.model.adapter import load_arrays
from forty2.model.loading import load
from forty2.recipe.reading import load_recipe
from forty2.runs import inputs as runs_inputs
from forty2.runs.pipeline import run

RECIPE = """
version: 1
name: mine
model: model
max_length: 96
phases:
  {phase}
fuse: null
benchmark: null
"""
SFT = "sft: {objective: sft, data: sft.jsonl, steps: 4, lr: 1.0e-2, lint: false}"
DPO = "dpo: {objective: dpo, data: dpo.jsonl, steps: 2, lr: 1.0e-9, beta: 0.1, lint: false}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run `first` of SFT, and a recipe `next.yaml` of DPO."""
    mx.random.seed(0)
    folder = make_inputs(tmp_path / "inputs")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs_inputs, "check_replies", lambda *_: Faults())
    (folder / "first.yaml").write_text(
        RECIPE.format(phase=SFT) + "adapter: {rank: 2, scale: 4.0, layers: 2}\n"
    )
    (folder / "next.yaml").write_text(RECIPE.format(phase=DPO))
    run(load_recipe("first.yaml"), run_dir="first")
    return folder


def as_peft(folder: Path, mlx: Path) -> None:
    folder.mkdir()
    arrays = {}
    for name, value in load_arrays(mlx / "adapters.safetensors").items():
        layer, factor = name.rsplit(".lora_", 1)
        arrays[f"base_model.model.{layer}.lora_{factor.upper()}.weight"] = mx.contiguous(value.T)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), arrays)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("here")
def test_a_run_goes_on_from_a_run_a_phase_an_mlx_and_a_peft_folder() -> None:
    """With a learning rate of next to nothing each ends with the adapter that it began with."""
    shutil.copytree("first/phase1_sft", "mlx")
    for extra in ("phase.json", "SHA256SUMS"):
        Path("mlx", extra).unlink()
    as_peft(Path("peft"), Path("mlx"))
    began = load_arrays(Path("mlx/adapters.safetensors"))
    for place in ("first", "first/phase1_sft", "mlx", "peft"):
        name = f"from-{place.replace('/', '-')}"
        done = run(load_recipe("next.yaml", [f"init_from={place}"]), run_dir=name)
        ended = load_arrays(done.adapter / "adapters.safetensors")
        assert ended.keys() == began.keys()
        assert all(np.allclose(ended[key], began[key], atol=1e-6) for key in began)
        lines = Path(name, "metrics.jsonl").read_text().splitlines()
        losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-4)  # its reference has the adapter
        record = read_json(Path(name, "run.json"))
        found = "first/phase1_sft" if place == "first" else place
        assert record["init_from"] == found and len(record["init_from_sha256"]) == 64
        assert record["init_from_sha256"] in Path(name, "report.md").read_text()
        # One adapter holds all, in stock mlx-lm too.
        ids = mx.array([[5, 6, 7, 8]])
        stock = load_adapters(load("model").model, str(done.adapter))
        assert np.allclose(stock(ids), load("model", "first").model(ids), atol=1e-4)
        assert not np.allclose(stock(ids), load("model").model(ids), atol=1e-3)


@pytest.mark.usefixtures("here")
def test_a_changed_adapter_is_refused_on_resume() -> None:
    shutil.copytree("first/phase1_sft", "copy")
    Path("copy/SHA256SUMS").unlink()
    run(load_recipe("next.yaml", ["init_from=copy"]), run_dir="next")
    run(load_recipe("next.yaml", ["init_from=copy"]), run_dir="next", resume=True)
    shutil.rmtree("next/phase1_dpo")
    arrays = load_arrays(Path("copy/adapters.safetensors"))
    mx.save_safetensors("copy/adapters.safetensors", {k: v * 2 for k, v in arrays.items()})
    with pytest.raises(RunError, match=r"went on from another adapter than copy holds now .*put"):
        run(load_recipe("next.yaml", ["init_from=copy"]), run_dir="next", resume=True)
    with pytest.raises(RunError, match="another recipe"):
        run(load_recipe("next.yaml"), run_dir="next", resume=True)


@pytest.mark.usefixtures("here")
def test_the_plan_shows_it_and_refuses_what_the_run_would() -> None:
    def forty2(line: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, line.split())
        return result.exit_code, result.output

    code, output = forty2("plan --quick next.yaml --set init_from=first")
    assert code == 0
    assert "goes on from first/phase1_sft (rank 2, scale 4, 2 blocks)" in output
    assert "was trained on" not in output
    shutil.copytree("model", "other")
    weights = load_arrays(Path("model/model.safetensors"))
    changed = {name: value * 1.5 for name, value in weights.items()}
    mx.save_safetensors("other/model.safetensors", changed, {"format": "mlx"})
    code, output = forty2("plan next.yaml --set init_from=first --set model=other")
    assert code == 0 and "warning: first/phase1_sft was trained on model, and" in output
    for settings, says in {
        "init_from=first --set adapter.rank=8": "adapter.rank: is 8, but first/phase1_sft has 2",
        "init_from=model": "model: no adapter here",
    }.items():
        for command in ("plan", "run", "recipe check"):
            code, output = forty2(f"{command} next.yaml --set {settings}")
            assert code == 2 and says in output and output.count("\n") == 1
    damaged = Path("first/phase1_sft/adapters.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    code, output = forty2("plan --quick next.yaml --set init_from=first")
    assert code == 2 and "first/phase1_sft/adapters.safetensors is damaged" in output
