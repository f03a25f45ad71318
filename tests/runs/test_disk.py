"""A plan says what a run takes on disk, and whether it fits."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

from forty2.cli import main
from forty2.runs.disk import DiskForecast


def used(free: int) -> SimpleNamespace:
    return SimpleNamespace(free=free, total=10 * free, used=9 * free)


@pytest.mark.parametrize(("free", "fits"), [(1_000, False), (1_300, True)])
def test_run_folder_and_fused_models_must_fit_together(
    free: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used(free))
    fused = {tmp_path / "fused": 600, tmp_path / "fused-4bit": 200}
    shortage = DiskForecast(tmp_path / "run", 100, 300, fused).shortage()
    assert (shortage is None) == fits
    assert fits or str(shortage).startswith(f"{tmp_path / 'fused-4bit'}: about 0.00 GB will be")


def test_a_plan_shows_each_folder_with_the_free_space_and_warns_if_it_is_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx.random.seed(0)
    inputs = make_inputs(tmp_path / "inputs")
    monkeypatch.chdir(tmp_path)
    command = ["plan", str(inputs / "measured.yaml"), "--quick", "--run-dir", "mine"]
    for free in (10_000_000_000, 40_000):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: used(free))
        lines = CliRunner().invoke(main, command).output.splitlines()
        assert any(x.startswith("disk: mine: adapters 8 KB, up to ") for x in lines), lines
        assert any("fused-8bit: " in line for line in lines)
        warned = [line for line in lines if line.startswith("warning: disk: ")]
        assert bool(warned) == (free == 40_000)
