"""A run's stages: which tasks are measured, with how many questions, and what the table shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chaos import make_inputs

import forty2
from forty2.benchmark.results import Stage
from forty2.benchmark.stages import load_measurement, table
from forty2.errors import BenchmarkError, RecipeError
from forty2.files import read_json
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.schema import Benchmark, BenchmarkTask

ROW = {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Twelve problems in the shape of GSM8K."""
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    rows = [{**ROW, "question": f"{n} + 1?"} for n in range(12)]
    for name in ("test", "train"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def measured(*tasks: Any, n: int | None = None) -> Any:
    entries = [BenchmarkTask(task=t) if isinstance(t, str) else t for t in tasks]
    return load_measurement(Benchmark(questions="probe", n=n, tasks=entries), 7)


def test_truthfulqa_is_the_default_and_each_task_has_its_own_n(sums: Path) -> None:
    alone = load_measurement(Benchmark(questions="probe", n=5), 7)
    assert alone.more == {} and len(alone.truthfulqa.items) == 5
    more = BenchmarkTask(task="gsm8k", data=str(sums), n=4)
    found = measured("truthfulqa", more, n=5)
    assert len(found.truthfulqa.items) == 5 and len(found.more["gsm8k"].questions.items) == 4
    assert found.more["gsm8k"].task.seed == 7
    own = BenchmarkTask(task="truthfulqa", n=3)
    assert len(measured(own, n=5).truthfulqa.items) == 3


def test_a_task_has_at_most_as_many_questions_as_there_are(sums: Path) -> None:
    without, beyond = (BenchmarkTask(task="gsm8k", data=str(sums), n=n) for n in (None, 99))
    assert len(measured("truthfulqa", without, n=5).more["gsm8k"].questions.items) == 5
    assert len(measured("truthfulqa", without).more["gsm8k"].questions.items) == 12
    assert len(measured("truthfulqa", beyond).more["gsm8k"].questions.items) == 12


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("gsm8k", "benchmark.tasks: gsm8k: needs its data; write {task: gsm8k, data: PATH}"),
        ("mmul", "benchmark.tasks: mmul: not a benchmark that a run measures; there are "),
        (
            "behaviour",
            "benchmark.tasks: behaviour: not a benchmark that a run measures; there are gsm8k",
        ),
        (
            BenchmarkTask(task="humaneval", data="x"),
            "benchmark.tasks: humaneval: HumanEval runs programs that the model writes; allow",
        ),
        (BenchmarkTask(task="mmlu", data="none"), "benchmark.tasks: mmlu: none: cannot be read"),
        (BenchmarkTask(task="gsm8k", data="none"), "benchmark.tasks: gsm8k: none: "),
    ],
)
def test_a_task_that_cannot_be_measured_is_one_line(task: Any, message: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        measured("truthfulqa", task)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_recipe_names_tasks_or_spells_them_out(tmp_path: Path, sums: Path) -> None:
    inputs = make_inputs(tmp_path / "in")
    file = inputs / "measured.yaml"

    def loaded(tasks: str) -> Any:
        return load_recipe(file, [f"benchmark.tasks={tasks}"]).benchmark

    assert [entry.task for entry in load_recipe(file).benchmark.tasks] == ["truthfulqa"]  # type: ignore[union-attr]
    found = loaded(f"[truthfulqa, {{task: gsm8k, data: {sums}, n: 4}}]")
    assert found.tasks[1] == BenchmarkTask(task="gsm8k", data=str(sums), n=4)
    (tmp_path / "again.yaml").write_text(
        to_yaml(load_recipe(file, [f"benchmark.tasks=[truthfulqa, {{task: gsm8k, data: {sums}}}]"]))
    )
    assert load_recipe(tmp_path / "again.yaml").benchmark == loaded(
        f"[truthfulqa, {{task: gsm8k, data: {sums}}}]"
    )
    for tasks, message in (
        ("[mmlu]", "benchmark.tasks: truthfulqa is missing"),
        ("[truthfulqa, truthfulqa]", "benchmark.tasks: truthfulqa is there twice"),
        ("[truthfulqa, {task: gsm8k, datum: x}]", "unknown key; did you mean data"),
        ("[truthfulqa, 3]", "benchmark.tasks"),
        ("[truthfulqa, Mm!]", "benchmark.tasks"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            loaded(tasks)
        assert len(str(caught.value).splitlines()) == 1


def test_a_run_measures_its_tasks_at_every_stage_and_compares_them(
    tmp_path: Path, sums: Path
) -> None:
    inputs = make_inputs(tmp_path / "in")
    tasks = f"[truthfulqa, {{task: gsm8k, data: {sums}, n: 3}}]"
    overrides = ["fuse=null", f"benchmark.tasks={tasks}"]
    recipe = load_recipe(inputs / "measured.yaml", overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
        patch.setattr("forty2.benchmark.tasks.behaviour.MAX_TOKENS", 4)
        patch.setattr("forty2.benchmark.tasks.gsm8k.MAX_TOKENS", 4)
        done = forty2.run(recipe, run_dir=tmp_path / "run")
    summary = read_json(done.path / "summary.json")
    for stage in [one.to_json() for one in done.stages]:
        assert list(stage)[:3] == ["stage", "truthfulqa", "gsm8k"]
        assert len(stage["gsm8k"]["items"]) == 3
        for name in ("truthfulqa", "gsm8k", "behaviour", "perplexity", "divergence"):
            assert stage[name]["benchmark"] == name and stage[name]["model"] == recipe.model
            assert stage[name]["seed"] == recipe.seed and "mlx" in stage[name]["versions"]
    assert str(done.stages[1]["perplexity"].adapter).endswith("phase1_sft")
    (comparison,) = summary["comparisons"]
    assert {"mc1", "strict_match", "flexible_extract"} <= comparison["metrics"].keys()
    assert comparison["judged"] == ["mc1", "mc2", "mc3"]
    assert summary["stages"][0]["tasks"].keys() == {"strict_match", "flexible_extract"}
    assert done.table.splitlines()[0].endswith("strict_match  flexible_extract")
    read = [Stage.from_json(stage.to_json(), "it") for stage in done.stages]
    assert table(read) == done.table and read == done.stages
