"""Environments: every trainer gets our mlx and only its own packages; failures are one line."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path

import pytest

from forty2.errors import BenchmarkError
from forty2.progress import silent
from forty2.speed import environments
from forty2.speed.environments import PEERS, measure, peer_python
from forty2.speed.workers.__main__ import Figures, Inputs, Job, Measurement

MODEL = Path(__file__).parents[1] / "old_runs" / "inputs" / "model"
JOB = Job(str(MODEL), "float32", Inputs(), 1)


def test_another_trainer_sees_no_packages_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    answer = json.dumps(asdict(Measurement(Figures(1, 2, 3, 4, 5), {"path": "$PYTHONPATH"}, "")))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat <<END\n{answer}\nEND\n")
    python.chmod(0o755)
    assert measure(str(python), "any", JOB) == Measurement(Figures(1, 2, 3, 4, 5), {"path": ""}, "")


def test_a_worker_that_fails_is_named_in_one_line() -> None:
    with pytest.raises(BenchmarkError, match=r"^nobody failed: .*No module named 'nobody'$"):
        measure(sys.executable, "nobody", JOB)


def test_a_process_that_dies_without_a_message_is_named_with_its_exit_code(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 9\n")
    python.chmod(0o755)
    with pytest.raises(BenchmarkError, match=r"^any failed: exit code 9, without a message$"):
        measure(str(python), "any", JOB)


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_every_trainer_gets_the_mlx_that_runs_ours(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {each.metadata["Name"]: each.version for each in distributions()}
    monkeypatch.setattr(sys, "platform", system)
    on_linux = system == "linux"
    for peer in PEERS.values():
        first, *more = environments._pip_calls(peer)
        assert first[0].endswith(f"=={here['mlx']}")
        assert peer.package in (more[0] if more else first)
        assert bool(more) == (on_linux and peer.linux_dependencies is not None)
        blas = [wanted for wanted in first if wanted.startswith("scipy-openblas32==")]
        assert bool(blas) == (on_linux and "scipy-openblas32" in here)


def test_an_environment_that_cannot_be_made_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, **_: object) -> None:
        attempts.append(folder)
        raise subprocess.CalledProcessError(1, ["ensurepip"])

    attempts: list[Path] = []
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path))
    monkeypatch.setattr(venv, "create", refuse)
    for _ in range(2):
        with pytest.raises(BenchmarkError, match=r"^mlx-lm: no virtual environment .*python3-venv"):
            peer_python("mlx-lm", silent)
    assert len(attempts) == 2 and attempts[0].parent == tmp_path / "bench"


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a download: pip is replaced, the rest is real."""
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path))
    made: list[str] = []
    monkeypatch.setattr(
        environments, "_make_environment", lambda folder, name, _: made.append(folder.mkdir())
    )
    stages: list[tuple[str, int, int]] = []
    for _ in range(2):
        python = peer_python("mlx-lm", lambda *step: stages.append(step[:3]))
    assert len(made) == 1 and python.startswith(str(tmp_path / "bench" / "mlx-lm-"))
    (begun, *begin), (ended, *end) = stages
    assert begun == ended and begun.startswith("installing mlx-lm==")
    assert (begin, end) == ([0, 1], [1, 1])
