"""A benchmark is one file: it is found, measured, compared and part of a run by that alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import make_inputs
from click.testing import CliRunner

from forty2.benchmark import tasks
from forty2.benchmark.compare import compare
from forty2.benchmark.results import Result, read_measured
from forty2.benchmark.stages import load_measurement
from forty2.benchmark.task import as_share
from forty2.benchmark.tasks import task_class, task_names
from forty2.cli import main
from forty2.errors import BenchmarkError
from forty2.files import read_json
from forty2.recipe.schema import Benchmark, BenchmarkTask

SPELLING = '''
"""Spelling: how many letters does the tokenizer split each word of a file into?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.benchmark.results import Item
from forty2.benchmark.task import Metric, Report, Source, Task
from forty2.files import JsonObject

if TYPE_CHECKING:
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Spelling(Task[list[str]]):
    """Tokens of each word."""

    data: Path
    n: int | None = None
    upper: bool = False

    name = "spelling"
    title = "words"
    judged = ("tokens",)
    must_agree = ("upper",)

    def load(self) -> list[str]:
        return Path(self.data).read_text().split()[: self.n]

    def source(self, questions: list[str]) -> Source:
        sha256 = hashlib.sha256(" ".join(questions).encode()).hexdigest()
        return Source(str(self.data), sha256, len(questions))

    def settings(self, questions: list[str], loaded: LoadedModel) -> JsonObject:
        return {"upper": self.upper}

    def score(
        self, loaded: LoadedModel, questions: list[str], partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        words = [word.upper() if self.upper else word for word in questions]
        return [{"word": w, "tokens": len(loaded.tokenizer.encode(w))} for w in words]

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        total = sum(item.scores["tokens"] for item in items)
        return {"n": len(items), "tokens": total / len(items)}

    @classmethod
    def scores(cls, record: JsonObject) -> dict[str, float]:
        return {"tokens": float(record["tokens"])}

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["word"], None

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        return {"tokens": figures["tokens"]}

    @classmethod
    def metric(cls, name: str) -> Metric:
        return Metric(0.0, float("inf"), "lower")
'''


@pytest.fixture
def spelling(tmp_path: Path) -> Iterator[Path]:
    """A benchmark more in the folder of tasks; returns its data."""
    (tmp_path / "spelling.py").write_text(SPELLING)
    (tmp_path / "words.txt").write_text("a bb ccc dddd eeeee ffffff ggggggg hhhhhhhh")
    tasks.__path__.append(str(tmp_path))
    task_names.cache_clear()
    yield tmp_path / "words.txt"
    tasks.__path__.remove(str(tmp_path))
    task_names.cache_clear()
    task_class.cache_clear()


def test_every_task_says_what_it_is() -> None:
    assert set(task_names()) >= {"truthfulqa", "mmlu", "gsm8k", "humaneval", "behaviour"}
    for name in task_names():
        kind = task_class(name)
        assert kind.name == name and kind.judged and kind.__doc__
    with pytest.raises(BenchmarkError, match="no benchmark 'mmul'; there are behaviour, div"):
        task_class("mmul")


def test_a_new_file_is_a_command_and_its_results_are_compared(
    spelling: Path, tmp_path: Path
) -> None:
    model = make_inputs(tmp_path / "in") / "model"
    command = ["benchmark", "spelling", "-m", str(model), "--data", str(spelling)]
    assert "spelling" in CliRunner().invoke(main, ["benchmark", "--help"]).output
    asked = CliRunner().invoke(main, [*command, "--n", "7", "-o", str(tmp_path / "one.json")])
    assert asked.exit_code == 0, asked.output
    assert "7 questions" in asked.output and "tokens" in asked.output
    one = read_measured(read_json(tmp_path / "one.json"), "it")
    assert isinstance(one, Result) and one.model == str(model)
    fewer = [{**item.record, "tokens": item.record["tokens"] - 0.5} for item in one.items]
    better = Result.from_json(
        {**one.to_json(), "tokens": one.figures["tokens"] - 0.5, "items": fewer}, "it"
    )
    found = compare(one, better)
    assert found.verdict == "gain, cost unclear" and found.metrics[
        "tokens"
    ].difference == pytest.approx(-0.5)
    assert (found.metrics["tokens"].better, found.metrics["tokens"].worse) == (7, 0)
    assert compare(better, one).verdict == "tax"
    again = CliRunner().invoke(main, [*command, "--n", "7", "--upper", "-o", str(tmp_path / "2")])
    assert again.exit_code == 0, again.output
    refused = CliRunner().invoke(main, ["compare", str(tmp_path / "one.json"), str(tmp_path / "2")])
    assert "upper is False (words) before and True (words) after" in refused.output


def test_a_new_file_can_be_measured_in_a_run(spelling: Path) -> None:
    asked = BenchmarkTask(task="spelling", data=str(spelling), n=3)
    found = load_measurement(
        Benchmark(questions="probe", tasks=[BenchmarkTask(task="truthfulqa"), asked]), 1
    )
    assert found.tasks["spelling"].questions == ["a", "bb", "ccc"]


def test_only_true_and_false_are_shares() -> None:
    assert (as_share(True), as_share(False)) == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"0\.5 is neither true nor false"):
        as_share(0.5)
