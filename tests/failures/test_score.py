"""Scoring rows: a rule or a judge accepts, and what neither can decide is counted and not accepted."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Reply, said, server

from forty2.errors import BenchmarkError, DataError, RunError
from forty2.failures.asking import Limits
from forty2.failures.chat_models import ChatModel
from forty2.failures.examples import GENERATED, Arm, Example, write_examples
from forty2.failures.score import format_accepted, score
from forty2.files import JsonObject

RIGHT = {"kind": "number", "answer": 12}
TESTS = {"kind": "unit_test", "entry_point": "f", "tests": "assert f(2) == 4"}
ELSEWHERE = {"kind": "json_schema", "schema": {"$ref": "http://x/y"}}
FILES = ("accepted.jsonl", "accepted.json")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def row(
    n: int, reply: str = "It is 12.", verifier: JsonObject | None = None, arm: Arm = "targeted"
) -> Example:
    return Example(
        id=f"row-{n}",
        arm=arm,
        cluster=1 + n % 2 if arm == "targeted" else None,
        stratum="s",
        messages=({"role": "user", "content": f"Question {n}?"},),
        reply=reply,
        verifier=verifier,
        reference=None,
        source="m",
        group=n,
    )


def write(folder: Path, *rows: Example) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder / GENERATED, rows)
    return folder


def accepted(folder: Path) -> list[JsonObject]:
    return [
        json.loads(line) for line in (folder / "accepted.jsonl").read_text("utf-8").splitlines()
    ]


def judge_at(url: str, **settings: Any) -> ChatModel:
    return ChatModel(
        name=url, model="m", role="judge", **{"tries": 2, "sleep": lambda _: None, **settings}
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_row_with_a_verifier_is_accepted_if_its_own_reply_passes(tmp_path: Path) -> None:
    rows = [
        row(0, verifier=RIGHT),
        row(1, "It is 13.", RIGHT),
        row(2, verifier=RIGHT, arm="random"),
    ]
    folder = write(tmp_path / "F", *rows)
    record = score(folder)
    found = accepted(folder)
    assert [one["id"] for one in found] == ["row-0", "row-2"]
    assert found[0] == {
        **json.loads(json.dumps(dataclasses.asdict(rows[0]))),
        "by": "verifier",
        "score": None,
    }
    assert record["arms"]["targeted"] == {
        "rows": 2,
        "accepted": 1,
        "refused": {"reply fails its verifier": 1},
        "unscored": {},
    }
    assert record["arms"]["random"]["accepted"] == 1 and record["by"] == {"verifier": 2, "judge": 0}
    assert record["clusters"] == [
        {"cluster": 1, "rows": 1, "accepted": 1},
        {"cluster": 2, "rows": 1, "accepted": 0},
    ]
    assert json.loads((folder / "accepted.json").read_bytes()) == record


def test_without_a_judge_rows_without_a_verifier_are_unscored(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", row(0), row(1, verifier=RIGHT))
    record = score(folder)
    assert record["arms"]["targeted"]["unscored"] == {"no verifier, and no judge was named": 1}
    assert len(accepted(folder)) == 1 and record["judged"] is None
    assert "no judge was named" in format_accepted(record)


def scores(*marks: object) -> Any:
    """A judge that gives the mark of a question's number."""

    def answer(_: int, body: JsonObject) -> Reply:
        text = body["messages"][0]["content"]
        n = int(text.partition("Question ")[2].partition("?")[0])
        return said(f"Score: {marks[n]}")

    return answer


def test_the_judge_decides_where_there_is_no_verifier_and_its_threshold_counts(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "F", *(row(n) for n in range(4)), row(4, verifier=RIGHT))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with server(scores(7, 8, 9, 7.9)) as (url, seen):
        record = score(folder, judge_at(url))
        score(copy, judge_at(url), at_least=9)
    assert [(one["id"], one["by"], one["score"]) for one in accepted(folder)] == [
        ("row-1", "judge", 8.0),
        ("row-2", "judge", 9.0),
        ("row-4", "verifier", None),
    ]
    assert record["arms"]["targeted"]["refused"] == {"score below 8": 2}
    assert record["judged"]["changed_at"]["9"] == 1 and record["judged"]["changed_at"]["7"] == 2
    assert len(seen) == 2 * 4 * 2, "twice a row, and rows with a verifier never"
    assert not any("[A right reply]" in body["messages"][0]["content"] for body in seen)
    assert [one["id"] for one in accepted(copy)] == ["row-2", "row-4"]
    assert "verdicts that would change" in format_accepted(record)


def test_what_a_judge_does_not_say_accepts_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", *(row(n) for n in range(5)))

    def unwell(_: int, body: JsonObject) -> Reply:
        text = body["messages"][0]["content"]
        n = int(text.partition("Question ")[2].partition("?")[0])
        return [
            said("Score: 9"),
            said("It is very good!"),
            said("", 400),
            (200, b"<html>", {}),
            said("Score: 12"),
        ][n]

    with server(unwell) as (url, _):
        record = score(folder, judge_at(url), limits=Limits(at_once=1))
    part = record["arms"]["targeted"]
    assert part["accepted"] == 1 and part["refused"] == {} and sum(part["unscored"].values()) == 4
    assert part["unscored"]["the judge gave no score"] == 2
    assert record["judged"]["requests"] == {"sent": 10, "failed": 4, "unreadable": 4}


def late(reply: Reply) -> Reply:
    """A reply that comes when the client waits no more."""
    time.sleep(2.5)
    return reply


TROUBLE: dict[str, Callable[[], Reply]] = {
    "says to wait a minute": lambda: (429, {"error": "slow down"}, {"Retry-After": "60"}),
    "closes within the body": lambda: (200, b'{"choices": [{"mes', {"Content-Length": "999"}),
    "sends a page": lambda: (200, b"<!doctype html><p>Score: 10</p>", {}),
    "sends what is compressed": lambda: (200, gzip.compress(b"{}"), {"Content-Encoding": "gzip"}),
    "answers too late": lambda: late(said("Score: 1")),
    "is overloaded": lambda: (529, {"error": {"type": "overloaded_error"}}, {}),
}
WRONG_SHAPES: list[object] = [
    {"choices": []},
    {"choices": [{"message": {"content": 1}}]},
    {"choices": [{"message": {"content": {"score": 1}}}]},
    [{"score": 1}],
    {"error": "Score: 1"},
    "Score: 1",
]


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_a_judge_in_trouble_is_waited_for(tmp_path: Path, trouble: Callable[[], Reply]) -> None:
    folder = write(tmp_path / "F", *(row(n) for n in range(2)))
    lock, tries = threading.Lock(), Counter[int]()

    def unwell(_: int, body: JsonObject) -> Reply:
        with lock:
            tries[body["seed"]] += 1
            nth = tries[body["seed"]]
        return trouble() if nth == 1 else said("Score: 9")

    waited: list[float] = []
    with server(unwell) as (url, _):
        judge = dataclasses.replace(judge_at(url), timeout=1.0, tries=3, sleep=waited.append)
        record = score(folder, judge)
    assert record["arms"]["targeted"]["accepted"] == 2
    assert record["judged"]["requests"] == {"sent": 4, "failed": 0, "unreadable": 0}
    assert {*tries.values()} == {2} and len(waited) == 4


def test_answers_of_a_wrong_shape_are_no_scores(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", *(row(n) for n in range(7)))

    def shapes(_: int, body: JsonObject) -> Reply:
        text = body["messages"][0]["content"]
        n = int(text.partition("Question ")[2].partition("?")[0])
        return (200, WRONG_SHAPES[n - 1], {}) if n else said("Score: 9")

    with server(shapes) as (url, _):
        record = score(folder, judge_at(url))
    part = record["arms"]["targeted"]
    assert part["accepted"] == 1 and part["refused"] == {} and sum(part["unscored"].values()) == 6


def test_a_check_that_cannot_be_made_is_unscored(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", row(0, "{}", ELSEWHERE))
    record = score(folder)
    assert record["arms"]["targeted"]["accepted"] == 0
    assert "which it lacks" in next(iter(record["arms"]["targeted"]["unscored"]))


def test_unit_tests_run_only_with_permission(tmp_path: Path, programs_run_here: None) -> None:
    right, wrong = (f"```python\ndef f(x):\n    return {body}\n```" for body in ("x * x", "x"))
    folder = write(tmp_path / "F", row(0, right, TESTS), row(1, wrong, TESTS))
    with pytest.raises(BenchmarkError, match="2 questions have unit tests"):
        score(folder)
    assert not (folder / "accepted.json").exists()
    score(folder, run_untrusted_code=True)
    assert [one["id"] for one in accepted(folder)] == ["row-0"]


def test_nothing_generated_is_said_and_no_rows_are_no_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="make it with forty2 failures generate"):
        score(tmp_path)
    record = score(write(tmp_path / "F"))
    assert record["sentence"] == "0 of 0 rows are accepted." and accepted(tmp_path / "F") == []


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", row(0), row(1))
    path = folder / GENERATED
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RunError, match=r"generated.jsonl:2: damaged"):
        score(folder)
    write_examples(path, [dataclasses.replace(row(0), verifier={"kind": "magic"})])
    with pytest.raises(DataError, match="row-0: verifier"):
        score(folder)


def test_the_same_command_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", row(0, verifier=RIGHT))
    record = score(folder)
    before = contents(folder)
    assert score(folder) == record and contents(folder) == before
    with pytest.raises(RunError, match="scored with another at_least"):
        score(folder, at_least=9)
    write(folder, row(1, verifier=RIGHT))
    with pytest.raises(RunError, match="scored with another generated_sha256"):
        score(folder)


class Snapshots:
    """The journal as it is after every line."""

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "accepted.json.part"
        self.taken: list[bytes] = []

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        self.taken.append(self._journal.read_bytes())


def test_a_kill_at_any_line_changes_no_byte_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    rows = [row(n, verifier=RIGHT if n % 3 == 0 else None) for n in range(12)]
    folder = write(tmp_path / "F", *rows)
    copies = [Path(shutil.copytree(folder, tmp_path / f"copy{n}")) for n in range(4)]
    with server(scores(*range(12))) as (url, seen):
        snapshots = Snapshots(folder)
        score(folder, judge_at(url), progress=snapshots)
        assert len(seen) == 16
        for copy, place in zip(copies, (0, 5, 9, -2), strict=True):
            torn = snapshots.taken[place][: -4 if place == 5 else None]
            (copy / "accepted.json.part").write_bytes(torn)
            before = len(seen)
            score(copy, judge_at(url))
            asked_before = torn[: torn.rfind(b"\n") + 1].count(b'["judge/')
            assert len(seen) - before == 16 - asked_before
            assert contents(copy) == contents(folder)


def test_a_budget_leaves_rows_unscored_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", *(row(n) for n in range(6)))
    with server(scores(*[9] * 6)) as (url, seen):
        record = score(folder, judge_at(url), limits=Limits(tokens=1000))
        assert not record["complete"] and 0 < len(accepted(folder)) < 6
        unscored = record["arms"]["targeted"]["unscored"]
        assert unscored == {
            "the budget ended before the judge was asked": 6 - len(accepted(folder))
        }
        assert "The budget allows no more" in format_accepted(record)
        score(folder, judge_at(url))
        assert len(seen) == 12 and len(accepted(folder)) == 6


def test_a_judge_that_is_down_stops_the_command_and_loses_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "F", row(0, verifier=RIGHT), row(1))
    with pytest.raises(BenchmarkError, match="is the server running"):
        score(folder, judge_at("http://127.0.0.1:9/v1"))
    assert b"verdict/row-0" in (folder / "accepted.json.part").read_bytes()
    assert not (folder / "accepted.jsonl").exists()
