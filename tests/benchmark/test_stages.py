"""A run's stages: which tasks are measured, with how many questions, and what the table shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chaos import make_inputs
from click.testing import CliRunner
from support.runs import short_checks

import forty2
from forty2.benchmark.results import Stage
from forty2.benchmark.stage_tables import table
from forty2.benchmark.stages import load_measurement
from forty2.benchmark.tasks.eval_prompts import EvalPromptsTask
from forty2.benchmark.tasks.gsm8k import Gsm8k
from forty2.cli import main
from forty2.data.checks.contamination import ContaminationFinder
from forty2.data.records import Chat
from forty2.errors import BenchmarkError, RecipeError
from forty2.files import read_json
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.schema import Benchmark, BenchmarkTask

ROW = {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """GSM8K asks for four tokens unless told otherwise."""
    defaults = Gsm8k.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "max_tokens", 4)


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
    asked = any(entry.task == "truthfulqa" for entry in entries)
    benchmark = Benchmark(questions="probe" if asked else None, n=n, tasks=entries)
    return load_measurement(benchmark, 7)


def asked_of(measurement: Any, task: str) -> int:
    return len(measurement.tasks[task].questions.items)


def test_truthfulqa_is_the_default_and_each_task_has_its_own_n(sums: Path) -> None:
    alone = load_measurement(Benchmark(questions="probe", n=5), 7)
    assert [*alone.tasks] == ["truthfulqa"] and asked_of(alone, "truthfulqa") == 5
    more = BenchmarkTask(task="gsm8k", data=str(sums), n=4)
    found = measured("truthfulqa", more, n=5)
    assert asked_of(found, "truthfulqa") == 5 and asked_of(found, "gsm8k") == 4
    assert found.tasks["gsm8k"].task.seed == found.tasks["truthfulqa"].task.seed == 7
    own = BenchmarkTask(task="truthfulqa", n=3)
    assert asked_of(measured(own, n=5), "truthfulqa") == 3


def test_a_recipe_may_name_no_benchmark_or_others_than_truthfulqa(sums: Path) -> None:
    assert measured().tasks == {}
    found = measured(BenchmarkTask(task="gsm8k", data=str(sums), n=4))
    assert list(found.tasks) == ["gsm8k"]


def test_a_task_has_at_most_as_many_questions_as_there_are(sums: Path) -> None:
    without, beyond = (BenchmarkTask(task="gsm8k", data=str(sums), n=n) for n in (None, 99))
    assert asked_of(measured("truthfulqa", without, n=5), "gsm8k") == 5
    assert asked_of(measured("truthfulqa", without), "gsm8k") == 12
    assert asked_of(measured("truthfulqa", beyond), "gsm8k") == 12


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
        ("[truthfulqa, truthfulqa]", "benchmark.tasks: truthfulqa is there twice"),
        ("[truthfulqa, {task: gsm8k, datum: x}]", "unknown key; did you mean data"),
        ("[truthfulqa, 3]", "benchmark.tasks"),
        ("[truthfulqa, Mm!]", "benchmark.tasks"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            loaded(tasks)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("short_answers")
def test_a_run_measures_its_tasks_at_every_stage_and_compares_them(
    tmp_path: Path, sums: Path
) -> None:
    inputs = make_inputs(tmp_path / "in")
    tasks = f"[truthfulqa, {{task: gsm8k, data: {sums}, n: 3}}]"
    overrides = ["fuse=null", f"benchmark.tasks={tasks}"]
    recipe = load_recipe(inputs / "measured.yaml", overrides)
    with short_checks(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
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
    cells = [f">{cell}<" for row in done.table.splitlines()[::2] for cell in row.split()]
    assert all(cell in done._repr_html_() for cell in cells)
    assert f"Verdict: {done.verdict}. {done.sentence[:20]}" in done._repr_html_()


# --- questions in training rows ---

MMLU = ["question,choice0,choice1,choice2,choice3,answer"] + [
    f"Which organ number {n} makes bile?,the liver,the spleen,the heart number {n},a lung,0"
    for n in range(6)
]
SOLUTION = "    total = 0\n    for first in values:\n        for second in values:\n"
SOLUTION += "            total += first * second\n    return total / len(values)\n"
PROBLEM = {
    "task_id": "H/1",
    "prompt": 'def f(values):\n    """Mean over all products of two of the values, however far '
    'apart they may be in the list."""\n',
    "canonical_solution": SOLUTION,
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 4.5\n",
    "entry_point": "f",
}


@pytest.fixture
def bile(tmp_path: Path) -> Path:
    """Six questions in the shape of MMLU."""
    folder = tmp_path / "mmlu"
    for part in ("test", "dev"):
        (folder / part).mkdir(parents=True)
        (folder / part / f"anatomy_{part}.csv").write_text("\n".join(MMLU) + "\n")
    return folder


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    """Problems in the shape of HumanEval."""
    other = {
        **PROBLEM,
        "task_id": "H/0",
        "prompt": "def g():\n",
        "canonical_solution": "    return",
    }
    file = tmp_path / "HumanEval.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (other, PROBLEM)))
    return file


def found_in(text: str, *tasks: BenchmarkTask) -> list[tuple[str, int]]:
    """The tasks and items that a training row with this text holds."""
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": "So it is."})
    finder = ContaminationFinder(measured("truthfulqa", *tasks).benchmarks())
    hits = finder.find(Chat(messages=messages, origin="a:1"))
    return [(hit.benchmark, hit.item) for hit in hits]


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Which organ number 3 makes bile?", "mmlu"),
        ("Question: which organ number 3 makes bile?\n(a) the liver (b) a lung\nAnswer:", "mmlu"),
        ("Six and 3 + 1? are", None),
        ("3 + 1?", "gsm8k"),
        (
            "It says: mean over all products of two of the values, however far apart they",
            "humaneval",
        ),
        (f"Continue:\n{SOLUTION}", "humaneval"),
        ("So is the sky. Nothing of it is in any of these.", None),
    ],
)
def test_a_question_of_any_task_is_found_in_a_row(
    text: str, task: str | None, sums: Path, bile: Path, functions: Path
) -> None:
    found = found_in(
        text,
        BenchmarkTask(task="mmlu", data=str(bile)),
        BenchmarkTask(task="gsm8k", data=str(sums)),
        BenchmarkTask(task="humaneval", data=str(functions), run_untrusted_code=True),
    )
    assert found == ([] if task is None else [(task, 1 if task == "humaneval" else 3)])


def test_a_copied_solution_without_its_calculations_is_found(tmp_path: Path) -> None:
    answer = "He has 3 * 4 = <<3*4=12>>12 eggs, sells 2 * 5 = <<2*5=10>>10 of them, and keeps "
    answer += "12 - 10 = <<12-10=2>>2.\n#### 2"
    rows = [{**ROW, "question": f"{n} + 1?", "answer": answer} for n in range(5)]
    for name in ("test", "train"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    copied = "He has 3 * 4 = 12 eggs, sells 2 * 5 = 10 of them, and keeps 12 - 10 = 2."
    found = found_in(copied, BenchmarkTask(task="gsm8k", data=str(tmp_path)))
    assert found == [("gsm8k", n) for n in range(5)]


def test_every_item_has_its_texts_in_the_items_order(sums: Path, bile: Path) -> None:
    """Also of a sample, whose items are not those of the file."""
    tasks = [
        BenchmarkTask(task="mmlu", data=str(bile), n=3),
        BenchmarkTask(task="gsm8k", data=str(sums), n=5),
    ]
    found = measured("truthfulqa", *tasks, n=20)
    texts = {benchmark.name: benchmark.items for benchmark in found.benchmarks()}
    assert [each[0] for each in texts["truthfulqa"]] == [
        q.question for q in found.tasks["truthfulqa"].questions.items
    ]
    (anatomy,) = found.tasks["mmlu"].questions
    assert [each[0] for each in texts["mmlu"]] == [q.text for q in anatomy.questions]
    problems = found.tasks["gsm8k"].questions.items
    assert [each[0] for each in texts["gsm8k"]] == [p.question for p in problems]


def test_eval_prompts_are_texts_to_search_for_and_patterns_are_not(tmp_path: Path) -> None:
    asked = {"prompts": {"a": "Say hi.", "b": "Bye?"}, "expected_outputs": {"a": "hi", "b": "b+"}}
    (tmp_path / "prompts.json").write_text(json.dumps({**asked, "match": {"b": "regex"}}))
    task = EvalPromptsTask(prompts=tmp_path / "prompts.json")
    assert task.question_texts(task.load()) == [("Say hi.", "hi"), ("Bye?",)]


@pytest.mark.usefixtures("short_answers")
def test_a_run_counts_each_task_s_questions_in_its_rows_and_compares_without_them(
    tmp_path: Path, sums: Path, bile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(tmp_path / "in")
    asked = ["7 + 1?", *(f"Which organ number {n} makes bile? The liver?" for n in range(5))]
    rows = [{"prompt": text, "completion": "So it is."} for text in asked]
    (inputs / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    tasks = f"[truthfulqa,{{task: mmlu,data: {bile},n: 6}},{{task: gsm8k,data: {sums},n: 12}}]"
    line = ["run", str(inputs / "measured.yaml"), "--run-dir", str(tmp_path / "run")]
    line += ["--set", "fuse=null", "--set", f"benchmark.tasks={tasks}"]
    with short_checks():
        done = CliRunner().invoke(main, line)
    assert done.exit_code == 0, done.output
    summary = read_json(tmp_path / "run" / "summary.json")
    found = summary["contamination"]
    assert (found["rows"], found["questions"]) == (6, 6)
    assert {name: count["questions"] for name, count in found["tasks"].items()} == {
        "truthfulqa": 0,
        "mmlu": 5,
        "gsm8k": 1,
    }
    (all_of_them,), (without,) = summary["comparisons"], found["comparisons"]
    assert {name: all_of_them["metrics"][name]["n"] for name in ("mmlu", "strict_match")} == {
        "mmlu": 6,
        "strict_match": 12,
    }
    assert without["metrics"]["strict_match"]["n"] == 11 and "gsm8k" in without["tasks"]
    assert "mmlu" not in without["metrics"] and "mmlu" not in without["tasks"]
    hits = read_json(tmp_path / "run" / "contamination.json")["hits"]
    assert {(hit["task"], hit["item"]) for hit in hits} >= {("gsm8k", 7), ("mmlu", 0), ("mmlu", 4)}
    for text in (done.output, (tmp_path / "run" / "report.md").read_text("utf-8")):
        assert "5 questions of MMLU are in training rows" in text
        assert "too few are left to compare" in text
        assert "1 question of GSM8K is in training rows" in text
        assert "Without it, phase1_sft against the base model: " in text.replace("`", "")
    shown = [line.split() for line in done.output.splitlines() if line.startswith("phase1_sft  ")]
    assert {"mmlu", "strict_match", "flexible_extract", "MC1"} <= {row[1] for row in shown}
    for name, data in (("GSM8K", sums), ("MMLU", bile)):
        assert f"{name}, {data}, by itself: " in done.output
