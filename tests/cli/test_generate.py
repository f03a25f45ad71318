"""A file of prompts is answered as each prompt alone, in its order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import forty2, refused

OPTIONS = ("-m", "tiny", "--max-tokens", "6", "--temperature", "1")


@pytest.fixture(autouse=True)
def there(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a tiny model."""
    monkeypatch.chdir(good)


def test_a_file_is_answered_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("One?\nA much longer second question?\nThree?\n", "utf-8")
    out = tmp_path / "out.jsonl"
    result = forty2("generate", *OPTIONS, "--prompts", tmp_path / "x.txt", "--out", out)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["messages"][0]["content"] for row in rows][::2] == ["One?", "Three?"]
    assert all(row["tokens"] <= 6 for row in rows)
    assert "exists already" in refused(
        "generate", *OPTIONS, "--prompts", tmp_path / "x.txt", "--out", out
    )
    (tmp_path / "one.txt").write_text("One?\n", "utf-8")
    alone = forty2("generate", *OPTIONS, "--prompts", tmp_path / "one.txt").stdout
    assert json.loads(alone)["reply"] == rows[0]["reply"]


def test_eval_prompts_are_answered(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"prompts": {"a_1": "Hi."}, "expected_outputs": {"a_1": "Ho."}}))
    row = json.loads(forty2("generate", *OPTIONS, "--prompts", file).stdout)
    assert (row["id"], row["prompt"]) == ("a_1", "Hi.") and "reply" in row


def test_a_prompt_that_is_too_long_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(f"Hi.\n{'x' * 3000}\n", "utf-8")
    message = refused("generate", *OPTIONS, "--prompts", tmp_path / "x.txt")
    assert f"{tmp_path / 'x.txt'}:2: the prompt and a reply: " in message


def test_one_source_of_prompts_is_needed() -> None:
    assert "either --prompt or --prompts" in refused("generate", *OPTIONS)
    assert "--out is for --prompts" in refused("generate", *OPTIONS, "-p", "Hi.", "-o", "x")
