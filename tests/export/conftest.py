"""A finished run to write cards of and to push, and a stand-in of the hub."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from support.hub_server import TOKEN, USER, Hub, hub_server
from support.runs import short_checks
from support.small_run import make_inputs

import forty2
from forty2.files import CHECKSUMS, seal

_RECIPE = """
version: 1
name: mine
model: {inputs}/model
max_length: 96
adapter: {{rank: 2, layers: 2}}
phases:
  sft: {{objective: sft, data: {inputs}/sft.jsonl, steps: 1, lr: 1.0e-2, lint: false}}
  dpo: {{objective: dpo, data: {inputs}/dpo.jsonl, steps: 1, lr: 1.0e-2, lint: false, beta: 0.1}}
fuse: {{quantize: 8}}
benchmark: {{questions: {inputs}/questions.json, n: 2, held_out: false, each_phase: false}}
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a work folder in it, where a run trained, fused, quantized and measured."""
    home = tmp_path_factory.mktemp("homes") / USER
    work = home / "my work"
    make_inputs(work / "inputs")
    (work / "inputs" / "mine.yaml").write_text(_RECIPE.format(inputs=work / "inputs"), "utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(work), short_checks():
        patch.setenv("HOME", str(home))
        patch.setenv("FORTY2_CACHE", str(tmp_path_factory.mktemp("cache")))
        forty2.run(forty2.load_recipe("inputs/mine.yaml"), progress=forty2.silent)
    return home


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that home's work folder; the working directory."""
    home = tmp_path / USER
    shutil.copytree(made, home)
    for file in (home / "my work").rglob("*"):
        if file.suffix in (".json", ".yaml", ".jsonl"):
            text = file.read_text("utf-8")
            if str(made) in text:
                file.write_text(text.replace(str(made), str(home)), "utf-8")
    for sums in (home / "my work").rglob(CHECKSUMS):
        seal(sums.parent)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "my work")
    return home / "my work"


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Hub]:
    """A hub to which somebody is logged in; afterwards, her token is in no file and was not printed."""
    constants = huggingface_hub.constants
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(time, "sleep", hub.waits.append)
        yield hub
        huggingface_hub.close_session()
    assert TOKEN not in "".join(capsys.readouterr())
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            assert TOKEN.encode() not in (Path(folder) / name).read_bytes(), f"{folder}/{name}"
