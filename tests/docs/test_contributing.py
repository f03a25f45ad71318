"""CONTRIBUTING's examples work: applied to a copy of the package, their own tests pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import forty2

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^```(python|diff) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INPUTS = '''

@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, rows and a recipe, as the working directory."""
    import shutil

    shutil.copytree(Path(__file__).parent / "old_runs" / "inputs", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return tmp_path
'''


class Example(NamedTuple):
    """A block of CONTRIBUTING and the file that it is for."""

    language: str
    file: str
    text: str


def examples() -> list[Example]:
    return [Example(*found) for found in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())]


def apply(example: Example, root: Path) -> None:
    """Change or add a file as an example says."""
    path = root / example.file
    before = path.read_text("utf-8") if path.exists() else ""
    if example.language == "diff":
        lines = example.text.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] == " ")
        assert before.count(old) == 1, f"{example.file} has no such place, or several: {old!r}"
        path.write_text(before.replace(old, "".join(line[1:] for line in lines)), "utf-8")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{before}\n\n{example.text}" if before else example.text, "utf-8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all examples applied, and its tests' helpers."""
    root = tmp_path_factory.mktemp("contributing")
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(forty2.__file__).parent, root / "forty2", ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("support", "old_runs/inputs"):
        shutil.copytree(ROOT / "tests" / name, root / "tests" / name, ignore=leave)
    for name in ("conftest.py", "test_import_rules.py"):
        shutil.copy(ROOT / "tests" / name, root / "tests")
    with open(root / "tests" / "conftest.py", "a", encoding="utf-8") as conftest:
        conftest.write(INPUTS)
    for example in examples():
        apply(example, root)
    return root


def test_there_is_an_example_of_each_kind() -> None:
    files = {example.file for example in examples()}
    for folder in ("training/objectives", "benchmark/tasks", "data", "cli"):
        assert any(file.startswith(f"forty2/{folder}/") for file in files), folder
        assert any(file.startswith(f"tests/{folder}/") for file in files), folder


def test_the_examples_pass_their_own_tests_and_the_import_rules(changed: Path) -> None:
    tests = [example.file for example in examples() if example.file.startswith("tests/")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *tests, "tests/test_import_rules.py"],
        capture_output=True,
        text=True,
        cwd=changed,
        env={**os.environ, "PYTHONPATH": str(changed)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_are_written_as_the_package_is(changed: Path) -> None:
    files = [example.file for example in examples()]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *command,
                "--config",
                "pyproject.toml",
                *files,
            ],
            capture_output=True,
            text=True,
            cwd=changed,
        )
        assert done.returncode == 0, done.stdout + done.stderr
