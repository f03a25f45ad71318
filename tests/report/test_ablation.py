"""An ablation's report, from a record written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forty2.report.ablation import text_table, write_ablation


def score(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 9}


def change(difference: float) -> dict[str, Any]:
    low, high = difference - 0.05, difference + 0.05
    return {"difference": difference, "low": low, "high": high, "n": 9, "verdict": "gain"}


METRICS = {"mc1": 0.25, "no leak": 0.75, "log p of texts": -2.0, "KL": 0.5, "answers: myth": 0.5}


@pytest.fixture
def record() -> dict[str, Any]:
    changes = {metric: change(0.125) for metric in METRICS if metric != "KL"}
    return {
        "name": "small",
        "seeds": [1, 2],
        "questions": {"name": "asked.json", "sha256": "abc", "n": 9, "drawn_with": 42},
        "margin": 0.01,
        "run": {"model": "model", "model_sha256": "def", "versions": {"forty2": "0.1.0"}},
        "notes": [],
        "variants": {
            name: {metric: score(value) for metric, value in METRICS.items()}
            for name in ("base", "sft", "sft+dpo")
        },
        "changes": [
            {"variant": after, "against": before, "metrics": changes}
            for after, before in (("sft", "base"), ("sft+dpo", "base"), ("sft+dpo", "sft"))
        ],
        "insight": {"says": "holds", "sentence": "It holds here."},
        "recipe": "version: 1\n",
        "items": {},
    }


def test_each_change_is_in_the_unit_that_its_row_names(
    record: dict[str, Any], tmp_path: Path
) -> None:
    write_ablation(record, tmp_path)
    lines = (tmp_path / "ablation.md").read_text("utf-8").splitlines()
    assert "| MC1 | +0.125 (+0.075 to +0.175), gain | " in "\n".join(lines)
    (leaks,) = {line for line in lines if line.startswith("| leaks (points)") and "sft" not in line}
    assert "-12.5 (-17.5 to -7.5), gain" in leaks
    assert any(line.startswith("| perplexity (%) | -11.8 (") for line in lines)


def test_the_insight_comes_first_then_the_charts(record: dict[str, Any], tmp_path: Path) -> None:
    page = write_ablation(record, tmp_path).read_text("utf-8")
    order = [
        "It holds here.",
        "<svg",
        "<h2>Variants",
        "<h2>Change from base",
        "<h2>What each phase",
    ]
    assert [page.index(part) for part in order] == sorted(page.index(part) for part in order)
    assert page.count("<svg") == 7  # KL has no change from the base


def test_columns_of_the_terminal_s_table_never_touch(record: dict[str, Any]) -> None:
    wide = {"value": -9.0, "low": -19.0, "high": 1.0, "n": 9}
    record["variants"]["sft"]["log p of texts"] = wide
    lines = text_table(record).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert lines[3].count(")  ") == 3


def test_what_a_record_says_stays_text(record: dict[str, Any], tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> [x](http://x)|`\u202e"
    record["variants"] = {
        name if name == "base" else name + hostile: scores
        for name, scores in record["variants"].items()
    }
    record["run"]["model"] = hostile
    page = write_ablation(record, tmp_path).read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "\u202e" not in page + (tmp_path / "ablation.md").read_text("utf-8")


def test_doses_have_a_table_and_charts_of_their_own(record: dict[str, Any], tmp_path: Path) -> None:
    points = [("base", "dpo only"), ("sft", "sft+dpo")]
    record["variants"]["dpo only"] = record["variants"]["sft"]
    record["changes"].append({**record["changes"][0], "variant": "dpo only"})
    record["insight"] = None
    record["dose"] = {
        "phase": "sft",
        "preference": "dpo",
        "points": [
            {"dose": 40 * n, "variant": variant, "after_preference": after}
            for n, (variant, after) in enumerate(points)
        ],
        "harms": [],
        "sentence": "sft leaks from 40 steps on.",
    }
    page = write_ablation(record, tmp_path).read_text("utf-8")
    assert page.index("sft leaks from 40") < page.index("<svg")
    assert page.count("<svg") == 4 and "KL from base" in page  # MC1, leaks, perplexity, KL
    assert "sft alone, 40: -12.5 (-17.5 to -7.5)" in page
    assert "then dpo, 0: " in page
    lines = text_table(record).splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["0", "0, then dpo", "40", "40, then dpo"]
    assert "-12.5 (-17.5 to -7.5), gain" in lines[4] and "0.5 (0.45 to 0.55)" in lines[4]
    assert lines[2].split()[1:] == ["0"] * 4
    markdown = (tmp_path / "ablation.md").read_text("utf-8")
    assert "## What dpo changed after each dose" in markdown and "**sft leaks" in markdown
