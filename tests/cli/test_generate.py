"""A file of prompts is answered as each prompt alone, in its order."""

from __future__ import annotations

import json
import shutil
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


def test_prompts_get_the_system_message_of_the_training(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(good / "done", tmp_path / "adapters" / "done")
    record = tmp_path / "adapters" / "done" / "phase2_dpo" / "phase.json"
    record.write_text(json.dumps(json.loads(record.read_text("utf-8")) | {"system": "Be brief."}))
    monkeypatch.chdir(tmp_path)
    options = ("generate", "-m", good / "tiny", "-a", "done", *OPTIONS[2:])
    briefly = forty2(*options, "-p", "One?", "--system", "Be brief.")
    assert (briefly.exit_code, briefly.stderr) == (0, ""), briefly.output
    trained = forty2(*options, "-p", "One?")
    assert trained.stdout == briefly.stdout
    assert trained.stderr.count("\n") == 1 and "Be brief." in trained.stderr
    plain = forty2(*options, "-p", "One?", "--system", "")
    assert (plain.exit_code, plain.stderr) == (0, "") and plain.stdout != briefly.stdout
    raw = forty2(*options, "-p", "One?", "--raw")
    assert (raw.exit_code, raw.stderr) == (0, "")
    Path("x.txt").write_text("One?\n", "utf-8")
    for system in ((), ("--system", "")):
        row = json.loads(forty2(*options, "--prompts", "x.txt", *system).stdout)
        roles = [message["role"] for message in row["messages"]]
        assert roles == (["user"] if system else ["system", "user"])


def test_a_run_s_name_is_understood_where_an_adapter_is_taken(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(good / "done", tmp_path / "adapters" / "shop")
    monkeypatch.chdir(tmp_path)
    assert "did you mean adapters/shop?" in refused("generate", "-a", "shp", "-p", "Hi.")
    assert "did you mean adapters/shop?" in refused("chat", "shp")
    assert "did you mean adapters/shop?" in refused("export", "peft", "shp", "-o", "out")
    wrong = refused("generate", "-m", "shop", "-p", "Hi.")
    assert "shop: is the run adapters/shop, not a model: give it as --adapter" in wrong
    base = ("-m", good / "tiny")
    assert forty2("fuse", *base, "-a", "shop", "--out", "fused").exit_code == 0
    assert "the tokenizer has no merges" in refused("export", "gguf", "shop", "-o", "x.gguf")
    assert forty2("export", "peft", "shop", *base, "-o", "peft").exit_code == 0
    assert forty2("report", "shop").exit_code == 0
