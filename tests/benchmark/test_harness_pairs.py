"""Samples of two models, compared item by item, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.harness_files import DATE, FOLDER, line, write

import forty2
from forty2.benchmark.stats import mcnemar
from forty2.cli import main
from forty2.errors import BenchmarkError


def compare(folder: Path, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Any:
    for name, lines in (("before", before), ("after", after)):
        write(folder / name, "arc", lines)
    return forty2.compare(folder / "before", folder / "after")


def test_real_files_give_mcnemars_p_of_the_items_that_changed() -> None:
    rows = {}
    for side in ("before", "after"):
        (file,) = (FOLDER / f"tiny__{side}").glob("samples_*.jsonl")
        lines = map(json.loads, file.read_text("utf-8").splitlines())
        rows[side] = {x["doc_id"]: x["exact_match"] for x in lines if x["filter"] == "strict-match"}
    better = sum(rows["after"][n] > rows["before"][n] for n in rows["before"])
    worse = sum(rows["after"][n] < rows["before"][n] for n in rows["before"])
    comparison = forty2.compare(FOLDER / "tiny__before", FOLDER / "tiny__after")
    change = comparison.metrics["exact_match,strict-match"]
    assert (change.n, change.better, change.worse) == (6, better, worse)
    assert better > 0 and change.p == mcnemar(better, worse)
    assert (comparison.before, comparison.after) == ("tiny/before", "tiny/after")


def test_items_are_matched_by_their_document_whatever_their_order_and_id(tmp_path: Path) -> None:
    before = [line(n, acc=float(n % 2)) for n in range(40)]
    after = [{**one, "doc_id": 100 - one["doc_id"]} for one in reversed(before)]
    change = compare(tmp_path, before, after).metrics["acc"]
    assert (change.n, change.better, change.worse) == (40, 0, 0)


def test_equal_documents_are_matched_in_the_order_of_their_ids(tmp_path: Path) -> None:
    before = [{**line(n, acc=float(n % 2)), "doc_hash": "same"} for n in range(10)]
    change = compare(tmp_path, before, before[::-1]).metrics["acc"]
    assert (change.n, change.better) == (10, 0)


def test_less_perplexity_is_a_gain(tmp_path: Path) -> None:
    before = [line(n, perplexity=3.0 + n % 3) for n in range(60)]
    after = [{**one, "perplexity": one["perplexity"] - 0.5} for one in before]
    comparison = compare(tmp_path, before, after)
    assert comparison.metrics["perplexity"].better == 60
    assert comparison.metrics["perplexity"].verdict == "gain"


def test_several_tasks_are_compared_together_and_named(tmp_path: Path) -> None:
    for side in ("before", "after"):
        for task in ("arc", "boolq"):
            lines = [line(n, acc=float(n % 2)) for n in range(8)]
            write(tmp_path / side, task, lines)
    comparison = forty2.compare(tmp_path / "before", tmp_path / "after")
    assert [*comparison.metrics] == ["arc: acc", "boolq: acc"]


def test_another_prompt_is_said(tmp_path: Path) -> None:
    before = [line(n, acc=1.0) for n in range(8)]
    after = [{**one, "prompt_hash": "other"} for one in before]
    with pytest.warns(UserWarning, match="8 of 8 items have another prompt"):
        compare(tmp_path, before, after)


ITEMS = [line(n, acc=1.0) for n in range(8)]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (ITEMS[:7], "8 items before and 7 after, 7 of them in both"),
        ([*ITEMS[:7], line(9, acc=1.0)], "8 items before and 8 after, 7 of them in both"),
        ([{**x, "doc_hash": f"other {x['doc_id']}"} for x in ITEMS], "no item of the 8 before"),
        ([{**x, "acc_norm": 1.0, "metrics": ["acc", "acc_norm"]} for x in ITEMS], "other metrics"),
        ([{**x, "target": "1"} for x in ITEMS], "doc_id 0 has another answer before"),
    ],
)
def test_other_items_are_refused(after: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=f"not comparable: arc.*{message}"):
        compare(tmp_path, ITEMS, after)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("versions", {"arc": 2.0}, "version is 1.0 before and 2.0 after"),
        ("n-shot", {"arc": 5}, "n-shot is 0 before and 5 after"),
        ("chat_template", "{{ messages }}", "chat template is False before and True after"),
    ],
)
def test_other_settings_are_refused(key: str, value: object, says: str, tmp_path: Path) -> None:
    settings = {"versions": {"arc": 1.0}, "n-shot": {"arc": 0}, "chat_template": None}
    for side, changes in (("before", {}), ("after", {key: value})):
        write(tmp_path / side, "arc", ITEMS)
        record = json.dumps({**settings, **changes})
        (tmp_path / side / f"results_{DATE}.json").write_text(record, "utf-8")
    with pytest.raises(BenchmarkError, match=f"not comparable: arc: {says}"):
        forty2.compare(tmp_path / "before", tmp_path / "after")


def test_other_tasks_are_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "before", "arc", ITEMS)
    write(tmp_path / "after", "boolq", ITEMS)
    paths = [str(tmp_path / side) for side in ("before", "after")]
    result = CliRunner().invoke(main, ["compare", *paths])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "arc only before; boolq only after; evaluate the same tasks" in result.output
