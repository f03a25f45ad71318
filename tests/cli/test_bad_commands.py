"""Runs, reports, places to write and environments that must be refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.bad_input import (
    Case,
    Cases,
    Content,
    check_refused,
    config,
    cut,
    empty_folder,
    forty2,
    lay_out,
    used_by,
)

CASES = Cases()
case = CASES.add

UNSPOILT = [
    "recipe check recipe.yaml",
    "plan recipe.yaml",
    "data convert -i chats.jsonl -o out.jsonl",
    "data lint chats.jsonl",
    "data show chats.jsonl -m tiny",
    "data prepare -i chats.jsonl --output-dir out -m tiny --val-split 0",
    "logprobs -m tiny -d pairs.jsonl -o out.json",
    "generate -m tiny -p hi --max-tokens 1",
    "generate -m tiny -a adapter -p hi --max-tokens 1",
    "generate -a done -p hi --max-tokens 1",
    "generate -a done/phase1_sft -p hi --max-tokens 1",
    "model info tiny",
    "model import model.gguf --out out",
    "benchmark truthfulqa -m tiny -q questions.json",
    "benchmark truthfulqa -m tiny -q questions.csv",
    "compare before.json after.json",
    "report done",
    "fuse -m tiny -a adapter --out out",
    "run recipe.yaml --run-dir run",
    "run recipe.yaml --run-dir run --set phases.sft.data=prepared",
]


def run(name: str, files: Mapping[str, Content], options: str, *says: str) -> None:
    case(f"run: {name}", files, f"run recipe.yaml {options}", *says)


run("folder a file", {"run": "x"}, "--run-dir run", "run: is a file; name another --run-dir")
run("folder below a file", {"run": "x"}, "--run-dir run/x", "run/x: cannot be written")
run("folder in use", {"run/mine.txt": "x"}, "--run-dir run", "run: is not empty and holds no run")
run("folder of another run", {}, "--run-dir done", "done: holds a run already; go on with --resume")
run("resumed, another recipe", {}, "--run-dir done --resume --set seed=1", "another recipe", "seed")
run(
    "resumed, run.json cut short",
    {"done/run.json": cut(0.5)},
    "--run-dir done --resume",
    "run.json: not",
)
run(
    "resumed, of another version",
    {"done/run.json": config(version=9)},
    "--run-dir done --resume",
    "written by another release (run format 9",
)
run("no such model", {}, "--run-dir run -m ./none", "./none: no such model")
case("run: no such phase", {}, "train recipe.yaml --phase kto --run-dir run", "no phase 'kto'")
case(
    "plan: data cut short",
    {"chats.jsonl": cut(0.9)},
    "plan recipe.yaml",
    "chats.jsonl:2: not a JSON",
)
case("report: no run", {"d": empty_folder}, "report d", "d: no run here (run.json is missing)")
case("report: not there", {}, "report none", "none")
case("report: a file", {}, "report recipe.yaml", "recipe.yaml")
case(
    "report: run.json cut short",
    {"done/run.json": cut(0.5)},
    "report done",
    "run.json: not readable",
)
case(
    "report: run.json a list",
    {"done/run.json": "[]"},
    "report done",
    "done: damaged, or written by another",
)
case("report: run.json of nothing", {"done/run.json": "{}"}, "report done", "done: damaged", "name")
case("report: metrics cut short", {"done/metrics.jsonl": "{\n"}, "report done", "done: damaged")
case(
    "report: no recipe", {"done/recipe.yaml": None}, "report done", "done: damaged", "No such file"
)
case(
    "report: phase damaged",
    {"done/phase1_sft/phase.json": "{"},
    "report done",
    "phase.json: not readable",
)
case("fuse: out exists", {"out/mine.txt": "x"}, "fuse -m tiny -a adapter --out out", "out")
case("fuse: out into a file", {"f": ""}, "fuse -m tiny -a adapter --out f/out", "f/out")
case(
    "logprobs: out into a file", {"f": ""}, "logprobs -m tiny -d pairs.jsonl -o f/x", "f/x: cannot"
)
case(
    "show: out into a file",
    {"f": ""},
    "data show chats.jsonl -m tiny --html f/x.html",
    "f/x.html: cannot",
)


def environment(name: str, command: str, *says: str, **variables: str | None) -> None:
    case(f"environment: {name}", {"f": ""}, command, *says, environment=variables)


environment("cache a file", "model fetch", "FORTY2_CACHE", FORTY2_CACHE="f")
environment("cache below a file", "generate -m smollm2 -p hi", "FORTY2_CACHE", FORTY2_CACHE="f/x")


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_bad_commands_are_refused(
    one: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: None
) -> None:
    check_refused(one, good, tmp_path, monkeypatch)


@pytest.mark.parametrize("command", UNSPOILT)
def test_unspoilt_input_is_accepted(
    command: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(Case("", {}, command, ()), good, tmp_path)
    result = forty2(command)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_no_case_needs_more_than_500_mb(tmp_path: Path) -> None:
    """Run each file of cases in a process; a command begins with 50 MB, pytest with far more."""
    said = tmp_path / "said"
    here = Path(__file__).parent
    for file in sorted(here.glob("test_bad_*.py")):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
        command += ["-k", "test_bad and are_refused"]
        _, _, before = used_by([*command, "--collect-only"], here, said)
        code, _, memory = used_by(command, here, said)
        assert code in (0, 5), said.read_text()[-5000:]  # 5: a file of other tests
        assert memory - before < 500e6 - 50e6, file
