"""What was given where something else was expected, and the tags in replies, by stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from forty2.files import read_json, write_json
from forty2.report.eval_replies import confusion_table, confusions, first_difference, tags_table
from forty2.report.records import read_run
from forty2.report.run import write_report

OLD = Path(__file__).parents[1] / "old_runs"
STAGES = ("base", "phase1_sft", "phase2_dpo")


def item(n: int, reply: str, expected: str, **more: Any) -> dict[str, Any]:
    passed = reply == expected
    return {
        "kind": "prompt",
        "file": "p.json",
        "id": f"say_{n}",
        "prompt": f"Say {n}.",
        "expected": expected,
        "reply": reply,
        "passed": passed,
        **more,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    stages = []
    for name in STAGES:
        end = {"</bot>": name != "base"}
        items = [
            item(1, "Zantor <b>x</b>.", "Zanthor <b>x</b>.", broken=name == "base", tags=end),
            item(2, "Zantor <b>x</b>.", "Zanthor <b>x</b>.", broken=False, tags=end),
            item(3, "ja" if name == "base" else "Yes.", "Yes.", broken=False, tags={}),
            {"kind": "chat", "row": 1},
        ]
        write_json(folder / "benchmarks" / f"{name}.json", {"held_out": {"items": items}})
        stages.append({"stage": name, "held_out": {"eval prompts": 0.5}})
    write_json(folder / "summary.json", {"stages": stages})
    return folder


def test_the_first_word_that_differs_is_marked_and_no_text_is_lost() -> None:
    expected, given = first_difference("Say Zanthor twice.", "Say Zantor once.")
    assert [piece.text for piece in expected if piece.differs] == ["Zanthor"]
    assert [piece.text for piece in given if piece.differs] == ["Zantor"]
    for pair in (
        ("Yes.", "Yes. No."),
        ("", "x"),
        ("a  b", "a b"),
        ("same", "same"),
        ("日本", "日"),
    ):
        sides = first_difference(*pair)
        assert tuple("".join(piece.text for piece in side) for side in sides) == pair
    assert not any(piece.differs for side in first_difference("same", "same") for piece in side)


def test_confusions_are_counted_at_each_stage_after_training(run: Path) -> None:
    first, last = confusions(read_run(run))
    assert (first.stage, last.stage) == STAGES[1:]
    assert (last.failed, last.asked, len(last.shown)) == (2, 3, 1)
    assert (last.shown[0].times, last.shown[0].prompt) == (2, "Say 1.")
    assert confusion_table(read_run(run)).rows == [
        ("Zanthor <b>x</b>.", "Zantor <b>x</b>.", "2", "Say 1.")
    ]


def test_what_is_expected_is_said_in_words_in_both_documents(run: Path) -> None:
    number = r"(^|\D)18($|\D)"
    for name in STAGES:
        items = [
            item(1, "No.", number, match="regex"),
            item(2, "No.", "ten or so", match="contains"),
            {**item(3, "a|b", "^c|d$", match="regex"), "kind": "reply", "scores": {}},
        ]
        write_json(run / "benchmarks" / f"{name}.json", {"held_out": {"items": items}})
    page = write_report(run).read_text("utf-8")
    markdown = (run / "report.md").read_text("utf-8")
    assert "| contains the number 18 | `No.` | 1 | `Say 1.` | 2".partition(" | 2")[0] in markdown
    assert '`contains "ten or so"`' in markdown and r"`matches the pattern ^c\|d$`" in markdown
    assert number not in markdown + page and "expected: contains the number 18" in page
    assert "contains &#34;<mark>ten</mark> or so&#34;" in page


def test_tags_are_counted_among_the_replies_that_should_hold_them(run: Path) -> None:
    table = tags_table(read_run(run))
    assert table.head == ("Tag", *STAGES)
    assert table.rows == [
        ("</bot>", "0% of 2", "100% of 2", "100% of 2"),
        ("broken tags", "33% of 3", "0% of 3", "0% of 3"),
    ]


def test_both_documents_show_them_as_text(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    markdown = (run / "report.md").read_text("utf-8")
    assert (
        "### Expected and given at the last stage" in markdown and "### Tags in replies" in markdown
    )
    assert "<mark>Zanthor</mark> &lt;b&gt;x" in page and "phase1_sft: 2 of 3 did not pass" in page
    assert '<th scope="row">&lt;/bot&gt;</th>' in page


def test_runs_without_eval_prompts_or_of_earlier_releases_show_what_they_have(run: Path) -> None:
    for name in STAGES:
        file = run / "benchmarks" / f"{name}.json"
        record = read_json(file)
        for one in record["held_out"]["items"]:
            one.pop("tags", None), one.pop("broken", None)
        write_json(file, record)
    found = read_run(run)
    assert len(confusions(found)) == 2 and not tags_table(found).rows
    shutil.rmtree(run)
    shutil.copytree(OLD / "sealed", run)
    assert not confusions(read_run(run)) and not confusion_table(read_run(run)).rows
    assert "Expected and given" not in write_report(run).read_text("utf-8")
