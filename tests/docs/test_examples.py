"""The example scripts of the manual do what they show, on small models and few rows."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.chat_server import said, server
from support.shop import CHATS, PAIRS, THUMBS
from support.small_run import make_inputs

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model with a tokenizer of bytes."""
    mx.random.seed(0)
    return str(make_inputs(tmp_path_factory.mktemp("examples") / "inputs") / "model")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def main_of(name: str) -> Callable[..., Any]:
    """The function that the script calls."""
    main: Callable[..., Any] = runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"))[
        "main"
    ]
    return main


def first_lines(path: str, n: int) -> list[str]:
    """The first lines of a file, with their ends."""
    return Path(path).read_text("utf-8").splitlines(keepends=True)[:n]


def test_own_data_are_trained_on_and_asked_about(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(Path(CHATS).read_text("utf-8"))[:24]
    Path("chats.json").write_text(json.dumps(rows), "utf-8")
    Path("pairs.jsonl").write_text("".join(first_lines(PAIRS, 24)), "utf-8")
    short = [f"phases.{phase}.epochs=0.1" for phase in ("sft", "dpo")]
    unused = ("eval_prompts", "valid", "best", "eval_every_steps")
    short += [f"phases.{phase}.{key}=null" for phase in ("sft", "dpo") for key in unused]
    short += ["benchmark={tasks: [], held_out: false}", "fuse=null"]
    result = main_of("own_data")(model=model, overrides=short)
    assert (result.path / "phase2_dpo" / "adapters.safetensors").exists()
    out = capsys.readouterr().out
    assert "before: " in out and "after: " in out and f"report    {result.report}" in out


def test_thumbs_are_trained_on_and_two_results_are_compared(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("thumbs.jsonl").write_text("".join(first_lines(THUMBS, 8)), "utf-8")
    found = main_of("kto_from_thumbs")(model=model, steps=1, questions=2)
    assert found.n == 2 and set(found.judged) >= {"mc1", "mc2"}
    assert (found.before, found.after) == (model, f"{model} + adapters/thumbs")
    assert "Verdict: " in capsys.readouterr().out


def test_a_judge_is_asked_about_both_models(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with server(lambda number, body: said("Verdict: tie")) as (address, seen):
        judged = main_of("judge")(model, model, address)
    assert judged["ties"] == 3
    assert json.loads(Path("judged.json").read_text("utf-8"))["ties"] == 3
    assert "tie" in capsys.readouterr().out and seen == []  # equal replies need no request


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_on_the_page_and_tested(path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    assert f'--8<-- "docs/examples/{path.name}"' in page
    assert f'main_of("{path.stem}")' in Path(__file__).read_text("utf-8")
