"""A sweep's report, from a record written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forty2.report.sweep import confirmation_lines, text_table, write_sweep


def score(value: float, spread: float | None = 0.05) -> dict[str, Any]:
    ends = (None, None) if spread is None else (value - spread, value + spread)
    return {"value": value, "low": ends[0], "high": ends[1], "n": 9}


def configuration(
    name: str, beta: float, mc2: float, spread: float | None = 0.05
) -> dict[str, Any]:
    return {
        "name": name,
        "settings": {"phases.dpo.beta": beta},
        "seeds": [1, 2],
        "state": "finished",
        "scores": {
            "mc2": score(mc2, spread),
            "log p of texts": score(-2.0, spread),
            "KL": score(0.1, spread),
            "chat loss": score(1.5, spread),
            "answers: myth": score(0.5, spread),
        },
        "seconds": 90.0,
    }


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "name": "small-sweep",
        "method": "grid",
        "grid": "phases.dpo.beta: [0.1, 0.5]\n",
        "recipe": "version: 1\n",
        "parameters": ["phases.dpo.beta"],
        "metric": {"name": "mc2", "metric": "mc2", "sign": 1.0, "goal": "maximize"},
        "seeds": [1, 2],
        "early_stop": True,
        "questions": {"name": "asked.json", "sha256": "abc", "n": 9},
        "statistics": {},
        "base": {"mc2": 0.4},
        "configurations": [configuration("c001", 0.1, 0.4), configuration("c002", 0.5, 0.6, None)],
        "shared_seconds": 30.0,
        "best": "c002",
        "winner": None,
        "against": {"c001": {"value": 0.2, "low": -0.1, "high": 0.5, "n": 9}},
        "sentence": "No winner: c002 and c001 overlap.",
        "confirmed": None,
        "run": {"model": "model", "model_sha256": "def", "versions": {"forty2": "0.1.0"}},
        "items": {},
    }


def test_the_table_has_settings_metrics_cost_and_the_base(record: dict[str, Any]) -> None:
    head, _, base, first, second = text_table(record).splitlines()
    assert head.split() == ["dpo.beta", "MC2", "perplexity", "KL", "from", "base", "cost", "state"]
    assert "base" in base and "0.400" in base and "–" in base
    assert "0.400 (0.350 to 0.450)" in first and "7.39 (7.03 to 7.77)" in first and "90 s" in first
    assert "0.600 " in second and "0.600 (" not in second  # one seed has no interval
    assert len(head) == len(first)


def test_the_report_leads_with_the_claim_and_has_every_metric(
    record: dict[str, Any], tmp_path: Path
) -> None:
    page = write_sweep(record, tmp_path).read_text("utf-8")
    markdown = (tmp_path / "sweep.md").read_text("utf-8")
    for text in (page, markdown):
        for word in (
            "No winner: c002 and c001 overlap",
            "gate myth, generation",
            "early stop by the median rule was on",
            "small-sweep",
            "shared work took 30 s",
        ):
            assert word in text
    assert page.count("<svg") == 3  # MC2 against perplexity and KL, parallel coordinates
    assert page.index("No winner") < page.index("<table")


def test_a_confirmation_is_shown_with_what_is_lost(record: dict[str, Any], tmp_path: Path) -> None:
    gain = {"value": 0.1, "low": 0.05, "high": 0.15, "n": 9}
    record["confirmed"] = {
        "configuration": "c002",
        "seeds": [3, 4],
        "scores": {"c002": {"mc2": score(0.55)}, "default": {"mc2": score(0.45)}},
        "before": score(0.6),
        "after": score(0.55),
        "shrinkage": {"value": 0.05, "low": -0.02, "high": 0.12},
        "gain": gain,
        "gain_before": None,
        "holds": True,
        "sentence": "That c002 is better holds.",
    }
    lines = confirmation_lines(record)
    assert lines[0] == "That c002 is better holds."
    assert "Shrinkage: +0.0500 (-0.0200 to +0.1200)" in lines[1]
    assert "on fresh seeds: +0.1000 (+0.0500 to +0.1500), 9 items" in lines[2]
    page = write_sweep(record, tmp_path).read_text("utf-8")
    assert "Shrinkage" in page and "Fresh seeds 3, 4" in page


def test_a_sweep_without_a_finished_run_has_a_report(
    record: dict[str, Any], tmp_path: Path
) -> None:
    for one in record["configurations"]:
        one.update(scores={}, seconds=0, seeds=[], state="not finished")
    record.update(best=None, against={}, run=None, base={}, shared_seconds=0)
    assert "not finished" in text_table(record)
    assert "<svg" not in write_sweep(record, tmp_path).read_text("utf-8")


def test_what_a_record_says_stays_text(record: dict[str, Any], tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> [x](http://x)|`\u202e"
    record["run"]["model"] = hostile
    record["configurations"][0]["settings"]["phases.dpo.beta"] = hostile
    record["configurations"][1]["state"] = hostile
    record["grid"] = hostile
    page = write_sweep(record, tmp_path).read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "\u202e" not in page + (tmp_path / "sweep.md").read_text("utf-8")


def test_of_a_section_the_table_shows_only_what_differs(record: dict[str, Any]) -> None:
    same = {"objective": "dpo", "lr": 1e-4}
    record["parameters"] = ["phases.dpo"]
    for one, own in zip(record["configurations"], ({}, {"kl": {"weight": 0.1}}), strict=True):
        one["settings"] = {"phases.dpo": {**same, **own}}
    table = text_table(record)
    assert "objective" not in table and "lr" not in table
    assert table.splitlines()[3].split()[:2] == ["c001", "–"]
    assert "{kl: {weight: 0.1}}" in table.splitlines()[4]
