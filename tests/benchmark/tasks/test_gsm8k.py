"""GSM8K: prompts and answers by hand, examples as the harness draws them, the starter's replies."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.benchmarks import figures_of, records_of
from support.models import save_tiny

from forty2.benchmark.prompts import Prompts
from forty2.benchmark.runner import run
from forty2.benchmark.tasks.gsm8k import (
    INVALID,
    Gsm8k,
    Problem,
    bare,
    judged,
    last_number,
    load_problems,
    strict_answer,
)
from forty2.cli import main
from forty2.errors import BenchmarkError, DataError
from forty2.inference.generation import Reply
from forty2.model.loading import LoadedModel

PROBLEM = Problem("How many?", "Half is <<1018/2=509>>509.\nBoth: 1,018\n#### 1,018", 1)


# --- prompts ---


def test_a_prompt_is_examples_and_question(starter: LoadedModel) -> None:
    context = Prompts(starter).context(
        PROBLEM.asked(), [Problem("One?", "It is 1.\n#### 1", 2).shot()]
    )
    assert context == "Question: One?\nAnswer: It is 1.\n#### 1\n\nQuestion: How many?\nAnswer:"


def test_examples_are_drawn_as_the_harness_draws_them(bench_data: Path) -> None:
    """One generator, seeded with 1234, five of 7,473 for each of the problems in turn."""
    problems = load_problems(bench_data / "gsm8k")
    assert len(problems.items) == len(problems.shots) == 1319
    lines = (bench_data / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()
    train = [json.loads(line) for line in lines]
    rng = random.Random(1234)
    for shots in problems.shots[:3]:
        for shot, row in zip(shots, rng.sample(train, 5), strict=True):
            assert shot == (f"Question: {row['question']}\nAnswer:", row["answer"])
    assert len(set(problems.shots)) == 1319
    assert load_problems(bench_data / "gsm8k" / "test.jsonl") == problems
    assert set(load_problems(bench_data / "gsm8k", shots=0).shots) == {()}


# --- answers ---


@pytest.mark.parametrize(
    ("reply", "strict", "flexible", "strict_match", "flexible_extract"),
    [
        (" It is 1018.\n#### 1018", "1018", "1018", True, True),
        ("#### 1,018.", "1,018.", "1,018.", True, True),
        ("#### 5 #### 1018", "5", "1018", False, True),
        ("#### 1018\nThat is 7 and 8", "1018", "8", True, False),
        ("It costs $1,018.", INVALID, "$1,018.", False, True),
        ("#### $1018", INVALID, "$1018", False, True),
        ("####1018", INVALID, "1018", False, True),
        ("#### -1018", "-1018", "-1018", False, False),
        ("1018 in all, of course...", INVALID, "...", False, False),
        ("1018.00", INVALID, "1018.00", False, False),
        ("a thousand and eighteen", INVALID, INVALID, False, False),
        ("", INVALID, INVALID, False, False),
        ("7", INVALID, "7", False, False),
    ],
)
def test_what_is_found_in_a_reply(
    reply: str, strict: str, flexible: str, strict_match: bool, flexible_extract: bool
) -> None:
    assert (strict_answer(reply), last_number(reply)) == (strict, flexible)
    item = judged(PROBLEM, Reply(reply, 9, True))
    assert item["answer"] == "1018"
    assert (item["strict_match"], item["flexible_extract"]) == (strict_match, flexible_extract)


def test_what_is_compared() -> None:
    assert bare("so #### 1 and\n#### $1,234.") == "1234"
    assert bare("#### -0.5") == "-0.5"
    assert bare("[Invalid]") == "[invalid]"


def test_means_errors_and_stop_rate() -> None:
    items = [
        judged(PROBLEM, Reply("#### 1018", 9, True)),
        judged(PROBLEM, Reply("1018", 256, False)),
        judged(PROBLEM, Reply("no", 9, True)),
        judged(PROBLEM, Reply("no", 9, True)),
    ]
    measured = figures_of(Gsm8k, items)
    assert (measured["strict_match"], measured["flexible_extract"]) == (0.25, 0.5)
    assert measured["stderr"]["strict_match"] == pytest.approx((0.75 / 3 / 4) ** 0.5)
    assert measured["stop_rate"] == 0.75


# --- files ---


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


ROW = {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}


def test_malformed_files_are_one_line_with_file_and_line(tmp_path: Path) -> None:
    def fails(message: str, source: Path, shots: int = 0) -> None:
        with pytest.raises((BenchmarkError, DataError), match=message) as caught:
            load_problems(source, shots=shots)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

    fails(r"test\.jsonl: cannot be read", tmp_path)
    test = write(tmp_path, "test.jsonl", [ROW, {"question": "x"}])
    fails(r"test\.jsonl:2: answer is missing or no text", tmp_path)
    write(tmp_path, "test.jsonl", [ROW, ROW | {"question": 3}])
    fails(r"test\.jsonl:2: question is missing or no text", test)
    write(tmp_path, "test.jsonl", [ROW | {"answer": "2"}])
    fails(r"test\.jsonl:1: the answer does not end in '#### '", test)
    write(tmp_path, "test.jsonl", [])
    fails(r"test\.jsonl: holds no questions", test)
    write(tmp_path, "test.jsonl", [ROW])
    fails(r"train\.jsonl: cannot be read", tmp_path, shots=1)
    write(tmp_path, "train.jsonl", [ROW])
    fails(r"train\.jsonl: holds 1 examples, not 5", tmp_path, shots=5)
    fails("name it test.jsonl", write(tmp_path, "mine.jsonl", [ROW]), shots=1)


# --- the starter ---


def test_replies_hold_what_they_are_judged_by(starter: LoadedModel, bench_data: Path) -> None:
    problems = load_problems(bench_data / "gsm8k", shots=0)
    calls: list[tuple[int, int]] = []
    items = records_of(
        Gsm8k(data="", chat_template=True, max_tokens=12),
        starter,
        problems.only([1, 5]),
        lambda done, total, _: calls.append((done, total)),
    )
    assert calls == [(1, 2), (2, 2)]
    for item, place in zip(items, (1, 5), strict=True):
        assert item["question"] == problems.items[place].question
        assert item["number"] == place + 1
        assert item == judged(
            problems.items[place], Reply(item["reply"], item["tokens"], item["stopped"])
        )
        assert 0 < item["tokens"] <= 12


def test_a_measurement_that_stopped_goes_on_to_the_same_result(tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "out.json"
    folder.mkdir()
    rows = [ROW | {"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)]
    for name in ("test.jsonl", "train.jsonl"):
        write(folder, name, rows)
    task = Gsm8k(data=folder, shots=1, max_tokens=4, n=3)
    model = save_tiny(tmp_path / "model")
    whole = run(task, str(model)).to_json()
    assert (whole["n"], whole["shots"], whole["max_tokens"]) == (3, 1, 4)

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task, str(model), out=out, progress=stop)
    told: list[int] = []
    resumed = run(
        task,
        str(model),
        out=out,
        resume=True,
        progress=lambda stage, done, total, info: told.append(done),
    )
    assert told == [3]
    assert resumed.to_json() == whole == json.loads(out.read_text())


def test_the_command(tmp_path: Path) -> None:
    for name in ("test.jsonl", "train.jsonl"):
        write(tmp_path, name, [ROW, ROW, ROW])
    arguments = ["benchmark", "gsm8k", "-m", "smollm2", "-d", str(tmp_path), "--max-tokens", "2"]
    done = CliRunner().invoke(main, [*arguments, "--limit", "2", "--shots", "1", "--chat"])
    assert done.exit_code == 0, done.output
    assert "2 questions\nstrict_match      0.0000 ± 0.0000\nflexible_extract  " in done.output
    assert "stopped           0.0% of answers" in done.output
    failed = CliRunner().invoke(main, [*arguments, "--n", "4", "--shots", "1"])
    assert failed.exit_code == 2 and "cannot ask 4 of 3" in failed.output
