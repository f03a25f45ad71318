"""The demo's last words: held-out prompts with the replies before and after."""

from __future__ import annotations

from forty2.benchmark.results import Item, Result, Stage
from forty2.cli.before_and_after import before_and_after


def stage(name: str, answer: str) -> Stage:
    """Make a stage that gives this answer, with the prompt's number, to ten prompts of each gate."""
    items = tuple(
        Item(
            {"id": f"{gate}{n}", "gate": gate, "prompt": f"{gate} {n}?", "answer": f"{answer} {n}"},
            {},
        )
        for gate in ("leak", "myth", "entity", "over")
        for n in range(10)
    )
    result = Result(
        benchmark="behaviour",
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
    return Stage(name, {"behaviour": result})


def test_five_prompts_are_shown_each_with_the_replies_of_the_first_and_the_last_stage() -> None:
    stages = [stage("base", "old"), stage("phase1_sft", "middle"), stage("fused", "new")]
    shown = before_and_after(stages).splitlines()
    prompts = [line.partition("  (")[0] for line in shown if line.endswith(")")]
    assert prompts == ["myth 0?", "myth 1?", "leak 0?", "leak 1?", "over 0?"]
    assert [line.split() for line in shown if line.startswith("  before")][:2] == [
        ["before", "old", "0"],
        ["before", "old", "1"],
    ]
    assert sum(line.startswith("  after   new") for line in shown) == 5
    assert "middle" not in " ".join(shown)


def test_a_long_reply_of_several_paragraphs_takes_three_lines_of_eighty_columns() -> None:
    shown = before_and_after([stage("base", "word\n\n" * 200), stage("fused", "")]).splitlines()
    start = next(n for n, line in enumerate(shown) if line.startswith("  before"))
    reply = shown[start : start + 3]
    assert reply[-1].endswith(" …") and max(map(len, reply)) <= 80
    assert shown[start + 3].startswith("  after")
