"""TruthfulQA's binary setting: prompts by hand, both orders, and what letters alone amount to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from support.benchmarks import figures_of, records_of, result_of, summarized
from support.models import save_tiny, tiny_loaded, tiny_model

from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.prompts import Prompts
from forty2.benchmark.results import Result
from forty2.benchmark.stages import load_measurement
from forty2.benchmark.tasks import truthfulqa_binary as benchmark
from forty2.benchmark.tasks.truthfulqa_binary import LETTERS, METRICS, ORDERS, TruthfulQABinary
from forty2.benchmark.truthfulqa_questions import Options, Question, Questions
from forty2.cli import main
from forty2.errors import BenchmarkError
from forty2.recipe.schema import Benchmark, BenchmarkTask

PAIR = Options(("No", "Yes, it is green"), (1, 0))
ASKED = Questions(
    (
        Question("Is the sky green?", "Colours", PAIR, PAIR, PAIR),
        Question(
            "Is a cat a dog? ", "Animals", PAIR, PAIR, Options(("It is", "No cat is"), (0, 1))
        ),
        Question("Who?", "Colours", PAIR, PAIR, Options(("Nobody", "The mayor of Ulm"), (1, 0))),
    ),
    "0" * 64,
    "ours",
    None,
)
TASK = TruthfulQABinary(data="ours")
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def record(true_first: list[float], false_first: list[float], question: str = "?") -> Any:
    scored = {"true_first": true_first, "false_first": false_first}
    return {"question": question, "category": "c", **scored}


def row(number: int, category: str, **fields: Any) -> dict[str, Any]:
    targets = {"Yes": 0, f"No {number}": 1}
    names = ("mc0_targets", "mc1_targets", "mc2_targets")
    asked = {"question": f"Is it {number}?", "category": category}
    return {**asked, **dict.fromkeys(names, targets), **fields}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three questions of categories that are practised, and four of others."""
    names = ["Law", "Proverbs", "Weather", "Politics", "Politics", "Sociology", "Sociology"]
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps([row(n, name) for n, name in enumerate(names)]), "utf-8")
    return path


@pytest.mark.parametrize("chat", [False, True])
def test_both_orders_are_scored_as_a_plain_forward_does(chat: bool) -> None:
    loaded = tiny_loaded(tiny_model(), template=TEMPLATE)
    shown = {
        "true_first": "Is a cat a dog?\nA. No cat is\nB. It is\nAnswer:",
        "false_first": "Is a cat a dog?\nA. It is\nB. No cat is\nAnswer:",
    }
    found = records_of(replace(TASK, chat_template=chat), loaded, ASKED)[1]
    prompts = Prompts(loaded, chat=chat)
    for order, text in shown.items():
        for row_, logp in zip(
            prompts.rows(prompts.context(text), LETTERS), found[order], strict=True
        ):
            ids = [*row_.given, *row_.scored]
            output = np.array(loaded.model(mx.array([ids[:-1]]))[0].astype(mx.float32), np.float64)
            logps = output - np.log(np.exp(output).sum(axis=-1, keepdims=True))
            places = range(len(row_.given), len(ids))
            assert logp == pytest.approx(sum(logps[at - 1, ids[at]] for at in places), abs=1e-4)


@pytest.mark.parametrize(
    ("orders", "mean", "both", "share"),
    [
        (([0.0, -9.0], [0.0, -9.0]), 0.5, 0.0, 0.5),  # always A
        (([-1.0, -3.0], [-3.0, -1.0]), 1.0, 1.0, 1 / (1 + np.exp(-2))),
        (([-3.0, -1.0], [-1.0, -3.0]), 0.0, 0.0, 1 / (1 + np.exp(2))),
        (([-1.0, -1.0], [-1.0, -1.0]), 0.0, 0.0, 0.5),  # knows nothing: a tie is wrong
    ],
)
def test_a_letter_alone_earns_half(
    orders: tuple[list[float], list[float]], mean: float, both: float, share: float
) -> None:
    found = TruthfulQABinary.scores(record(*orders))
    assert (found["binary"], found["binary_both"]) == (mean, both)
    assert found["binary_share"] == pytest.approx(share)


def test_the_random_order_is_drawn_from_the_question_alone() -> None:
    """A model that always says A is right where the true option is drawn first: about half the time."""
    drawn = [
        TruthfulQABinary.scores(record([0.0, -1.0], [0.0, -1.0], f"Is it {n}?"))["binary_random"]
        for n in range(400)
    ]
    assert {*drawn} == {0.0, 1.0} and 0.4 < np.mean(drawn) < 0.6


def test_a_result_has_means_categories_and_the_letter() -> None:
    records = [record([0.0, -1.0], [0.0, -1.0]), record([0.0, -1.0], [-1.0, 0.0], "Then?")]
    figures = figures_of(TruthfulQABinary, records)
    assert (figures["binary"], figures["binary_both"], figures["letter_a"]) == (0.75, 0.5, 0.75)
    assert figures["per_category"]["c"]["n"] == 2
    loaded = tiny_loaded(tiny_model())
    measured = result_of(replace(TASK, leave_out=["Law"]), loaded, ASKED)
    assert measured["leave_out"] == ["Law"] and {*measured["per_category"]} == {
        "Colours",
        "Animals",
    }
    assert Result.from_json(measured, "it").to_json() == measured
    assert {*measured["items"][0]["scores"]} == {*METRICS}


@pytest.mark.parametrize(("second", "said"), [([0.0, -1.0], True), ([-1.0, 0.0], False)])
def test_a_model_that_always_says_one_letter_is_told_apart(second: list[float], said: bool) -> None:
    result = result_of(TASK, tiny_loaded(tiny_model()), ASKED)
    records = [record([0.0, -1.0], second, question) for question in ("Is it?", "Was it?")]
    figures = summarized("truthfulqa_binary", records)
    text = TruthfulQABinary.text(Result.from_json({**result, **figures}, "it"))
    assert ("nearly always the same letter" in text) is said


def test_a_broken_model_is_an_error_that_names_the_question() -> None:
    loaded = tiny_loaded(tiny_model())
    norm = loaded.model.model.norm
    norm.weight = mx.full(norm.weight.shape, float("nan"))
    with pytest.raises(BenchmarkError, match=r"Is the sky green\?.*nan"):
        records_of(TASK, loaded, ASKED)


def test_going_on_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "BATCH_QUESTIONS", 2)
    loaded, told = tiny_loaded(tiny_model()), []
    whole = records_of(TASK, loaded, ASKED, lambda done, total, _: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]
    partial = PartialResults.in_memory()
    partial.add("2", whole[1])
    assert TASK.score(loaded, ASKED, partial, lambda *_: None) == whole
    assert [partial[str(n)] for n in (1, 2, 3)] == whole


def test_a_file_without_the_setting_is_refused(file: Path) -> None:
    rows = json.loads(file.read_text())
    del rows[2]["mc0_targets"]
    file.write_text(json.dumps(rows))
    with pytest.raises(BenchmarkError, match=r"'Is it 2\?' has no mc0_targets; give TruthfulQA's"):
        TruthfulQABinary(data=file).load()
    three = row(1, "Law", mc0_targets={"No": 1, "Yes": 0, "Perhaps": 0})
    file.write_text(json.dumps([three]))
    with pytest.raises(BenchmarkError, match="item 1, mc0_targets: keep one true and one false"):
        TruthfulQABinary(data=file).load()


def test_a_run_can_measure_it(file: Path) -> None:
    asked = BenchmarkTask(task="truthfulqa_binary", data=str(file))
    found = load_measurement(Benchmark(tasks=[asked]), 1).tasks["truthfulqa_binary"]
    texts = found.task.question_texts(found.questions)
    assert texts is not None and texts[0] == ("Is it 0?", "Yes", "No 0")


def test_the_command_leaves_out_what_was_practised(file: Path, tmp_path: Path) -> None:
    model, out = save_tiny(tmp_path / "model"), tmp_path / "out.json"
    command = ["benchmark", "truthfulqa-binary", "-m", str(model), "-q", str(file)]
    runner = CliRunner()
    done = runner.invoke(main, [*command, "--leave-out", "practised", "-o", str(out)])
    assert done.exit_code == 0, done.output
    measured = json.loads(out.read_text())
    assert measured["n"] == 4 and {i["category"] for i in measured["items"]} == {
        "Politics",
        "Sociology",
    }
    assert "right in both" in done.output and "prefers A in" in done.output
    whole = tmp_path / "whole.json"
    assert runner.invoke(main, [*command, "-o", str(whole)]).exit_code == 0
    assert runner.invoke(main, ["compare", str(whole), str(whole)]).exit_code == 0
    refused = runner.invoke(main, ["compare", str(whole), str(out)])
    assert "leave_out is None" in refused.output
    wrong = runner.invoke(main, [*command, "--leave-out", "Lore"])
    assert wrong.exit_code == 2 and "has no questions of Lore to leave out" in wrong.output


def test_orders_name_what_is_shown_first() -> None:
    assert [benchmark._asked(ASKED.items[0], order).split("\n")[1] for order in ORDERS] == [
        "A. No",
        "A. Yes, it is green",
    ]
