"""The words of a report are explained on it, and only those that occur."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from forty2.files import write_json
from forty2.report.glossary import TITLE, entries
from forty2.report.records import read_run
from forty2.report.run import write_report

OLD = Path(__file__).parents[1] / "old_runs"
BUCKET = {"n": 6, "best": "base", "forgotten": 0, "shares": {"base": 0.0, "fused": 0.5}}


def run_with(folder: Path, *buckets: str) -> Path:
    """Copy a run whose last stage is measured, with these buckets of eval prompts."""
    shutil.copytree(OLD / "sealed", folder)
    stage = {"leak_rate": 0.1, "kl": 0.2, "held_out": {"replies stopped": 1.0}}
    summary = {
        "verdict": "tax",
        "sentence": "Worse.",
        "stages": [{"stage": name, **stage} for name in ("base", "fused")],
        "buckets": [{**BUCKET, "name": name} for name in buckets],
    }
    write_json(folder / "summary.json", summary)
    (folder / "benchmarks").mkdir()
    for name in ("base", "fused"):
        write_json(folder / "benchmarks" / f"{name}.json", {})
    return folder


def test_words_that_occur_are_explained_and_no_others(tmp_path: Path) -> None:
    run = read_run(run_with(tmp_path / "run"))
    found = [one.word for one in entries(run, ["**Verdict: tax.**", "0.2 nats"])]
    assert found == ["tax", "nats"]
    assert entries(run, ["taxes on catnats"]) == []


def test_both_documents_explain_their_words_and_the_page_links_there(tmp_path: Path) -> None:
    page = write_report(run_with(tmp_path / "run", "number", "mine")).read_text("utf-8")
    markdown = (tmp_path / "run" / "report.md").read_text("utf-8")
    for word in ("tax", "leaks, hedges", "nats", "KL", "stopped", "number (bucket)"):
        assert f"- **{word}**: " in markdown and f"<dt>{word}</dt>" in page
    assert "mine (bucket)" not in markdown + page and "rewards" not in markdown
    assert f"<h2>{TITLE}</h2>" in page and f"## {TITLE}" in markdown
    assert re.search(r'<details><summary>\d+ words [^<]*</summary><dl id="words">', page)
    before, _, after = page.partition('href="#words"')
    assert "Verdict: tax" in before and 'href="#words"' in after


def test_a_run_without_such_words_has_no_such_section(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD / "unsealed", tmp_path / "run"))
    shutil.rmtree(folder / "phase1_sft")
    (folder / "metrics.jsonl").unlink()
    (folder / "recipe.yaml").write_text("beta: [")  # the recipe itself is not searched for words
    assert "#words" not in write_report(folder).read_text("utf-8")
    assert TITLE not in (folder / "report.md").read_text("utf-8")
