"""Questions and results that must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bad_input import (
    CSV,
    QUESTION,
    Case,
    Cases,
    Content,
    check_process,
    check_refused,
    config,
    cut,
    empty_folder,
    link,
    options,
    pipe,
    sparse,
)

CASES = Cases()
case = CASES.add


def questions(name: str, content: Content, *says: str, file: str = "questions.json") -> None:
    command = f"benchmark truthfulqa -m tiny -q {file} -o out.json"
    case(f"questions: {name}", {file: content}, command, file, *says)


def asked(**changes: Any) -> str:
    return json.dumps([QUESTION, {**QUESTION, **changes}])


questions("missing", None, "no such file; give mc_task.json")
questions("a folder", empty_folder, "cannot be read: Is a directory")
questions("a pipe", pipe, "is no file but a pipe or a device")
questions("a device", link("/dev/zero"), "is no file but a pipe")
questions("20 MB", sparse(20_000_000), "20,000,000 bytes are too many for a file of questions")
questions("empty", "", "not JSON")
questions("cut short", cut(0.5), "not JSON")
questions("not UTF-8", b"\xff", "not JSON", "or the CSV with a name in .csv")
questions("UTF-16", asked().encode("utf-16"), "not JSON")
questions("recursive", "[" * 100_000, "not JSON (nested too deeply)")
questions("5,000 digits", "[" + "1" * 5000 + "]", "not JSON")
questions("an object", "{}", "not a list of questions")
questions("none", "[]", "holds no questions")
questions("of texts", '["Is it?"]', "item 1: not an object")
questions("other columns", '[{"q": 1}]', "item 1: question, mc1_targets, mc2_targets missing")
questions("one empty", asked(question=" "), "item 2: the question is empty")
questions("one a number", asked(question=7), "item 2: the question is empty or no text")
questions("one with half a surrogate", asked(question="\ud800"), "item 2", "surrogate")
questions("options a list", asked(mc1_targets=["Yes."]), "item 2, mc1_targets: not an object")
questions("no options", asked(mc1_targets={}), "item 2, mc1_targets: no true answer")
questions("none true", options('{"Yes.": 0, "No.": 0}'), "item 2, mc1_targets: no true answer")
questions("all true", options('{"Yes.": 1}'), "item 2, mc1_targets: no false answer")
questions(
    "two true", options('{"Yes.": 1, "So.": 1, "No.": 0}'), "item 2, mc1_targets: 2 true answers"
)
questions("an option twice", options('{"Yes.": 1, "No.": 0, "No.": 1}'), "'No.' is there twice")
questions(
    "labelled true", options('{"Yes.": true, "No.": 0}'), "'Yes.' is labelled True; use 1 or 0"
)
questions("labelled 2", options('{"Yes.": 2, "No.": 0}'), "'Yes.' is labelled 2; use 1 or 0")
questions("labelled NaN", options('{"Yes.": NaN, "No.": 0}'), "'Yes.' is labelled nan; use 1 or 0")
questions(
    "more options than labels",
    options('{"choices": ["a", "b"], "labels": [1]}'),
    "differ in number",
)
questions("labels a number", options('{"choices": ["a", "b"], "labels": 1}'), "item 2, mc1_targets")
questions(
    "an option a number", options('{"choices": [1, "b"], "labels": [1, 0]}'), "option 1 is no text"
)
questions("CSV empty", "", "holds no questions", file="questions.csv")
questions("CSV, other columns", "a,b\n1,2\n", "wrong columns, Question,", file="questions.csv")
questions("CSV, a cell less", f"{CSV}Is it?\n", "item 2", file="questions.csv")
questions("CSV, not UTF-8", b"\xff\n", "not readable as CSV", file="questions.csv")
questions(
    "CSV, no true answer", f"{CSV}Is it?,Law,,Yes,No\n", "no true answer", file="questions.csv"
)
case(
    "questions: more than there are",
    {},
    "benchmark truthfulqa -m tiny -q questions.json --n 9",
    "questions.json: cannot sample 9 of 4 questions",
)
case(
    "questions: out into a file",
    {"f": ""},
    "benchmark truthfulqa -m tiny -q questions.json -o f/out.json",
    "f/out.json: cannot",
)


def result(name: str, content: Content, *says: str) -> None:
    case(f"result: {name}", {"after.json": content}, "compare before.json after.json", *says)


def first(n: int) -> Content:
    """A result's first items alone."""
    return lambda path: config(items=json.loads(path.read_text())["items"][:n])(path)


def item(change: Callable[[dict[str, Any]], object]) -> Content:
    """A result whose second item is changed."""

    def rewrite(path: Path) -> None:
        found = json.loads(path.read_text())
        change(found["items"][1])
        path.write_text(json.dumps(found))

    return rewrite


result("missing", None, "after.json: no such file")
result("a folder", empty_folder, "after.json: holds no samples_TASK_DATE.jsonl")
result("empty", "", "after.json: not readable as JSON")
result("cut short", cut(0.5), "after.json: not readable as JSON")
result("not UTF-8", b"\xff", "after.json: not readable as JSON")
result("a list", "[]", "after.json is not a result of a benchmark; give a JSON file")
result("not ours", '{"mc1": 0.5}', "after.json is not a result of a benchmark")
result("of another benchmark", config(benchmark="mmlu"), "after.json is damaged")
result("no items", config(items=[]), "after.json: mc2 is stored as")
result("items null", config(items=None), "after.json is damaged", "measure again")
result("one item", first(1), "after.json: mc2 is stored as")
result("of other questions", config(questions_sha256="0"), "not comparable: questions_sha256")
result("asked another way", config(chat_template=True), "not comparable: chat_template")
result("fewer questions", first(3), "after.json")
result("a mean changed", config(mc2=0.99), "mc2 is stored as 0.99", "the file was changed")
result("a mean as text", config(mc1="high"), "after.json")
result(
    "a question changed",
    item(lambda i: i.update(question="Is it?!")),
    "item 2 is 'Is it 0?' before",
)
result(
    "scores not finite", item(lambda i: i["mc1"].update(loglik=[float("nan"), 0])), "is not finite"
)
result(
    "scores of text",
    item(lambda i: i["mc1"].update(loglik=["a", "b"])),
    "after.json is damaged",
)
result("scores missing", item(lambda i: i.pop("mc1")), "after.json is damaged")
result("labels changed", item(lambda i: i["mc1"].update(labels=[0, 1])), "after.json")
case("result: margin 0", {}, "compare before.json after.json --margin 0", "--margin")


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_bad_benchmark_files_are_refused(
    one: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: None
) -> None:
    check_refused(one, good, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "questions: a device",
    ],
)
def test_a_process_stays_small_and_ends(name: str, good: Path, tmp_path: Path) -> None:
    check_process(CASES.named(name), good, tmp_path)
