"""What a notebook shows of results: all figures, and no text that acts as markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.archive import make_run, measured_stage

import forty2
from forty2.benchmark.compare import compare
from forty2.benchmark.results import Result
from forty2.notebook import html_table
from forty2.runs.pipeline import RunResult

HOSTILE = "<script>alert('a & b')</script>"


class Shown(HTMLParser):
    """The tags, texts and alignments of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.sides: dict[str, str] = {}
        self._side = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._side = dict(attrs).get("style") or ""

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data)
            self.sides[data] = self._side.rpartition(":")[2]


def shown(value: object) -> Shown:
    """What a notebook shows of a value; its only tags are those of tables and paragraphs."""
    found = Shown(value._repr_html_())  # type: ignore[attr-defined]
    assert found.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    return found


def test_a_table_shows_its_texts_and_aligns_figures_on_the_right() -> None:
    found = Shown(html_table(HOSTILE, ["name", "share"], [[HOSTILE, "0.5"], ["b", ""]]))
    assert found.texts == [HOSTILE, "name", "share", HOSTILE, "0.5", "b"]
    assert found.sides["0.5"] == found.sides["share"] == "right" and found.sides["b"] == "left"
    assert Shown(html_table("none", ["name"], [])).texts == ["none", "name"]


@pytest.fixture
def result() -> Result:
    """A result of TruthfulQA whose model has a hostile name."""
    found = measured_stage("base", 0.5)["truthfulqa"].to_json()
    errors = dict.fromkeys(("mc1", "mc2", "mc3"), 0.1)
    return Result.from_json({**found, "n": 40, "stderr": errors, "model": HOSTILE}, "it")


def test_a_result_shows_its_means_and_its_items_are_left_out(result: Result) -> None:
    texts = shown(result).texts
    assert any(HOSTILE in text for text in texts)
    assert f"{result.figures['mc1']:.4f}" in texts
    assert "items" not in repr(result) and "mc1" in str(result).lower()


def test_a_comparison_shows_its_figures_and_verdict(result: Result) -> None:
    found = compare(result, result)
    texts = shown(found).texts
    title = f"{found.questions}, {found.n} questions: {found.before} → {found.after}"
    head = ["metric", "before", "after", "change", "95% interval", "p", "verdict"]
    assert texts[:8] == [title, *head]
    assert {"MC1", f"{found.metrics['mc1'].after:.3f}", found.metrics["mc1"].verdict} <= {*texts}
    assert texts[-1].startswith(f"Verdict: {found.verdict}. ")
    assert f"Verdict: {found.verdict}" in str(found)


def test_a_run_shows_its_files_and_warnings() -> None:
    run = RunResult(
        path=Path("adapters/x"),
        adapter=Path(HOSTILE),
        fused=None,
        stages=[],
        table="",
        changes="",
        verdict="",
        sentence="",
        next_steps=[],
        verdicts={},
        outcome="",
        report=Path("adapters/x/report.html"),
        contamination=[],
        warnings=[HOSTILE],
    )
    assert {HOSTILE, "adapters/x/report.html", f"Warning: {HOSTILE}"} <= {*shown(run).texts}
    assert str(run).splitlines()[-1] == "report    adapters/x/report.html"


def test_a_list_of_runs_shows_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert forty2.list_runs() == []
    make_run(tmp_path / "adapters" / "one", mc1=0.4, model=HOSTILE)
    make_run(tmp_path / "adapters" / "two", mc1=0.5)
    found = forty2.list_runs(sort="mc1")
    assert [Path(entry.path).name for entry in found] == ["two", "one"]
    assert [Path(entry.path).name for entry in forty2.list_runs(model="script")] == ["one"]
    assert HOSTILE in shown(found).texts
