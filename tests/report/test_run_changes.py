"""Costs beside benefits: in the table, its notes and the charts, with margin and answer."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from forty2.files import read_json, write_json
from forty2.report.records import read_run
from forty2.report.run import write_report
from forty2.report.run_changes import shown_changes

OLD = Path(__file__).parents[1] / "old_runs"


def change(difference: float, reach: float, verdict: str, n: int) -> dict[str, Any]:
    ends = {"low": difference - reach, "high": difference + reach}
    return {"difference": difference, **ends, "p_holm": 0.5, "verdict": verdict, "n": n}


def cost(where: str, name: str, margin: float, answer: str) -> dict[str, Any]:
    return {"where": where, "name": name, "margin": margin, "answer": answer, "better": False}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that gained on its own rows, and lost facts and perplexity; MMLU is unclear."""
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    (folder / "benchmarks").mkdir()
    judged = {
        "held_out": ["pairs right", "chat loss"],
        "mmlu": ["mmlu"],
        "behaviour": ["no leak", "right"],
        "perplexity": ["log p of texts"],
    }
    comparison = {
        "stage": "fused",
        "metrics": {
            "pairs right": change(0.4, 0.1, "gain", 20),
            "chat loss": change(-1.5, 0.5, "gain", 1),
            "mmlu": change(-0.02, 0.1, "no tax", 99),
            "no leak": change(0.0, 0.1, "inconclusive", 50),
            "right": change(-0.34, 0.14, "tax", 50),
            "log p of texts": change(-math.log(1.2), 0.01, "tax", 8),
        },
        "tasks": {name: {"judged": names, "verdict": "tax"} for name, names in judged.items()},
        "costs": [
            cost("MMLU", "MMLU: mmlu", 0.05, "cannot tell"),
            cost("plain facts", "plain facts:", 0.1, "worse"),
            cost("neutral text", "neutral text: perplexity", math.log(1.05), "worse"),
            cost("of another release", "of another release: x", 0.1, "worse"),
        ],
    }
    task = {"label": "your held-out rows", "questions": "your held-out rows", "n": 21}
    summary = {
        "verdict": "tax",
        "sentence": "Better and worse.",
        "margin": 0.01,
        "questions": "your held-out rows",
        "n": 20,
        "tasks": {"held_out": task, "mmlu": {**task, "label": "MMLU"}},
        "stages": [{"stage": "base"}, {"stage": "fused", "facts_right": 0.08}],
        "comparisons": [comparison],
    }
    write_json(folder / "summary.json", summary)
    for stage in ("base", "fused"):
        write_json(folder / "benchmarks" / f"{stage}.json", {})
    return folder


def documents(run: Path) -> tuple[str, str]:
    page = write_report(run)
    return (run / "report.md").read_text("utf-8"), page.read_text("utf-8")


def test_what_was_lost_has_a_row_with_interval_margin_and_answer(run: Path) -> None:
    markdown, page = documents(run)
    for row in (
        "| fused | facts right | -0.3400 | -0.4800 to -0.2000 | 0.1 | 0.5 | tax |",
        "| fused | perplexity (lower is better) | +20.0% | +18.8% to +21.2% | 5% | 0.5 | tax |",
        "| fused | mmlu | -0.0200 | -0.1200 to +0.0800 | 0.05 | 0.5 | inconclusive |",
        "| fused | chat loss (lower is better) | -1.5000 | -2.0000 to -1.0000 | 0.01 | 0.5 | gain |",
    ):
        assert row in markdown
    assert markdown.count("| fused | mmlu |") == 1 and "no leak" not in markdown
    for text in ("facts right</td>", "-0.4800 to -0.2000", "+18.8% to +21.2%"):
        assert text in page
    sentence = "The run's verdict is tax because of facts right and perplexity."
    assert sentence in markdown and sentence.replace("'", "&#39;") in page


def test_a_gain_is_explained_for_figures_of_both_directions(run: Path) -> None:
    for text in documents(run):
        assert "better side of zero: above it, or below it where lower is better." in text
        assert "above zero." not in text


def test_costs_are_drawn_with_their_margins_and_what_is_worse_says_so(run: Path) -> None:
    page = documents(run)[1].partition("<h2>Training</h2>")[0]
    assert "facts right: -0.34, worse (-0.48 to -0.20), margin -0.10</title>" in page
    assert "perplexity: +20.0%, worse (+18.8% to +21.2%), margin +5.0%</title>" in page
    assert page.count("<title>margin: ") == 3 and "mmlu: -0.02 (-0.12 to +0.08)" in page
    assert page.count(", worse</text>") == 2 and "margin: a smaller loss is no cost" in page


def test_held_out_rows_are_counted_by_kind(run: Path) -> None:
    for text in documents(run):
        assert "on your held-out rows (20 pairs, 1 chat)." in text


def test_an_earlier_record_without_costs_has_the_benefits_alone(run: Path) -> None:
    summary = read_json(run / "summary.json")
    del summary["comparisons"][0]["costs"], summary["margin"]
    write_json(run / "summary.json", summary)
    read = read_run(run)
    found = shown_changes(read.comparisons[0], None)
    assert [one.metric for one in found] == ["pairs right", "chat loss", "mmlu"]
    assert not any(one.is_cost for one in found)
    assert re.search(r"\| fused \| pairs right \| .* \| – \| 0.5 \| gain \|", documents(run)[0])
