"""An objective is one file: put into the folder, it trains from a recipe like the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from chaos import make_inputs
from examples.slic import slic_loss

import forty2

RECIPE = """
version: 1
name: new
model: model
max_length: 96
adapter: {rank: 2, scale: 4.0, layers: 2}
phases:
  slic: {objective: slic, data: dpo.jsonl, valid: dpo.jsonl, steps: 8, lr: 2.0e-2, batch_size: 6,
    lint: false, beta: 0.5, best: {metric: margin, direction: max}}
fuse: null
benchmark: {tasks: [], held_out: false}
"""


def test_a_file_in_the_objectives_folder_is_an_objective(tmp_path: Path) -> None:
    mx.random.seed(0)
    inputs = make_inputs(tmp_path / "inputs")
    (inputs / "new.yaml").write_text(RECIPE)
    package = tmp_path / "with_slic" / "forty2"
    shutil.copytree(Path(forty2.__file__).parent, package)
    example = Path(__file__).parents[2] / "examples" / "slic.py"
    shutil.copy(example, package / "training" / "objectives")
    ran = subprocess.run(
        [sys.executable, "-m", "forty2", "run", "new.yaml", "--run-dir", "run"],
        cwd=inputs,
        env={
            **os.environ,
            "PYTHONPATH": str(package.parent),
            "FORTY2_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    lines = (inputs / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if "grad_norm" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["margin"] > steps[0]["margin"]
    assert not {"kl", "valid_kl"} & {key for record in records for key in record}
    assert not (tmp_path / "cache" / "reference").exists()


def test_the_loss_is_the_papers_in_float64() -> None:
    chosen, rejected = np.log([0.6, 0.2, 0.5]), np.log([0.3, 0.4, 0.5])
    expected = 0.5 * np.maximum(0, 2 - chosen + rejected)  # δ = 1 / β = 2, divided by it
    found = slic_loss(mx.array(chosen), mx.array(rejected), beta=0.5)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)
    assert float(found[2]) == pytest.approx(1)
