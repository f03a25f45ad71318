"""Prompts are read from lines and rows; a line that holds none is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forty2.data.prompts import read_prompts
from forty2.errors import DataError

ASK = {"role": "user", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be brief."}
SAY = {"role": "assistant", "content": "Hello."}


def test_lines_are_prompts(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("Hi.\n\nAnd you?\n \n", "utf-8")
    first, second = read_prompts(file, "Be brief.")
    assert first == ((SYSTEM, ASK), f"{file}:1")
    assert second.messages[1]["content"] == "And you?"
    assert second.origin == f"{file}:3"  # empty lines count, and are no prompts


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "Hi."}, [ASK]),
        ({"prompt": "Hi.", "chosen": "a", "rejected": "b"}, [ASK]),
        ({"messages": [SYSTEM, ASK]}, [SYSTEM, ASK]),
        ({"messages": [ASK, SAY, ASK, SAY]}, [ASK, SAY, ASK]),
        ({"question": "Hi.", "answer": "Hello."}, [ASK]),
    ],
)
def test_rows_of_any_shape_are_prompts_without_their_answers(
    row: dict[str, object], turns: list[object], tmp_path: Path
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(row), "utf-8")
    (prompt,) = read_prompts(file)
    assert [*prompt.messages] == turns


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "", r"x\.txt: is empty"),
        ("x.txt", "\n \n", r"x\.txt: is empty"),
        ("x.txt", '{"prompt": "Hi."}\n', r"x\.txt: holds JSON Lines"),
        ("x.txt", '[\n{"prompt": "Hi."}\n]\n', r"x\.txt: holds rows in JSON; give it a name that"),
        ("x.txt", '{\n"prompt": "Hi."\n}\n', r"x\.txt: holds rows in JSON; give it a name that"),
        ("x.jsonl", '{"prompt": "Hi."}\n{"text": "Hi."}\n', r"x\.jsonl:2: has no prompt"),
        ("x.jsonl", '{"prompt": "Hi."}\n{"prompt"\n', r"x\.jsonl:2: "),
        ("x.jsonl", '{"messages": [{"role": "system", "content": "a"}]}\n', r"x\.jsonl:1: "),
    ],
)
def test_a_line_without_a_prompt_is_named(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)
