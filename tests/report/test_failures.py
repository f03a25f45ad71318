"""The page of a failure loop: its figures, and texts that try to be markup."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from forty2.errors import RunError
from forty2.report import failures
from forty2.report.failures import write_failures

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp; \"' $x^2$ {{ 7 * 7 }}"


def cluster(number: int, failed: int, **more: object) -> dict[str, Any]:
    return {
        "cluster": number,
        "size": 4,
        "failures": failed,
        "rate": failed / 4,
        "interval": [0.1, 0.9],
        "rest_rate": 0.25,
        "p": 0.0004,
        "p_holm": 0.048,
        "worse": failed > 1,
        "jaccard": 0.81,
        "stable": True,
        "nearest": [f"{number}-{n}" for n in range(3)],
        "terms": [{"term": HOSTILE, "z": 3.0, "inside": 0.9, "outside": 0.0}],
        **more,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_labels(folder: Path, label: str = HOSTILE) -> None:
    sha256 = hashlib.sha256((folder / "clusters.json").read_bytes()).hexdigest()
    row = {"cluster": 1, "label": label, "sorted": 20, "right": 17, "weak": False}
    weak = {"cluster": 2, "label": "some of all", "sorted": 20, "right": 11, "weak": True}
    record = {"clusters_sha256": sha256, "labels": [row, weak]}
    (folder / "labels.json").write_text(json.dumps(record), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ids = [f"{number}-{n}" for number in (1, 2) for n in range(4)]
    write_lines(
        tmp_path / "testset.jsonl",
        [
            {
                "id": name,
                "stratum": "code",
                "half": "find",
                "messages": [{"role": "user", "content": f"{name} {HOSTILE}"}],
            }
            for name in ids
        ]
        + [
            {
                "id": "secret",
                "half": "untouched",
                "messages": [{"role": "user", "content": "an untouched question"}],
            }
        ],
    )
    write_lines(
        tmp_path / "verdicts.jsonl",
        [{"id": name, "verdict": "fail" if name < "1-3" else "pass"} for name in [*ids, "secret"]],
    )
    write_lines(
        tmp_path / "cluster_items.jsonl",
        [{"id": name, "cluster": int(name[0]), "x": n / 9, "y": -n} for n, name in enumerate(ids)],
    )
    record = {
        "sentence": "1 of 2 clusters fails more often than the rest.",
        "text": "last user message",
        "model": HOSTILE,
        "items": 8,
        "failures": 3,
        "k": 2,
        "k_asked": 2,
        "seed": 42,
        "least_jaccard": 0.6,
        "strata": [
            {"name": HOSTILE, "passed": 5, "failed": 3, "unscored": 2, "interval": [0.3, 0.86]},
            {"name": "empty", "passed": 0, "failed": 0, "unscored": 7, "interval": None},
        ],
        "stability": {"rand": 0.9, "least_rand": 0.6, "resamples": 20},
        "clusters": [cluster(1, 3), cluster(2, 0, p=0.5, stable=False)],
    }
    (tmp_path / "clusters.json").write_text(json.dumps(record), "utf-8")
    write_labels(tmp_path)
    return tmp_path


def test_no_text_of_the_loop_is_markup(folder: Path) -> None:
    page = write_failures(folder).read_text("utf-8")
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;alert(1)") > 10 and "{{ 7 * 7 }}" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_has_rates_label_and_tests(folder: Path) -> None:
    page = write_failures(folder).read_text("utf-8")
    for text in (
        "1 of 2 clusters fails more often than the rest.",
        "62.5% (30.0% to 86.0%)",
        "– none was scored",
        "75.0% (10.0% to 90.0%)",
        "4e-04",
        "0.048",
        "some of all (weak)",
        "17 of 20 held-out items",
        "not stable",
        "worse",
    ):
        assert text in page, text
    assert "untouched question" not in page


def test_the_map_has_a_tooltip_for_each_item_and_failures_are_crosses(folder: Path) -> None:
    page = write_failures(folder).read_text("utf-8")
    start = page.index("<svg", page.index("Map of the items"))
    svg = ElementTree.fromstring(page[start : page.index("</svg>", start) + 6])
    drawn = {
        title.text.split(": ")[1]: group.find("path")
        for group in svg.iter("g")
        if (title := group.find("title")) is not None and title.text
    }
    assert set(drawn) == {"passed", "failed"}
    titles = [title.text or "" for title in svg.iter("title")]
    assert len(titles) == 8 and sum(": failed: " in title for title in titles) == 3
    crosses, dots = (drawn[key] for key in ("failed", "passed"))
    assert crosses is not None and crosses.attrib["d"].count("M") == 2
    assert dots is not None and dots.attrib["d"].count("M") == 1


def test_labels_of_earlier_clusters_are_left_out_with_a_warning(folder: Path) -> None:
    record = json.loads((folder / "clusters.json").read_bytes())
    (folder / "clusters.json").write_text(json.dumps({**record, "seed": 43}), "utf-8")
    page = write_failures(folder).read_text("utf-8")
    assert "The labels are of earlier clusters" in page and "some of all" not in page


def test_verdicts_that_changed_since_are_a_warning(folder: Path) -> None:
    lines = (folder / "verdicts.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "verdicts.jsonl").write_text("".join(lines[1:]), "utf-8")
    assert "clusters are of other items" in write_failures(folder).read_text("utf-8")


def test_without_labels_clusters_have_their_numbers(folder: Path) -> None:
    (folder / "labels.json").unlink()
    page = write_failures(folder).read_text("utf-8")
    assert "<h3>Cluster 1</h3>" in page and "weak)" not in page


def test_a_large_map_is_drawn_in_part_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_DRAWN", 5)
    page = write_failures(folder).read_text("utf-8")
    assert "5 of 8 items" in page
    assert page.count(": passed: ") + page.count(": failed: ") == 5


def test_two_pages_of_the_same_are_the_same_bytes(folder: Path) -> None:
    first = write_failures(folder).read_bytes()
    assert write_failures(folder).read_bytes() == first


def test_a_folder_without_clusters_or_with_damage_is_one_line(folder: Path) -> None:
    (folder / "cluster_items.jsonl").write_text("{}\n", "utf-8")
    with pytest.raises(RunError, match="missing or damaged") as caught:
        write_failures(folder)
    assert "\n" not in str(caught.value) and not (folder / "failures.html").exists()
    (folder / "clusters.json").unlink()
    with pytest.raises(RunError, match="make it with forty2 failures cluster"):
        write_failures(folder)


def recovered(**more: Any) -> dict[str, Any]:
    part = {"pass": [3], "fail": [1], "unscored": [0], "pass_rate": 0.75}
    own = {
        "rows": 6,
        "tokens": 700,
        "original_share": 0.1,
        "left_out": {"too long": 2},
        "accepted": 8,
    }
    difference = {"difference": 0.061, "low": 0.02, "high": 0.104}
    cost = {"name": "plain facts:", "before": "80%", "after": "60%", "answer": "worse"}
    return {
        "sentence": f"Helps more than random: +6.1 points {HOSTILE}.",
        "warnings": [f"no original data {HOSTILE}"],
        "testset_sha256": {"find": "1"},
        "seeds": [1, 2],
        "items": 400,
        "groups": 390,
        "unscored": 3,
        "differences": [{"arm": "targeted", "than": "random", **difference}],
        "arms": {
            name: {"all": part, "strata": {HOSTILE: part}}
            for name in ("targeted", "random", "none")
        },
        "rows": {"arms": {"targeted": own, "random": own}},
        "costs": {"targeted": [cost], "random": []},
        **more,
    }


def test_the_arms_are_side_by_side_under_their_verdict(folder: Path) -> None:
    (folder / "recover.json").write_text(json.dumps(recovered()), "utf-8")
    (folder / "testset.json").write_text('{"sha256": {"find": "1"}}', "utf-8")
    page = write_failures(folder).read_text("utf-8")
    verdict = page.partition('<p class="verdict">')[2].partition("</p>")[0]
    assert verdict.startswith("Helps more than random: +6.1 points")
    for shown in ("400 untouched items in 390 groups", "75.0%", "2 too long", "plain facts", "80%"):
        assert shown in page
    assert "<script>alert(1)" not in page and "no original data" in page
    assert "targeted against random" in page and "another test set" not in page


def test_arms_of_another_test_set_are_said_to_be(folder: Path) -> None:
    (folder / "recover.json").write_text(json.dumps(recovered()), "utf-8")
    (folder / "testset.json").write_text('{"sha256": {"find": "2"}}', "utf-8")
    assert "tested on another test set" in write_failures(folder).read_text("utf-8")
    (folder / "recover.json").write_text("{}", "utf-8")
    with pytest.raises(RunError, match="missing or damaged"):
        write_failures(folder)


def write_generated(folder: Path, **changed: object) -> None:
    clusters = hashlib.sha256((folder / "clusters.json").read_bytes()).hexdigest()
    row = {"wanted": 1200, "asked": 1300, "kept": 1190, "refused": {"copy of the half find": 110}}
    record = {
        "teacher": "http://127.0.0.1:1/v1",
        "teacher_model": HOSTILE,
        "sentence": "1,190 of 1,200 rows.",
        "clusters_sha256": clusters,
        "generated_sha256": "a",
        "tokens": {"prompt": 4000, "reply": 500, "estimated": 0},
        "cost": 0.5,
        "targets": [
            {**row, "arm": "targeted", "cluster": 1, "label": HOSTILE},
            {**row, "arm": "random", "cluster": None, "label": "", "kept": 1185},
        ],
        **changed,
    }
    (folder / "generated.json").write_text(json.dumps(record), "utf-8")


def write_accepted(folder: Path, generated: str) -> None:
    record = {
        "generated_sha256": generated,
        "clusters": [{"cluster": 1, "rows": 1190, "accepted": 977}],
        "arms": {"random": {"accepted": 966}},
    }
    (folder / "accepted.json").write_text(json.dumps(record), "utf-8")


def test_the_page_counts_the_rows_to_teach_from(folder: Path) -> None:
    assert "Rows to teach from" not in write_failures(folder).read_text("utf-8")
    write_generated(folder)
    page = write_failures(folder).read_text("utf-8")
    for text in ("Rows to teach from", "1,190", "1,185", "110 copy of the half find", "at random"):
        assert text in page, text
    assert "It read 4,000 tokens and wrote 500, 0.50 in money." in page
    assert "977" not in page and "<script" not in page
    write_accepted(folder, "a")
    page = write_failures(folder).read_text("utf-8")
    assert "977" in page and "966" in page
    write_accepted(folder, "those of other rows")
    assert "977" not in write_failures(folder).read_text("utf-8")


def test_rows_of_earlier_clusters_are_not_shown(folder: Path) -> None:
    write_generated(folder, clusters_sha256="other")
    page = write_failures(folder).read_text("utf-8")
    assert "Rows to teach from" not in page
    assert "The generated rows are of earlier clusters" in page
