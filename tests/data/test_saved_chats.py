"""Saved chats are rows that our own readers take, added to what the file held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forty2.benchmark.eval_prompt_files import load_eval_prompts
from forty2.data.formats import read_chats, to_row
from forty2.data.saved_chats import save_chat
from forty2.errors import DataError, RunError

TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hëllo."}]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("end", ["", "\n"])
def test_rows_of_training_data_are_appended(end: str, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    save_chat(TURNS, file)
    file.write_text(file.read_text("utf-8").rstrip("\n") + end, "utf-8")
    save_chat([SYSTEM, *TURNS, *TURNS], file)
    rows = [to_row(record) for record in read_chats(file)]
    assert rows == [{"messages": TURNS}, {"messages": [SYSTEM, *TURNS, *TURNS]}]


def test_eval_prompts_are_added_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    old = {"prompts": {"chat_1": "A?"}, "expected_outputs": {"chat_1": "B."}}
    file.write_text(json.dumps(old | {"system_prompt": "Old.", "match": {"chat_1": "contains"}}))
    save_chat([SYSTEM, *TURNS], file)
    assert save_chat(TURNS, file) == "added eval prompt chat_3, which expects the model's own reply"
    found = [(p.id, p.text, p.expected, p.match, p.system) for p in load_eval_prompts(file).items]
    assert found == [
        ("chat_1", "A?", "B.", "contains", "Old."),
        ("chat_2", "Hi.", "Hëllo.", "exact", "Be brief."),
        ("chat_3", "Hi.", "Hëllo.", "exact", ""),
    ]


@pytest.mark.parametrize("name", ["chats.jsonl", "prompts.json"])
@pytest.mark.parametrize("turns", [TURNS, [SYSTEM, *TURNS]])
def test_what_is_there_already_is_not_added_again(
    name: str, turns: list[dict[str, str]], tmp_path: Path
) -> None:
    file = tmp_path / name
    other = [{"role": "user", "content": "Ho."}, {"role": "assistant", "content": "Bye."}]
    for saved in (turns, other):
        assert save_chat(saved, file).startswith("added ")
    before = file.read_bytes()
    for saved in (turns, other):
        assert "there already" in save_chat(saved, file)
    assert file.read_bytes() == before


def test_a_right_answer_takes_the_place_of_the_reply(tmp_path: Path) -> None:
    rows, prompts = tmp_path / "chats.jsonl", tmp_path / "prompts.json"
    assert save_chat(TURNS, rows, "Good day.") == "added a row of training data, with your answer"
    assert to_row(next(iter(read_chats(rows))))["messages"][-1]["content"] == "Good day."
    assert save_chat(TURNS, prompts, "day") == "added eval prompt chat_1, which expects your answer"
    (prompt,) = load_eval_prompts(prompts).items
    assert prompt.passes("A day!") and not prompt.passes("Hëllo.")


def test_of_one_question_one_reply_is_expected(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    save_chat(TURNS, file)
    other = [TURNS[0], {"role": "assistant", "content": "Bye."}]
    before = file.read_bytes()
    assert (
        save_chat(other, file) == "chat_1 asks this already and expects another reply, which stays"
    )
    assert file.read_bytes() == before
    assert save_chat(other, file, "day") == "eval prompt chat_1 expects your answer now"
    assert save_chat([SYSTEM, *other], file).startswith("added eval prompt chat_2")
    first, _ = load_eval_prompts(file).items
    assert (first.expected, first.match) == ("day", "contains")


def test_no_folder_is_made_by_a_slip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        save_chat(TURNS, tmp_path / "nowhere" / "chats.jsonl")
    assert not [*tmp_path.iterdir()]


def test_a_new_file_of_eval_prompts_is_read(tmp_path: Path) -> None:
    save_chat(TURNS, tmp_path / "prompts.json")
    (prompt,) = load_eval_prompts(tmp_path / "prompts.json").items
    assert (prompt.text, prompt.expected) == ("Hi.", "Hëllo.")


@pytest.mark.parametrize(
    ("name", "before", "turns", "message"),
    [
        ("x.jsonl", "a poem", TURNS, "x.jsonl:1: is not a row of JSON Lines"),
        ("x.jsonl", '{"a": 1}\n[1]', TURNS, "x.jsonl:2: is not a row"),
        ("x.json", "{", TURNS, "is not JSON"),
        ("x.json", '{"a": 1}', TURNS, "no file of eval prompts"),
        (
            "x.json",
            '{"system_prompt": [], "prompts": {}, "expected_outputs": {}}',
            TURNS,
            "no file of eval prompts",
        ),
        (
            "x.json",
            '{"form": "full", "prompts": {}, "expected_outputs": {}}',
            TURNS,
            "form: full",
        ),
        ("x.json", "", [*TURNS, *TURNS], "this conversation is longer"),
        ("x.txt", "", TURNS, "end the name in"),
        ("x.jsonl", "", [SYSTEM], "nothing to save yet"),
        ("x.jsonl", "", [TURNS[0], {"role": "assistant", "content": " "}], "is empty"),
    ],
)
def test_a_file_of_another_kind_stays_as_it_is(
    name: str, before: str, turns: list[dict[str, str]], message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(before, "utf-8")
    with pytest.raises(DataError, match=message):
        save_chat(turns, file)
    assert file.read_text("utf-8") == before


def test_a_folder_in_the_files_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(RunError, match=r"x\.jsonl: cannot be written"):
        save_chat(TURNS, tmp_path / "x.jsonl")
