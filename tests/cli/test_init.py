"""`forty2 init`: what it asks, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.cli import forty2, refused
from support.shop import CHATS, PAIRS, TABLES

from forty2.cli import init, main

MODEL = "nobody/nothing"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_ends_with_the_next_three_commands() -> None:
    result = forty2("init", "my shop", "--chats", CHATS, "--pairs", PAIRS, "-m", MODEL)
    assert result.exit_code == 0, result.output
    assert "chats: 40 rows to train on, 20 held out" in result.output
    assert result.output.splitlines()[-3:] == [
        "  forty2 plan 'my shop'",
        "  forty2 run 'my shop'",
        "  forty2 chat 'my shop'",
    ]


def test_several_files_follow_one_option() -> None:
    result = forty2("init", "shop", "--chats", CHATS, CHATS, "-m", MODEL)
    assert "60 of 120 rows repeat another" in result.output


def test_bad_rows_and_rows_that_differ_in_their_number_alone_are_left_out_and_said(
    here: Path,
) -> None:
    rows = [{"ticket": n, "prompt": f"Question {n}?", "completion": f"Say {n}."} for n in range(40)]
    rows.append({**rows[3], "ticket": 99})
    rows.append({**rows[4], "ticket": 100, "completion": " "})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (here / "desk.jsonl").write_text(lines)
    result = forty2("init", "shop", "--chats", "desk.jsonl", "-m", MODEL)
    said = " ".join(result.output.split())
    assert "chats: 1 row was left out: desk.jsonl:42: completion is empty" in said
    assert "chats: 1 of 41 rows repeat another and were left out" in said
    written = [*(here / "shop" / "data").glob("*.jsonl")]
    assert sum(len(file.read_text().splitlines()) for file in written) == 40
    assert "duplicate" not in forty2("data", "lint", *written).output


def test_unknown_columns_are_refused_with_the_option_to_give() -> None:
    said = refused("init", "shop", "--chats", TABLES[0], "-m", MODEL)
    assert "--map Frage=prompt,Antwort=completion" in said and said.count("\n") == 1
    result = forty2(
        "init",
        "shop",
        "--chats",
        TABLES[0],
        "-m",
        MODEL,
        "--map",
        "Frage=prompt,Antwort=completion",
    )
    assert result.exit_code == 0


def test_yes_takes_the_guess_of_every_file() -> None:
    files = ["--chats", TABLES[0], "--pairs", TABLES[1], "--thumbs", TABLES[2]]
    assert forty2("init", "shop", *files, "-m", MODEL, "--yes").exit_code == 0


def test_on_a_terminal_it_asks_and_offers_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "_on_terminal", lambda: True)
    answers = "frage\nNummer\nANTWORT\n"  # a column in another case; no column; a column
    command = ["init", "shop", "--chats", TABLES[0], "-m", MODEL]
    result = CliRunner().invoke(main, command, input=answers)
    assert result.exit_code == 0, result.output
    assert "Which is the question? (Number, Frage, Antwort) [Frage]" in result.output
    assert "'Nummer' is not one of" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["shop"], "Give at least one file"),
        (["shop", "--chats", "none.json"], "none.json"),
        (["shop", "--chats", CHATS, "--map", "prompt"], "write COLUMN=NAME"),
        (["shop", "--chats", PAIRS], "is a pair: give the file as --pairs, not --chats"),
        (["shop", "--chats", CHATS, "--system", " "], "--system is empty"),
        ([".", "--chats", CHATS], ".: the working directory is in it"),
        (["..", "--chats", CHATS], "..: the working directory is in it"),
        (["file", "--chats", CHATS], "file: is a file; name a folder"),
    ],
)
def test_wrong_use_is_said(arguments: list[str], says: str) -> None:
    Path("file").write_text("")
    assert says in refused("init", *arguments, "-m", MODEL)
    assert not Path("shop").exists()
