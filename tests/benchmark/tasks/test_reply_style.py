"""The style of replies as a benchmark, at every stage of a run, and at the evaluations of a phase."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

from forty2.benchmark.compare import compare
from forty2.benchmark.reply_style import METRICS, Moves
from forty2.benchmark.results import Result
from forty2.benchmark.runner import run as benchmark
from forty2.benchmark.tasks.reply_style import ReplyStyle, measure_replies
from forty2.benchmark.verdict import STYLE
from forty2.cli import main
from forty2.errors import BenchmarkError, DataError
from forty2.files import JsonObject, read_json
from forty2.model.loading import load
from forty2.recipe.reading import load_recipe
from forty2.runs.pipeline import run
from forty2.text.encoder import Encoder

SPIRAL = (
    "A cap is fair. But it costs the builder his trade. A cap for a year may be enough for both."
)
FACT = "The train leaves at 8:14."


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("style") / "inputs")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))


def result(*replies: str) -> Result:
    """A result over prompts a, b, … with these replies."""
    records = []
    for name, reply in zip("abcdefgh", replies, strict=False):
        moves, stance = Moves(1, 1, 1) if reply == SPIRAL else Moves(0, 0, 0), "none"
        record = {"prompt": name, "reply": reply, "tokens": len(reply.split()), **moves._asdict()}
        records.append(record | {"stance": stance, "stopped": True})
    items = ReplyStyle.items(records)
    return Result(
        benchmark=STYLE,
        model="m",
        adapter=None,
        seed=None,
        data="open questions",
        data_sha256="0",
        versions={},
        settings={"max_tokens": 8},
        figures=ReplyStyle.figures(items),
        items=items,
    )


def test_a_result_has_every_metric_with_its_interval_and_the_detectors_quality(
    inputs: Path,
) -> None:
    task = ReplyStyle(n=4, max_tokens=8)
    found = benchmark(task, str(inputs / "model"), out="style.json")
    assert Result.from_json(read_json(Path("style.json")), "style.json") == replace(
        found, versions=found.versions
    )
    assert {"spiral_score", "reply_length"} <= found.figures["means"].keys()
    assert found.figures["means"].keys() == found.figures["intervals"].keys() <= METRICS.keys()
    for name, mean in found.figures["means"].items():
        interval = found.figures["intervals"][name]
        assert interval["low"] <= mean <= interval["high"]
    assert {one["part"] for one in found.figures["detectors"]} >= {"thesis", "implicit"}


def test_the_caution_stands_beside_the_number() -> None:
    lines = {line.split()[0]: line for line in str(result(SPIRAL, FACT)).splitlines() if line}
    for name, caution in ReplyStyle.cautions(result(SPIRAL, FACT).figures).items():
        if name in lines:
            assert caution in lines[name] and "F1 under 0.8" in lines[name]
    assert "F1" not in lines["distinct_1"]


def test_a_changed_record_is_noticed() -> None:
    found: Any = result(SPIRAL, FACT).to_json()
    found["items"][0]["synthesis"] = 0
    with pytest.raises(BenchmarkError, match="measure again"):
        Result.from_json(found, "style.json")
    found["items"][0]["stance"] = "strong"
    with pytest.raises(BenchmarkError):
        Result.from_json(found, "style.json")


def test_the_change_of_the_spiral_score_has_a_paired_interval() -> None:
    changed = compare(result(*[FACT] * 8), result(*[SPIRAL] * 7, FACT))
    one = changed.metrics["spiral_score"]
    assert one.low > 0 and one.verdict == "gain" and [*changed.metrics] == ["spiral_score"]


def test_prompts_of_your_own_are_asked(inputs: Path) -> None:
    Path("own.txt").write_text("Is it so?\nIs it not?\n")
    questions = ReplyStyle(data="own.txt").load()
    assert ReplyStyle().question_texts(questions) == [("Is it so?",), ("Is it not?",)]
    assert ReplyStyle().source(questions).n == 2
    Path("one.txt").write_text("Is it so?\n")
    with pytest.raises(BenchmarkError, match="two or more"):
        ReplyStyle(data="one.txt").load()
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        ReplyStyle(data="none.txt").load()


def test_the_command_prints_the_metrics(inputs: Path) -> None:
    words = ["benchmark", "reply-style", "--model", str(inputs / "model"), "--n", "2"]
    printed = CliRunner().invoke(main, [*words, "--max-tokens", "4"], catch_exceptions=False)
    assert printed.exit_code == 0 and "spiral_score" in printed.output


# --- in a phase -----------------------------------------------------------------------------------


def state() -> Any:
    """The state of mlx's random numbers."""
    return cast(list[mx.array], mx.random.state)[0].tolist()


def test_measuring_leaves_training_as_it_was(inputs: Path) -> None:
    loaded = load(str(inputs / "model"))
    prompt = Encoder(loaded.tokenizer).prompt([{"role": "user", "content": "Count to 2."}])
    loaded.model.train()
    before = state()
    found = measure_replies(loaded, [prompt, prompt[:-1]])
    assert loaded.model.training and state() == before
    assert found["spiral_score_low"] <= found["spiral_score"] <= found["spiral_score_high"]
    assert 0 < found["spiral_score_f1"] < 1


def log(folder: Path, phase: str) -> list[JsonObject]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == phase]


def test_a_phase_chooses_by_replies_and_by_perplexity_and_the_run_reports_the_style(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(*_: Any) -> dict[str, float]:
        """Better by two moves at each evaluation, as no tiny model would be."""
        scores.append(2.0 * len(scores))
        return {"spiral_score": scores[-1], "spiral_score_f1": 0.68}

    scores: list[float] = []
    told: list[str] = []
    monkeypatch.setattr("forty2.runs.inputs.measure_replies", scripted)
    changes = [
        "fuse=null",
        "phases.sft.eval_prompts=null",
        "phases.sft.best={metric: perplexity, direction: min}",
        "phases.dpo.best={metric: spiral_score, direction: max}",
        "phases.dpo.until={metric: spiral_score, at_least: 4}",
        "benchmark={tasks: [{task: reply_style, n: 2}], n: 24, each_phase: false}",
    ]
    recipe = load_recipe(str(inputs / "recipe.yaml"), changes)
    found = run(
        recipe, run_dir="run", progress=lambda *args: told.append(str(args[3].get("notice")))
    )
    logged = [line.get("valid_spiral_score") for line in log(found.path, "dpo")]
    assert [score for score in logged if score is not None] == scores == [0.0, 2.0, 4.0]
    record = read_json(found.path / "phase2_dpo" / "phase.json")
    assert record["steps"] == record["kept_step"] == 2
    assert any("F1 of its detector" in text for text in told)
    perplexities = {
        line["step"]: line["valid_perplexity"]
        for line in log(found.path, "sft")
        if "valid_perplexity" in line
    }
    kept = read_json(found.path / "phase1_sft" / "phase.json")["kept_step"]
    assert perplexities[kept] == min(perplexities.values())
    report = (found.path / "report.md").read_text()
    assert "### Style of the replies" in report and "weak detector: F1 under 0.8" in report
    assert "| perplexity (lower is better) |" in report
    assert "weak detector" in (found.path / "report.html").read_text()
    assert "weak detector" in found.table
