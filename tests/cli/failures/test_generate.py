"""`forty2 failures generate`, `score` and `label --teacher` at the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Reply, said, server
from support.cli import forty2, refused
from support.failure_folder import planted, write_folder
from support.worse_folder import builtin_folder, planted_folder

from forty2.cli.json_output import SCHEMAS
from forty2.files import JsonObject


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin_folder(
        tmp_path_factory.mktemp("cli") / "F",
        lambda item: "arithmetic" in item.source,
        lambda item: 1 if "arithmetic" in item.source else 2,
        strata={"mathematics": 24, "code": 12},
    )


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "F"))


@pytest.fixture
def teacher() -> Iterator[tuple[str, list[Any]]]:
    def teaches(_: int, body: JsonObject) -> Reply:
        n = body["seed"]
        return said(json.dumps({"question": f"Is {n} prime?", "answer": f"{n}: no."}))

    with server(teaches) as found:
        yield found


def test_the_generators_make_rows_and_their_verifiers_accept_them(folder: Path) -> None:
    done = forty2("failures", "generate", folder, "--teacher", "builtin", "--size", "9")
    assert done.exit_code == 0, done.output
    assert "9 of 9 rows for the worse clusters, and 9 of 9 at random." in done.output
    assert f"written   {folder}/generated.jsonl" in done.output
    assert "--run-untrusted-code" in refused("failures", "score", folder)
    done = forty2("failures", "score", folder, "--run-untrusted-code")
    assert done.exit_code == 0 and "18 of 18 rows are accepted." in done.output


def test_a_teacher_and_a_judge_are_asked_and_their_figures_printed(
    tmp_path: Path, teacher: tuple[str, list[Any]]
) -> None:
    folder = planted_folder(tmp_path / "F", planted(8))
    url, seen = teacher
    command: list[str | Path] = ["failures", "generate", folder, "--teacher", url, "--size", "3"]
    command += ["--price-in", "1000", "--price-out", "1000"]
    done = forty2(*command, "--dry-run")
    assert done.exit_code == 0 and "would send 6 requests" in done.output and not seen
    done = forty2(*command, "--teacher-model", "big", "--temperature", "0.3", "--max-tokens", "99")
    assert done.exit_code == 0 and "in money" in done.output, done.output
    asked = {(body["model"], body["temperature"], body["max_tokens"]) for body in seen}
    assert asked == {("big", 0.3, 99)} and len(seen) == 6
    with server(lambda *_: said("Score: 8")) as (judge, scored):
        done = forty2("failures", "score", folder, "--judge", judge, "--repeats", "1")
    assert "6 of 6 rows are accepted." in done.output and len(scored) == 6
    page = forty2("failures", "score", folder, "--judge", judge, "--repeats", "1", "--json")
    found = json.loads(page.stdout)
    assert found.keys() == {"schema", *SCHEMAS["failures.score"].keys}
    again = forty2(*command, "--teacher-model", "big", "--json")
    assert "made with another temperature" in again.output


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_json_has_the_described_keys(folder: Path, more: list[str]) -> None:
    done = forty2(
        "failures", "generate", folder, "--teacher", "builtin", "--size", "2", "--json", *more
    )
    found = json.loads(done.stdout)
    assert found.keys() == {"schema", *SCHEMAS["failures.generate"].keys}


def test_what_no_generator_made_is_a_warning(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n * n} prime?", "stratum": "mathematics"} for n in range(20)]
    source = tmp_path / "own.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    folder = builtin_folder(
        tmp_path / "F",
        lambda _: True,
        lambda item: 1 if "arithmetic" in item.source or "own" in item.source else 2,
        strata={"mathematics": 40},
        sources=("builtin", str(source)),
    )
    done = forty2("failures", "generate", folder, "--teacher", "builtin", "--size", "2")
    assert done.exit_code == 0, done.output
    assert "failures were not made by the built-in generators" in done.output
    assert "warning: random: " in done.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "F", "--size", "2"), "--teacher"),
        (("generate", "F", "--teacher", "builtin"), "--size"),
        (("generate", "F", "--teacher", "builtin", "--size", "0"), "x>=1"),
        (("generate", "F", "--teacher", "example.org", "--size", "2"), "give http://HOST"),
        (("generate", "F", "--teacher", "builtin", "--size", "2"), "forty2 failures cluster"),
        (
            ("generate", "F", "--teacher", "builtin", "--size", "2", "--max-cost", "3"),
            "give --price-in and --price-out",
        ),
        (
            ("generate", "F", "--teacher", "http://x/v1", "--size", "2", "--api-key-env", "NO_KEY"),
            "NO_KEY: not set",
        ),
        (("score", "F"), "forty2 failures generate"),
        (("score", "F", "--at-least", "11"), "1<=x<=10"),
        (("label", "F", "--teacher", "nowhere"), "give http://HOST"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "F", planted(2))
    assert message in refused("failures", *args)


@pytest.mark.parametrize("command", ["label", "generate", "score"])
def test_after_a_signal_the_same_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("labels.label_clusters", "generate.generate", "score.score"):
        monkeypatch.setattr(f"forty2.failures.{name}", interrupted)
    more = ["--teacher", "builtin", "--size", "2"] if command == "generate" else []
    result = forty2("failures", command, tmp_path, *more)
    assert result.exit_code == 130
    assert f"to go on: forty2 failures {command} {tmp_path}" in result.output


def test_ctrl_c_ends_at_once_though_requests_are_under_way(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "F", planted(8))
    under_way, over = threading.Event(), threading.Event()

    def sleeps(*_: object) -> Reply:
        under_way.set()
        over.wait(30)
        return said("too late")

    with server(sleeps) as (url, _):
        command = [sys.executable, "-m", "forty2", "failures", "generate", str(folder)]
        process = subprocess.Popen(
            [*command, "--teacher", url, "--size", "2"],
            stderr=subprocess.PIPE,
            env={**os.environ},
            text=True,
        )
        assert under_way.wait(60)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
        assert time.monotonic() - started < 10
        over.set()
    assert process.returncode == 130 and "to go on: forty2 failures generate" in told
