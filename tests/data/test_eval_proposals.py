"""Eval prompts proposed from rows are read by the benchmark, and the row's own answer passes."""

from __future__ import annotations

import json
from pathlib import Path

from support.shop import CHATS

from forty2.benchmark.eval_prompt_files import load_eval_prompts
from forty2.data.eval_proposals import MOST, propose_eval_prompts
from forty2.data.formats import parse, read_records
from forty2.data.record_texts import answer_of, prompt_turns


def test_the_answers_of_the_rows_pass_and_others_do_not(tmp_path: Path) -> None:
    rows = read_records(CHATS)
    held_out, training = rows[:20], rows[20:]
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(propose_eval_prompts(held_out, training)), "utf-8")
    prompts = load_eval_prompts(str(file)).items
    answers = {prompt_turns(row)[0]: answer_of(row) for row in held_out}
    assert 5 <= len(prompts) <= MOST
    for prompt in prompts:
        assert prompt.passes(answers[prompt.text])
        assert not prompt.passes("It costs 9999 euros.")


def test_a_number_is_not_found_in_a_longer_one(tmp_path: Path) -> None:
    row = parse({"prompt": "How much?", "completion": "It is 15 euros in all."}, "x:1")
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(propose_eval_prompts([row], [])), "utf-8")
    (prompt,) = load_eval_prompts(str(file)).items
    assert prompt.passes("15 euros") and not prompt.passes("150 euros")


def test_prompts_have_the_system_prompt_of_their_row() -> None:
    rows = [
        parse({"prompt": f"How much is {n}?", "completion": f"{n} euros.", "system": s}, "x:1")
        for n, s in enumerate("ab")
    ]
    proposed = propose_eval_prompts(rows, [])
    assert proposed is not None
    assert proposed["system_prompt"] == {"number_1": "a", "number_2": "b"}


def test_rows_with_several_turns_or_long_answers_are_left_out() -> None:
    turns = [{"role": r, "content": "1"} for r in ("user", "assistant", "user", "assistant")]
    rows = [
        parse({"messages": turns}, "x:1"),
        parse({"prompt": "Why?", "completion": "Because of many things, " * 9}, "x:2"),
        parse({"text": "A text of 3 words."}, "x:3"),
    ]
    assert propose_eval_prompts(rows, []) is None
