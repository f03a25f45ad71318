"""`forty2 failures testset` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import forty2, refused


def test_a_test_set_is_made_and_its_counts_are_printed(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "Hello?", "completion": "Hi."}\n')
    strata = tmp_path / "strata.yaml"
    strata.write_text("tools: 4\ncode: 2\n")
    command: list[str | Path] = [
        "failures",
        "testset",
        "--out",
        tmp_path / "F",
        "--strata",
        strata,
        "--strata",
        "law=3",
    ]
    result = forty2(*command, "--disjoint-from", data, "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "law: 0 of 3 items" in result.output and "(1 rows): none" in result.output
    about = json.loads((tmp_path / "F" / "testset.json").read_text("utf-8"))
    assert about["items"] == 6 and about["seed"] == 3 and about["disjoint_from"] == [str(data)]


def test_without_training_data_it_says_that_nothing_was_compared(tmp_path: Path) -> None:
    result = forty2("failures", "testset", "--out", tmp_path / "F", "--size", "10")
    assert result.exit_code == 0 and "compared with no training data" in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strata", "law"], "cannot be read"),
        (["--strata", "law=many"], "write NAME=COUNT"),
        (["--size", "1"], "--size"),
        (["--from", "none.jsonl"], "none.jsonl: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_message(tmp_path: Path, options: list[str], says: str) -> None:
    assert says in refused("failures", "testset", "--out", tmp_path / "F", *options)
    assert not (tmp_path / "F").exists()
