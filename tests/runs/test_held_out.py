"""The held-out rows of a run: which are chosen, and that every run that has them is judged by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

import forty2
from forty2.benchmark.results import Stage
from forty2.cli import main
from forty2.files import read_json, read_sealed, write_sealed
from forty2.recipe.reading import load_recipe
from forty2.runs.held_out import PROMPTS, ROWS, held_out_rows, is_measured
from forty2.runs.phase_data import PhaseData
from forty2.text.rows import FittedRows, PairRow, RatedRow, Row


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def recipe(inputs: Path, *overrides: str) -> Any:
    return load_recipe(inputs / "recipe.yaml", ["benchmark=null", *overrides])


def fitted(*rows: Any) -> FittedRows:
    return FittedRows(list(rows), [], [])


def data(valid: FittedRows | None) -> PhaseData:
    return PhaseData(fitted(Row([1, 2], [False, True], "x:1")), valid, "x", [])


def chosen(inputs: Path, sft: FittedRows | None, dpo: FittedRows | None) -> Any:
    found = {"sft": data(sft), "dpo": data(dpo)}
    one = recipe(inputs, "phases.sft.eval_prompts=null")
    return held_out_rows(one, found, lambda ids: " ".join(map(str, ids)))


def test_rows_are_spread_over_each_kind_and_a_row_of_two_phases_counts_once(inputs: Path) -> None:
    rows = [Row([n, n + 1, 7], [False, False, True], f"a:{n}") for n in range(2 * ROWS)]
    pair = PairRow([1, 2], [3], [4], "b:1")
    found = chosen(inputs, fitted(*rows), fitted(pair, pair, rows[0]))
    kinds = [row.kind for row in found.rows]
    assert kinds.count("chat") == ROWS and kinds.count("pair") == 1
    assert [row.origin for row in found.rows[:3]] == ["a:0", "a:2", "a:4"]
    assert len(found.prompts) == PROMPTS
    assert {prompt.phase for prompt in found.prompts} == {"sft", "dpo"}


def test_n_of_the_recipe_lowers_the_number_of_rows_of_a_kind_and_of_prompts(inputs: Path) -> None:
    rows = fitted(*(Row([n, n + 1, 7], [False, False, True], f"a:{n}") for n in range(30)))
    one = recipe(inputs, "phases.sft.eval_prompts=null", "benchmark={tasks: [], n: 6}")
    found = held_out_rows(one, {"sft": data(rows), "dpo": data(None)}, str)
    assert found is not None and (len(found.rows), len(found.prompts)) == (6, 6)
    assert [row.origin for row in found.rows] == [f"a:{n}" for n in range(0, 30, 5)]


def test_a_packed_row_is_scored_as_the_rows_that_it_holds(inputs: Path) -> None:
    packed = Row([1, 2, 3, 4, 5], [True, True, False, False, True], "a:1", [0, 0, 1, 1, 1])
    found = chosen(inputs, fitted(packed), None)
    sides = [row.sides[0] for row in found.rows]
    assert [side.ids for side in sides] == [[1, 2], [3, 4, 5]]
    assert [side.mask for side in sides] == [[False, True], [False, False, True]]


def test_of_a_rated_row_only_its_own_answer_is_scored(inputs: Path) -> None:
    row = RatedRow([1], [2, 3], [9, 9], desirable=False, origin="a:1")
    (one, _) = chosen(inputs, None, fitted(row, row._replace(prompt=[5]))).rows
    assert (one.kind, one.desirable) == ("rating", False)
    assert one.sides == (([1, 2, 3], [False, True, True]),)


def test_even_one_row_is_measured_so_that_it_is_said_to_be_too_few(inputs: Path) -> None:
    found = chosen(inputs, fitted(Row([1, 2], [False, True], "a:1")), None)
    assert [row.origin for row in found.rows] == ["a:1"]
    assert chosen(inputs, None, None) is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), True),
        (("phases.sft.valid=null", "phases.sft.eval_prompts=null"), True),
        (("phases.sft.valid=null", "phases.dpo.valid=null", "phases.dpo.best=null"), True),
        (
            (
                "phases.sft.valid=null",
                "phases.dpo.valid=null",
                "phases.dpo.best=null",
                "phases.sft.eval_prompts=null",
            ),
            False,
        ),
        (
            (
                "benchmark={}",
                "phases.sft.valid=null",
                "phases.dpo.valid=null",
                "phases.dpo.best=null",
                "phases.sft.eval_prompts=null",
            ),
            True,
        ),
        (("benchmark={tasks: []}",), True),
        (("benchmark={tasks: [], held_out: false}",), False),
        (("benchmark={tasks: [truthfulqa], held_out: false}",), True),
    ],
)
def test_a_run_with_held_out_rows_or_eval_prompts_is_measured_without_benchmarks(
    inputs: Path, overrides: tuple[str, ...], expected: bool
) -> None:
    assert is_measured(recipe(inputs, *overrides)) is expected


@pytest.fixture(scope="module")
def done(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run without benchmarks, of one phase with validation rows and eval prompts."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORTY2_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        for name in ("held_out", "behaviour", "eval_prompts"):
            patch.setattr(f"forty2.benchmark.tasks.{name}.MAX_TOKENS", 4)
        yield forty2.run(recipe(inputs, "fuse=null"), run_dir=folder / "run")


@pytest.mark.parametrize(
    ("fuse", "only", "stages"),
    [
        ("null", None, ["base", "phase2_dpo"]),
        ("{out: fused}", None, ["base", "fused"]),
        ("{out: fused}", "sft", ["base", "phase1_sft"]),
    ],
)
def test_a_run_may_be_measured_at_its_beginning_and_end_alone(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fuse: str,
    only: str | None,
    stages: list[str],
) -> None:
    for name in ("held_out", "behaviour", "eval_prompts"):
        monkeypatch.setattr(f"forty2.benchmark.tasks.{name}.MAX_TOKENS", 2)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    one = recipe(
        inputs,
        f"fuse={fuse}",
        "benchmark={tasks: [], each_phase: false, n: 2}",
        "phases.sft.eval_prompts=null",
        "phases.sft.steps=2",
        "phases.dpo.steps=2",
        "phases.dpo.save_every_steps=2",
    )
    found = forty2.run(one, run_dir=tmp_path / "run", only=only)
    assert [stage.name for stage in found.stages] == stages and found.sentence


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "No held-out rows and no benchmark were measured that could show a benefit; "),
        ("benchmark: {n: 2}\n", "1 held-out chat is too few to tell; "),
    ],
)
def test_a_recipe_without_benchmark_takes_no_questions_and_claims_nothing_on_too_few_rows(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, said: str
) -> None:
    for name in ("held_out", "behaviour"):
        monkeypatch.setattr(f"forty2.benchmark.tasks.{name}.MAX_TOKENS", 2)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (first, *_) = (inputs / "sft.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(first + "\n")
    (tmp_path / "recipe.yaml").write_text(
        f"version: 1\nname: plain\nmodel: {inputs}/model\nmax_length: 96\n"
        f"adapter: {{rank: 2, layers: 2}}\nphases:\n  sft: {{objective: sft, data: {inputs}/sft.jsonl,"
        f" valid: {'one.jsonl' if more else 'null'}, steps: 3, lr: 1.0e-2, lint: false}}\n{more}"
    )
    found = forty2.run(load_recipe(tmp_path / "recipe.yaml"), run_dir=tmp_path / "run")
    assert not {"truthfulqa", "mmlu"} & {*found.stages[-1].results}
    assert found.sentence.startswith(said)
    assert found.verdict in ("inconclusive", "tax")  # never more than it can tell
    assert " ".join(str(found).split()).count(f"Verdict: {found.verdict}. {said}") == 1
    page = (tmp_path / "run" / "report.md").read_text()
    assert said in page and "TruthfulQA" not in page
    assert [one.state for one in forty2.list_runs(tmp_path / "run")] == ["finished"]


def test_the_own_rows_are_the_headline_of_a_run_without_benchmarks(done: Any) -> None:
    assert [list(stage.results) for stage in done.stages] == [
        ["held_out", "behaviour", "perplexity", "divergence"]
    ] * 3
    assert done.sentence and list(done.verdicts) == ["held_out"]
    assert done.table.startswith("your held-out rows") and "MC1" not in done.table
    summary = read_json(done.path / "summary.json")
    assert summary["questions"] == "your held-out rows"
    assert summary["stages"][0]["held_out"]["pairs right"] == 0.5
    assert done.contamination == []


def test_the_base_prefers_neither_answer_and_every_stage_holds_its_replies(done: Any) -> None:
    base, *later = (stage["held_out"] for stage in done.stages)
    assert {item.scores["pairs right"] for item in base.items if "pairs right" in item.scores} == {
        0.5
    }
    prompts = [item.record["prompt"] for item in base.items if item.record["kind"] == "reply"]
    assert set(prompts) == {f"Count to {n}, please." for n in range(6)}
    for result in later:
        kinds = [item.record["kind"] for item in result.items]
        assert kinds == [item.record["kind"] for item in base.items]
        for one, other in zip(base.items, result.items, strict=True):
            if "base_logps" in one.record:
                assert other.record["base_logps"] == one.record["logps"]


def test_the_report_shows_replies_and_figures_of_the_own_rows(done: Any) -> None:
    page = done.report.read_text("utf-8")
    assert page.index("Answers to your held-out prompts") < page.index("<h2>Training</h2>")
    assert page.index("<h2>Your held-out rows</h2>") < page.index("<h2>Measurements</h2>")
    assert "Count to 3, please." in page and "stages between" in page
    assert "Change in the loss on held-out chats" in page
    replies = [
        item.record for item in done.stages[0]["held_out"].items if item.record["kind"] == "reply"
    ]
    for reply in replies:  # counts as the row that asked for it does
        count = int(reply["prompt"].removeprefix("Count to ").removesuffix(", please."))
        assert reply["expected"] == " ".join(map(str, range(count + 1)))
        assert f"expected: {reply['expected']}" in page


def test_a_stage_of_an_earlier_release_gets_its_held_out_rows_on_resume(
    done: Any, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("held_out", "behaviour", "eval_prompts"):
        monkeypatch.setattr(f"forty2.benchmark.tasks.{name}.MAX_TOKENS", 4)
    monkeypatch.setenv("FORTY2_CACHE", str(done.path.parent / "cache"))
    before = {}
    for file in sorted((done.path / "benchmarks").glob("*.json")):
        before[file.name] = read_sealed(file)
        stage = dict(before[file.name])
        if file.stem == "base":  # of other rows
            stage["held_out"] = {**stage["held_out"], "data_sha256": "0"}
        else:
            del stage["held_out"]
        write_sealed(file, stage)
    again = forty2.run(recipe(inputs, "fuse=null"), run_dir=done.path, resume=True)
    for file in sorted((done.path / "benchmarks").glob("*.json")):
        stored = Stage.from_json(read_sealed(file), file.name)
        assert stored == Stage.from_json(before[file.name], file.name)
    assert again.sentence == done.sentence


def test_two_stages_are_compared_by_the_margins_of_the_run_s_recipe(done: Any) -> None:
    files = [done.path / "benchmarks" / f"{stage}.json" for stage in ("base", "phase2_dpo")]
    assert "worse by less than 0.01" in printed("compare", *files)
    recipe_file = done.path / "recipe.yaml"
    text = recipe_file.read_text()
    recipe_file.write_text(text.replace("benchmark: null", "benchmark: {margin: 0.2, tasks: []}"))
    try:
        assert "worse by less than 0.2" in printed("compare", *files)
        assert "worse by less than 0.03" in printed("compare", *files, "--margin", "0.03")
    finally:
        recipe_file.write_text(text)


def printed(*arguments: str | Path) -> str:
    found = CliRunner().invoke(main, [*map(str, arguments)])
    assert found.exit_code == 0, found.output
    return found.output
