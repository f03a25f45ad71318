"""HumanEval: prompts, programs and pass@k by hand; nothing runs unless it is allowed."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.benchmarks import figures_of, records_of

from forty2.benchmark import sandbox
from forty2.benchmark.prompts import Prompts
from forty2.benchmark.runner import run as measure
from forty2.benchmark.sandbox import Outcome
from forty2.benchmark.tasks import humaneval as benchmark
from forty2.benchmark.tasks.humaneval import (
    HumanEval,
    Problem,
    Problems,
    judged,
    load_problems,
)
from forty2.cli import main
from forty2.errors import BenchmarkError, DataError
from forty2.inference.generation import Reply
from forty2.model.loading import LoadedModel

PROBLEM = Problem(
    "HumanEval/x",
    'def add(a: int, b: int) -> int:\n    """Add {a} and b."""\n',
    "\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
    "add",
)


# --- prompts and programs ---


def test_a_plain_prompt_is_the_files(starter: LoadedModel) -> None:
    assert PROBLEM.context(Prompts(starter), instruct=False) == PROBLEM.prompt
    chat = PROBLEM.context(Prompts(starter, chat=True), instruct=False)
    assert chat.endswith(f"<|im_start|>user\n{PROBLEM.prompt}<|im_end|>\n<|im_start|>assistant\n")


def test_an_instruction_begins_the_answer(starter: LoadedModel) -> None:
    asked = (
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        f"```python\n{PROBLEM.prompt}\n```\n"
    )
    begun = f"Here is the completed function:\n```python\n{PROBLEM.prompt}\n"
    assert PROBLEM.context(Prompts(starter), instruct=True) == asked + begun
    chat = PROBLEM.context(Prompts(starter, chat=True), instruct=True)
    assert chat.endswith(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{begun}")


def test_a_program_is_head_reply_tests_and_call() -> None:
    tests = f"\n{PROBLEM.test}\ncheck(add)"
    reply = "    return a + b\n```\nThat adds."
    assert PROBLEM.program(reply, instruct=False) == PROBLEM.prompt + reply + tests
    cut = PROBLEM.prompt + "    return a + b\n" + tests
    assert PROBLEM.program(reply, instruct=True) == cut


def test_programs_run_in_the_sandbox() -> None:
    replies = [
        Reply("    return a + b\n", 7, True),
        Reply("    return a - b\n", 7, True),
        Reply("    return a +", 4, False),
    ]
    item = judged(PROBLEM, replies)
    assert item["task_id"] == "HumanEval/x"
    assert [sample["passed"] for sample in item["samples"]] == [True, False, False]
    assert "AssertionError" in item["samples"][1]["why"]
    assert "SyntaxError" in item["samples"][2]["why"]
    fenced = Reply("    return a + b\n```\nDone.", 9, True)
    assert judged(PROBLEM, [fenced], instruct=True)["samples"][0]["passed"]


@pytest.mark.parametrize("number", [0, 32, 163])
def test_the_published_solutions_pass(number: int, bench_data: Path) -> None:
    file = bench_data / "humaneval" / "HumanEval.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        row = json.loads(next(itertools.islice(lines, number, None)))
    problem = load_problems(file).items[number]
    assert problem.task_id == row["task_id"] == f"HumanEval/{number}"
    solution, nothing = (Reply(text, 1, True) for text in (row["canonical_solution"], "    pass"))
    samples = judged(problem, [solution, nothing])["samples"]
    assert [sample["passed"] for sample in samples] == [True, False]


# --- figures ---


def test_means_errors_and_stop_rate() -> None:
    def item(task: str, marks: str) -> dict[str, Any]:
        samples = [{"passed": m == "+", "stopped": m == "+", "why": "failed"} for m in marks]
        return {"task_id": task, "samples": samples}

    records = [item("a", "++--"), item("b", "----"), item("c", "+---")]
    measured = figures_of(HumanEval, records)
    assert measured["pass@1"] == pytest.approx((0.5 + 0 + 0.25) / 3)
    assert measured["pass@2"] == pytest.approx((5 / 6 + 0 + 0.5) / 3)
    assert {name for name in measured if name.startswith("pass@")} == {"pass@1", "pass@2"}
    assert measured["stderr"]["pass@1"] == pytest.approx((0.0625 / 3) ** 0.5)
    assert measured["stop_rate"] == 3 / 12 and measured["refused"] == 0


def test_what_the_sandbox_refuses_is_counted_apart_from_what_is_wrong() -> None:
    programs = ("import numpy", "open('/etc/passwd', 'a')", "assert False")
    outcomes = [sandbox.run(program)._asdict() for program in programs]
    items = [
        {"task_id": str(n), "samples": [{**outcome, "stopped": True}]}
        for n, outcome in enumerate(outcomes)
    ]
    assert figures_of(HumanEval, items)["refused"] == 2


# --- files ---


def test_malformed_files_are_one_line_with_file_and_line(tmp_path: Path) -> None:
    row = {"task_id": "a", "prompt": "p", "test": "t", "entry_point": "e"}

    def fails(message: str, source: Path, *rows: dict[str, Any]) -> None:
        if rows:
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises((BenchmarkError, DataError), match=message) as caught:
            load_problems(source)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

    file = tmp_path / "mine.jsonl"
    fails("neither HumanEval.jsonl.gz nor HumanEval.jsonl is there", tmp_path)
    fails(r"mine\.jsonl: cannot be read", file)
    fails(r"mine\.jsonl:2: entry_point is missing or no text", file, row, row | {"entry_point": 1})
    fails(r"mine\.jsonl:2: 'a' is there twice", file, row, row)
    file.write_text("")
    fails(r"mine\.jsonl: holds no problems", file)


# --- the starter ---


def test_answers_are_run_when_all_of_a_problem_are_there(
    starter: LoadedModel, bench_data: Path
) -> None:
    problems = load_problems(bench_data / "humaneval").items[23:25]
    programs: list[str] = []

    def run(program: str) -> Outcome:
        programs.append(program)
        return Outcome(len(programs) % 2 == 1, "odd")

    def answered(some: tuple[Problem, ...]) -> list[dict[str, Any]]:
        task = HumanEval(data="", samples=2, temperature=0.8, top_p=1.0, max_tokens=6, run=run)
        return records_of(task, starter, Problems(some, ""))

    items = answered(problems)
    assert [item["task_id"] for item in items] == ["HumanEval/23", "HumanEval/24"]
    told = {
        problem.program(sample["reply"], instruct=False)
        for problem, item in zip(problems, items, strict=True)
        for sample in item["samples"]
    }
    assert set(programs) == told and len(programs) == 4
    assert [[s["passed"] for s in item["samples"]] for item in items] == [[True, False]] * 2
    alone = answered(problems[1:])
    replies = [[sample["reply"] for sample in item["samples"]] for item in (items[1], alone[0])]
    assert replies[0] == replies[1]  # whatever was measured beside it


def test_nothing_runs_or_loads_unless_it_is_allowed(
    bench_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(sandbox, "run", never)
    monkeypatch.setattr(benchmark, "load_problems", never)
    with pytest.raises(BenchmarkError, match="`run_untrusted_code=True`"):
        measure(HumanEval(data=bench_data / "humaneval"), "smollm2")
    arguments = ["benchmark", "humaneval", "-m", "smollm2", "-d", str(bench_data / "humaneval")]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "else --run-untrusted-code); they run in a sandbox" in refused.output
    assert len(refused.output.strip().splitlines()) == 1


def test_many_greedy_answers_are_refused(bench_data: Path) -> None:
    with pytest.raises(BenchmarkError, match="4 greedy answers would be the same"):
        HumanEval(data=bench_data, run_untrusted_code=True, samples=4, temperature=0.0).load()


@pytest.mark.parametrize(
    ("instruct", "asked", "templated"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
def test_instructions_take_the_chat_template_unless_it_is_refused(
    instruct: bool, asked: bool | None, templated: bool, starter: LoadedModel
) -> None:
    task = HumanEval(data="", instruct=instruct, chat_template=asked)
    assert task.settings(Problems((), ""), starter)["chat_template"] is templated
    prompts: list[list[int]] = []

    def replies(_: LoadedModel, ids: list[list[int]], **__: Any) -> list[Any]:
        prompts.extend(ids)
        return []

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):  # no reply, no record
        patch.setattr("forty2.inference.generation.generate_replies", replies)
        records_of(task, starter, Problems((PROBLEM,), ""))
    text = starter.tokenizer.decode(prompts[0])
    assert ("<|im_start|>user" in text) is templated


def test_the_command(bench_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        main,
        [
            "benchmark",
            "humaneval",
            "-m",
            "smollm2",
            "-d",
            str(bench_data / "humaneval"),
            "--limit",
            "2",
            "--max-tokens",
            "6",
            "--instruct",
            "--samples",
            "2",
            "--run-untrusted-code",
            "--out",
            str(out),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "pass@1            0.0000 ± 0.0000" in done.output
    measured = json.loads(out.read_text())
    assert (measured["temperature"], measured["top_p"]) == (0.2, 0.95)
    assert measured["instruct"] and measured["chat_template"] and measured["n"] == 2
    assert "no network" in measured["sandbox"]["held"] + measured["sandbox"]["gaps"]
    assert [len(item["samples"]) for item in measured["items"]] == [2, 2]
