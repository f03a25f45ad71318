"""Finding failures: verifiers first, unscored is no failure, and a kill at any point changes no byte."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Reply, said, server
from support.small_run import make_inputs

from forty2.errors import BenchmarkError, DataError, RunError
from forty2.failures import replies as replies_module
from forty2.failures.asking import Limits
from forty2.failures.builtin.made import WORDS
from forty2.failures.chat_models import ChatModel
from forty2.failures.find import FindSettings, find_failures, format_found, refuse_trained
from forty2.failures.folder import item_id, read_half, read_replies, read_verdicts
from forty2.failures.testset import TestsetSettings, make_testset
from forty2.files import JsonObject

FILES = ("replies.jsonl", "verdicts.jsonl", "find.json")
SHORT = FindSettings(max_tokens=8, batch_size=3)
ANY = {"kind": "regex", "pattern": ""}
NEVER = {"kind": "exact", "answer": "what no random model says"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_inputs(tmp_path_factory.mktemp("find") / "inputs") / "model")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies_module, "GROUP", 5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def make_set(folder: Path, *verifiers: object, n: int = 24) -> Path:
    """Make a test set whose questions have these verifiers in turn."""
    rows = [
        {
            "prompt": f"{WORDS[i % 11]} {i * i} {WORDS[i % 7]}?" + " Why is it so?" * (i % 3),
            "verifier": verifiers[i % len(verifiers)],
            "stratum": "code" if i % 2 else "other",
        }
        for i in range(n)
    ]
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    strata = {"code": n // 2, "other": n // 2}
    make_testset(folder, TestsetSettings(sources=[str(source)], strata=strata))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


class Snapshots:
    """The journal as it is after every line: what a kill at that moment leaves."""

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "find.json.part"
        self.taken: list[bytes] = []

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        self.taken.append(self._journal.read_bytes())


def test_a_kill_at_any_line_or_within_one_changes_no_byte(model: str, tmp_path: Path) -> None:
    whole = make_set(tmp_path / "whole", ANY, NEVER, None)
    copies = [shutil.copytree(whole, tmp_path / f"copy{n}") for n in range(8)]
    snapshots = Snapshots(whole)
    find_failures(whole, model, settings=SHORT, progress=snapshots)
    assert len(snapshots.taken) == 12 + 8, "a line for each reply and each verdict"
    places = [0, 2, 4, 6, 11, 12, 15, 19]
    for copy, place in zip(copies, places, strict=True):
        torn = snapshots.taken[place][: None if place % 2 else -7]
        (copy / "find.json.part").write_bytes(torn)
        if place == 19:  # killed between the files that it writes at the end
            shutil.copy(whole / "replies.jsonl", copy)
        find_failures(copy, model, settings=SHORT)
        assert contents(copy) == contents(whole), f"killed after line {place}"
        assert not (copy / "find.json.part").exists()


def test_only_one_half_is_answered_and_in_its_order(model: str, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "F", ANY)
    before = (folder / "testset.jsonl").read_bytes(), (folder / "testset.json").read_bytes()
    find_failures(folder, model, settings=SHORT)
    half = [item.id for item in read_half(folder, "find")]
    assert list(read_replies(folder)) == list(read_verdicts(folder)) == half
    assert before == (
        (folder / "testset.jsonl").read_bytes(),
        (folder / "testset.json").read_bytes(),
    )


def test_verifiers_decide_and_what_nobody_can_decide_is_unscored(
    model: str, tmp_path: Path
) -> None:
    folder = make_set(tmp_path / "F", ANY, NEVER, None)
    record = find_failures(folder, model, settings=SHORT).record
    verdicts = read_verdicts(folder)
    for item in read_half(folder, "find"):
        expected = "unscored" if item.verifier is None else {"regex": "pass", "exact": "fail"}
        found = verdicts[item.id].verdict
        assert found == (expected if isinstance(expected, str) else expected[item.verifier["kind"]])  # type: ignore[index]
    every = record["all"]
    assert every["pass"] + every["fail"] + every["unscored"] == every["n"] == 12
    assert every["unscored"] > 0
    assert every["pass_rate"] == every["pass"] / (every["pass"] + every["fail"])
    assert every["interval"]["low"] < every["pass_rate"] < every["interval"]["high"]
    assert {*record["strata"]} == {"code", "other"}
    text = format_found(record)
    assert "no verifier, and no judge was named" in text and "depends on a judge" in text


def test_a_prompt_that_does_not_fit_is_unscored(model: str, tmp_path: Path) -> None:
    long = {"prompt": "word " * 200, "verifier": NEVER, "stratum": "other"}
    rows = [long, *({"prompt": f"Is it {n}?", "verifier": NEVER} for n in range(7))]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for seed in range(20):  # until the long one is in the half that is answered
        folder = tmp_path / str(seed)
        settings = TestsetSettings(sources=[str(source)], strata={"other": 8}, seed=seed)
        make_testset(folder, settings)
        half = read_half(folder, "find")
        if any(len(item.messages[0]["content"]) > 500 for item in half):
            break
    record = find_failures(folder, model, settings=SHORT).record
    assert record["all"]["unscored"] == 1 and record["all"]["fail"] == len(half) - 1
    assert "leaves too little" in format_found(record)


def test_no_failures_and_nothing_but_failures(model: str, tmp_path: Path) -> None:
    for name, verifier, rate in (("good", ANY, 1.0), ("bad", NEVER, 0.0)):
        record = find_failures(make_set(tmp_path / name, verifier), model, settings=SHORT).record
        assert record["all"]["pass_rate"] == rate
        assert record["all"]["interval"]["low"] < record["all"]["interval"]["high"]


def test_cut_replies_are_counted(model: str, tmp_path: Path) -> None:
    record = find_failures(make_set(tmp_path / "F", NEVER), model, settings=SHORT).record
    replies = record["replies"]
    cut = replies["n"] - replies["stopped"]
    assert replies["stop_rate"] == replies["stopped"] / replies["n"]
    assert replies["failed_and_cut"] == cut and "were cut at 8 tokens" in format_found(record)


def test_programs_run_only_with_permission(model: str, tmp_path: Path) -> None:
    tests = {"kind": "unit_test", "entry_point": "f", "tests": "f(1)"}
    folder = make_set(tmp_path / "F", tests, n=4)
    with pytest.raises(BenchmarkError, match="2 questions have unit tests"):
        find_failures(folder, model, settings=SHORT)
    assert not (folder / "find.json.part").exists()
    allowed = FindSettings(max_tokens=4, run_untrusted_code=True)
    assert find_failures(folder, model, settings=allowed).record["all"]["fail"] == 2


def test_the_same_command_again_does_nothing_and_another_is_refused(
    model: str, tmp_path: Path
) -> None:
    folder = make_set(tmp_path / "F", ANY, n=4)
    first = find_failures(folder, model, settings=SHORT)
    before = contents(folder)
    again = find_failures(folder, model, settings=SHORT)
    assert again.record == first.record and again.tokens == 0 and contents(folder) == before
    with pytest.raises(RunError, match="found with another max_tokens"):
        find_failures(folder, model, settings=FindSettings(max_tokens=9, batch_size=3))


def test_a_changed_test_set_is_refused(model: str, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "F", ANY, n=4)
    path = folder / "testset.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Why", b"Who").replace(b"?", b"!", 1))
    with pytest.raises(RunError, match="is not the one"):
        find_failures(folder, model, settings=SHORT)


# --- the judge ------------------------------------------------------------------------------------


def judge_at(url: str) -> ChatModel:
    return ChatModel(name=url, model="m", tries=2, role="judge", sleep=lambda _: None)


def test_the_judge_is_asked_only_where_there_is_no_verifier(model: str, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "F", ANY, None)
    with server(lambda number, _: said(f"Score: {6 + number % 3}")) as (url, seen):
        record = find_failures(folder, model, judge=judge_at(url), settings=SHORT).record
    judged = [item for item in read_half(folder, "find") if item.verifier is None]
    assert len(seen) == 2 * len(judged) == record["judged"]["requests"]["sent"]
    assert record["all"]["unscored"] == 0 and record["by"]["judge"] == len(judged)
    assert "verdicts that would change" in format_found(record) and "kappa" in format_found(record)
    scores = [v.score for v in read_verdicts(folder).values() if v.by == "judge"]
    assert all(score is not None for score in scores)


def nonsense(number: int, _: JsonObject) -> Reply:
    return [said("I like it."), said("", 400), (200, b"<html>", {}), said("Score: 12")][number % 4]


def test_a_judge_that_talks_nonsense_fails_nobody(model: str, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "F", None, n=12)
    with server(lambda n, b: said("Score: 7") if n == 1 else nonsense(n, b)) as (url, _):
        record = find_failures(folder, model, judge=judge_at(url), settings=SHORT).record
    assert record["all"]["fail"] == 0 and record["all"]["unscored"] == 5
    requests = record["judged"]["requests"]
    assert requests["failed"] > 0 and requests["unreadable"] > 0


def test_no_answered_question_is_asked_again_after_a_stop(model: str, tmp_path: Path) -> None:
    whole = make_set(tmp_path / "whole", None, n=12)
    copy = shutil.copytree(whole, tmp_path / "copy")
    answers: dict[str, str] = {}

    def answer(number: int, body: dict[str, Any]) -> Reply:
        key = f"{body['seed']} {body['messages'][0]['content']}"
        assert key not in answers or stopped, "asked twice"
        answers.setdefault(key, f"Score: {1 + len(answers) % 10}")
        return said(answers[key])

    stopped = False
    with server(answer) as (url, seen):
        judge = judge_at(url)
        snapshots = Snapshots(whole)
        find_failures(whole, model, judge=judge, settings=SHORT, progress=snapshots)
        assert len(seen) == 12
        stopped = True
        journal = next(one for one in snapshots.taken if one.count(b'["judge/') == 5)
        (copy / "find.json.part").write_bytes(journal)
        find_failures(copy, model, judge=judge, settings=SHORT)
        assert len(seen) == 12 + 7, "five of twelve requests were answered before the stop"
    assert contents(copy) == contents(whole)


def test_a_budget_that_ends_stops_the_command_and_with_a_larger_one_it_goes_on(
    model: str, tmp_path: Path
) -> None:
    folder = make_set(tmp_path / "F", None, n=12)
    with server(lambda *_: said("Score: 9", tokens=(200, 8))) as (url, seen):
        small = dataclasses.replace(SHORT, limits=Limits(tokens=1000, at_once=1))
        with pytest.raises(
            RunError, match=r"budget for the judge has ended, after \d of 6 replies"
        ):
            find_failures(folder, model, judge=judge_at(url), settings=small)
        assert 0 < len(seen) < 12 and not (folder / "find.json").exists()
        record = find_failures(folder, model, judge=judge_at(url), settings=SHORT).record
    assert len(seen) == 12 and record["all"]["pass"] == 6
    assert record["judged"]["tokens"] == {"prompt": 2400, "reply": 96, "estimated": 0}


def test_a_judge_that_is_down_stops_the_command_and_loses_nothing(
    model: str, tmp_path: Path
) -> None:
    folder = make_set(tmp_path / "F", ANY, None)
    with pytest.raises(BenchmarkError, match="is the server running"):
        find_failures(folder, model, judge=judge_at("http://127.0.0.1:9/v1"), settings=SHORT)
    assert (folder / "find.json.part").read_bytes().count(b"reply/") == 12


# --- trained on -----------------------------------------------------------------------------------


def test_questions_that_the_adapters_run_was_trained_on_are_refused(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "F", ANY)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    items = read_half(folder, "find")
    untouched = read_half(folder, "untouched")
    data = tmp_path / "train.jsonl"
    recipe = f"phases:\n  a: {{objective: sft, data: '{data}', steps: 1, lr: 1e-4}}\n"
    (run / "recipe.yaml").write_text(f"version: 1\nname: x\nmodel: smollm2\n{recipe}")
    for half in (items, untouched):
        turns = [*half[0].messages, {"role": "assistant", "content": "Yes."}]
        data.write_text(json.dumps({"messages": turns}) + "\n", "utf-8")
        with pytest.raises(DataError, match=r"1 of 24 questions are in the training data"):
            refuse_trained(folder, items, run)
    other = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
    data.write_text(json.dumps({"messages": other}) + "\n", "utf-8")
    found = refuse_trained(folder, items, run)
    assert found is not None and found["searched"]
    data.unlink()
    with pytest.warns(UserWarning, match="cannot be searched"):
        assert refuse_trained(folder, items, run) == {"run": "run", "searched": False}


def test_ids_do_not_depend_on_the_half(tmp_path: Path) -> None:
    for item in read_half(make_set(tmp_path / "F", ANY, n=4), "find"):
        assert item.id == item_id(item.messages, item.verifier, item.reference)


# --- a real kill ----------------------------------------------------------------------------------

KILLED = """
import sys
import forty2
from forty2.failures.find import FindSettings, find_failures
find_failures(sys.argv[1], sys.argv[2], settings=FindSettings(max_tokens=48, batch_size=2))
"""


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # groups of the real size
    whole = make_set(tmp_path / "whole", ANY, NEVER, n=40)
    copy = shutil.copytree(whole, tmp_path / "copy")
    command = [sys.executable, "-c", KILLED, str(copy), model]
    journal = copy / "find.json.part"
    for lines in (3, 9):
        process = subprocess.Popen(command, env={**os.environ})
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
    subprocess.run(command, check=True)
    find_failures(whole, model, settings=FindSettings(max_tokens=48, batch_size=2))
    assert contents(copy) == contents(whole)
