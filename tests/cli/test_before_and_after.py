"""The last words of a run: held-out prompts with the replies before and after."""

from __future__ import annotations

from forty2.benchmark.results import Item, Result, Stage
from forty2.cli.before_and_after import before_and_after
from forty2.files import JsonObject
from forty2.text_layout import fit

PAIR: JsonObject = {"kind": "pair", "logps": []}


def stage(name: str, reply: str) -> Stage:
    """Make a stage that gives this reply, with the prompt's number, to ten prompts."""
    records: list[JsonObject] = [
        {"kind": "reply", "prompt": f"Prompt {n}?", "reply": f"{reply} {n}" if reply else ""}
        for n in range(10)
    ]
    items = tuple(Item(record, {}) for record in [PAIR, *records])
    result = Result(
        benchmark="held_out",
        model="m",
        adapter=None,
        seed=None,
        data="prompts",
        data_sha256=None,
        versions={},
        settings={},
        figures={},
        items=items,
    )
    return Stage(name, {"held_out": result})


def test_the_first_prompts_are_shown_with_the_replies_of_the_first_and_the_last_stage() -> None:
    stages = [stage("base", "old"), stage("phase1_sft", "middle"), stage("fused", "new")]
    shown = before_and_after(stages, 5).splitlines()
    assert [line for line in shown if line.endswith("?")] == [f"Prompt {n}?" for n in range(5)]
    assert [line.split() for line in shown if line.startswith("  before")][:2] == [
        ["before", "old", "0"],
        ["before", "old", "1"],
    ]
    assert sum(line.startswith("  after     new") for line in shown) == 5
    assert "middle" not in " ".join(shown) and "expected" not in " ".join(shown)


def test_the_answer_that_a_held_out_row_has_stands_below_the_replies() -> None:
    stages = [stage("base", "old"), stage("phase1_sft", "new")]
    for one in stages:
        for item in one["held_out"].items[1:]:
            item.record["expected"] = f"right {item.record['prompt'][-2]}"
    shown = before_and_after(stages, 1).splitlines()
    assert shown[-3:] == ["  before    old 0", "  after     new 0", "  expected  right 0"]


def test_a_long_reply_of_several_paragraphs_takes_three_lines_of_eighty_columns() -> None:
    stages = [stage("base", "word\n\n" * 200), stage("fused", "")]
    shown = fit(before_and_after(stages, 2), 80).splitlines()
    start = next(n for n, line in enumerate(shown) if line.startswith("  before"))
    reply = shown[start : start + 3]
    assert reply[-1].endswith(" …") and max(map(len, reply)) <= 80
    assert shown[start + 3] == "  after     (nothing)"


def test_a_run_without_held_out_prompts_shows_none() -> None:
    assert before_and_after([stage("base", "old")], 5) == ""
    assert before_and_after([stage("base", "old"), Stage("fused", {})], 5) == ""
