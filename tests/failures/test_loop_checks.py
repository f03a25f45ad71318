"""What a loop lacks for its last steps is said before the first one, each problem with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_run import make_inputs

from forty2.errors import RecipeError
from forty2.failures.loop import STEPS, run_loop
from forty2.failures.loop_checks import check_loop
from forty2.failures.loop_file import read_loop

GOOD = """\
version: 1
name: mine
model: MODEL
teacher: {name: http://127.0.0.1:9/v1, api_key_env: TEACHER_KEY}
judge: http://127.0.0.1:9/v1
limits: {cost: 1, price_in: 1, price_out: 2}
testset: {from: [builtin], size: 20}
generate: {size: 20}
recover:
  seeds: [1, 2]
  recipe:
    version: 1
    name: arms
    adapter: {rank: 2, layers: 2}
    phases: {sft: {objective: sft, epochs: 1, lr: 1.0e-3}}
"""
WRONG = {
    "the key of the teacher": ("TEACHER_KEY", "OTHER_KEY", 4, "OTHER_KEY: not set"),
    "the address of the judge": (
        "judge: http://127.0.0.1:9/v1",
        "judge: 127.0.0.1:9",
        5,
        "give http://HOST:PORT/v1",
    ),
    "prices": ("price_in: 1, price_out: 2", "at_once: 2", 6, "needs prices"),
    "a seed twice": ("seeds: [1, 2]", "seeds: [1, 1]", 10, "two or more that differ"),
    "a seed below 0": ("seeds: [1, 2]", "seeds: [1, -2]", 10, "from 0 on"),
    "original data": ("seeds: [1, 2]", "original: nothing.jsonl", 10, "no such file or run"),
    "the embedding model": ("generate:", "cluster: {model: MODEL}\ngenerate:", 8, "model_type"),
    "a key of the recipe": ("lr: 1.0e-3", "lrr: 1.0e-3", 15, "lrr: unknown key"),
    "steps in place of epochs": ("epochs: 1", "steps: 1", None, "give epochs in place of steps"),
    "another objective": ("objective: sft", "objective: dpo, beta: 0.1", None, "objective: sft"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_inputs(tmp_path_factory.mktemp("checks") / "inputs") / "model")


@pytest.fixture
def path(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEACHER_KEY", "sk-1")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "loop.yaml"
    path.write_text(GOOD.replace("MODEL", model), "utf-8")
    return path


@pytest.mark.parametrize(("old", "new", "line", "message"), WRONG.values(), ids=WRONG)
def test_it_is_said_before_anything_is_written(
    path: Path, model: str, old: str, new: str, line: int | None, message: str
) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new.replace("MODEL", model)), "utf-8")
    with pytest.raises(RecipeError, match=message) as error:
        run_loop(path, out=path.parent / "F")
    assert not (path.parent / "F").exists()
    assert line is None or f"loop.yaml:{line}: " in str(error.value)


def test_every_problem_is_said_at_once_and_a_good_file_has_none(path: Path) -> None:
    check_loop(read_loop(path), ())
    text = path.read_text("utf-8")
    for old, new, *_ in list(WRONG.values())[:4]:
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as error:
        check_loop(read_loop(path), ())
    assert len(str(error.value).splitlines()) == 4


def test_a_step_that_is_done_needs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    check_loop(read_loop(path), {*STEPS})
    with pytest.raises(RecipeError, match="TEACHER_KEY"):
        check_loop(read_loop(path), {*STEPS} - {"generate"})


def test_scikit_learn_is_asked_for_at_the_beginning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(RecipeError, match=r"forty2\[failures\]"):
        run_loop(path, out=path.parent / "F")
