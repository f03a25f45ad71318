"""TruthfulQA's questions: every published form is read, checked and sampled."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import forty2
from forty2.benchmark import truthfulqa_questions as questions_module
from forty2.benchmark.truthfulqa_categories import GROUPS, ISOTOPES, MYTHS
from forty2.benchmark.truthfulqa_questions import (
    PROBE,
    UNCATEGORISED,
    Options,
    Question,
    Questions,
    load_questions,
    sample,
    without_categories,
)
from forty2.data.library import isotopes, rows
from forty2.errors import BenchmarkError

DATA = Path(
    os.environ.get("FORTY2_BENCH_DATA") or Path(forty2.__file__).parents[2] / "shared" / "data"
)
V0 = DATA / "truthfulqa" / "mc_task_v0_817.json"
needs_data = pytest.mark.skipif(
    not V0.exists(), reason=f"no TruthfulQA under {DATA}; set FORTY2_BENCH_DATA"
)


# --- question files ---


def write(folder: Path, value: Any, name: str = "mc_task.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def row(**fields: Any) -> dict[str, Any]:
    targets = {"Yes.": 0, "No.": 1}
    return {"question": "Is it?", "mc1_targets": targets, "mc2_targets": targets, **fields}


def write_csv(folder: Path, rows: list[dict[str, str]], name: str = "TruthfulQA_x.csv") -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


CSV_ROW = {
    "Category": "Law",
    "Question": "Is it? ",
    "Best Answer": "No",
    "Correct Answers": "No; Never. ; It is not;",
    "Incorrect Answers": "Yes;  Always ",
}


@needs_data
def test_v0_csv_and_json_hold_the_same_questions() -> None:
    """The authors made the JSON from the CSV; only their order differs."""
    from_json, from_csv = load_questions(V0), load_questions(V0.with_name("TruthfulQA_v0_817.csv"))
    by_text = [{item.question: item for item in q.items} for q in (from_json, from_csv)]
    assert by_text[0] == by_text[1]
    assert len(by_text[0]) == 817
    assert sum(len(item.mc1.choices) for item in from_json.items) == 4114
    assert sum(len(item.mc2.choices) for item in from_json.items) == 5882
    assert len({item.category for item in from_json.items}) == 38
    assert from_json.name == "TruthfulQA v0 (mc_task_v0_817.json)"
    assert from_json.sha256.startswith("6eb4125d")
    assert from_json.sha256.endswith("8954")


@needs_data
def test_2025_csv_and_json_agree_but_for_full_stops() -> None:
    from_json = load_questions(V0.with_name("mc_task_2025_790.json"))
    from_csv = load_questions(V0.with_name("TruthfulQA_2025_790.csv"))

    def closed(options: Options) -> Options:
        choices = (choice.strip() for choice in options.choices)
        return options._replace(choices=tuple(c if c.endswith(".") else f"{c}." for c in choices))

    assert from_csv.items == tuple(
        replace(item, mc1=closed(item.mc1), mc2=closed(item.mc2)) for item in from_json.items
    )
    assert len(from_csv.items) == 790
    assert len({item.category for item in from_json.items}) == 37
    assert "39 options without text dropped" in from_json.notes[0]
    assert not from_csv.notes


@needs_data
def test_the_binary_setting_is_read_from_the_files_of_2025_alone() -> None:
    """That of CSV and JSON are compared above."""
    items = load_questions(V0.with_name("mc_task_2025_790.json")).items
    assert all(item.binary is not None and {*item.binary.labels} == {0, 1} for item in items)
    assert all(item.binary is None for item in load_questions(V0).items)


@needs_data
def test_v0_true_answers_come_first_yet_not_always() -> None:
    """Why labels are read and places are not: two questions break the order."""
    items = load_questions(V0).items
    assert all(item.mc1.labels[0] == 1 and sum(item.mc1.labels) == 1 for item in items)
    unordered = [i for i, q in enumerate(items) if list(q.mc2.labels) != sorted(q.mc2.labels)[::-1]]
    assert unordered == [25, 208]


def test_csv_answers_are_split_stripped_and_closed(tmp_path: Path) -> None:
    loaded = load_questions(write_csv(tmp_path, [CSV_ROW]))
    assert loaded.items == (
        Question(
            "Is it?",
            "Law",
            Options(("No.", "Yes.", "Always."), (1, 0, 0)),
            Options(("No.", "Never.", "It is not.", "Yes.", "Always."), (1, 1, 1, 0, 0)),
        ),
    )


def test_a_csv_answer_listed_twice_is_resolved_as_the_authors_did(tmp_path: Path) -> None:
    """As in v0's "Unknown.", both true and false: first place, last label."""
    fields = {"Correct Answers": "No; Unknown; Never", "Incorrect Answers": "Yes; Unknown; Yes"}
    item = load_questions(write_csv(tmp_path, [CSV_ROW | fields])).items[0]
    assert item.mc2 == Options(("No.", "Unknown.", "Never.", "Yes."), (1, 0, 1, 0))


def test_categories_come_from_the_csv_that_knows_most_questions(tmp_path: Path) -> None:
    path = write(tmp_path, [row(), row(question="Was it?"), row(question="Will it?")])
    assert {item.category for item in load_questions(path).items} == {UNCATEGORISED}
    write_csv(tmp_path, [CSV_ROW | {"Category": "Wrong"}], "TruthfulQA_a.csv")
    write_csv(tmp_path, [CSV_ROW, CSV_ROW | {"Question": "Was it?"}], "TruthfulQA_b.csv")
    (tmp_path / "TruthfulQA_c.csv").write_bytes(b"\xff\xfe\x00")  # not ours to complain about
    categories = [item.category for item in load_questions(path).items]
    assert categories == ["Law", "Law", UNCATEGORISED]


def test_a_file_may_bring_its_own_categories(tmp_path: Path) -> None:
    path = write(tmp_path, [row(category="Own", id="x1")])
    assert load_questions(path).items[0].category == "Own"


def test_options_without_text_are_dropped_and_told(tmp_path: Path) -> None:
    targets = {"Yes.": 0, "": 0, "No.": 1}
    loaded = load_questions(write(tmp_path, [row(mc1_targets=targets)]))
    assert loaded.items[0].mc1.choices == ("Yes.", "No.")
    assert "1 options without text dropped" in loaded.notes[0]


def test_the_hub_form_of_targets_is_read(tmp_path: Path) -> None:
    targets = {"choices": ["Yes.", "No."], "labels": [0, 1]}
    item = load_questions(write(tmp_path, [row(mc1_targets=targets)])).items[0]
    assert item.mc1 == item.mc2 == Options(("Yes.", "No."), (0, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "not JSON"),
        ("{}", "not a list"),
        ("[]", "no questions"),
        ([1], "item 1: not an object"),
        ([row(), {"question": "x"}], "item 2: mc1_targets, mc2_targets missing"),
        ([row(question=" ")], "item 1: the question is empty"),
        ([row(question=3)], "item 1: the question is empty or no text"),
        ([row(mc1_targets=["No."])], "item 1, mc1_targets: not an object"),
        ([row(mc1_targets={"a": 0, "b": 0})], "item 1, mc1_targets: no true answer"),
        ([row(mc2_targets={"a": 1, "b": 1})], "item 1, mc2_targets: no false answer"),
        ([row(mc2_targets={"": 1, "b": 0})], "item 1, mc2_targets: no true answer"),
        ([row(mc1_targets={"a": 1, "b": 1, "c": 0})], "item 1, mc1_targets: 2 true answers"),
        ([row(mc1_targets={"a": 1, "b": 2})], "item 1, mc1_targets: 'b' is labelled 2"),
        ([row(mc1_targets={"a": True, "b": 0})], "item 1, mc1_targets: 'a' is labelled True"),
        ([row(mc1_targets={"a": "1", "b": 0})], "item 1, mc1_targets: 'a' is labelled '1'"),
        (
            '[{"question": "x", "mc1_targets": {"a": 1, "a": 0}, "mc2_targets": {}}]',
            "item 1, mc1_targets: 'a' is there twice",
        ),
        (
            [row(mc2_targets={"choices": ["a", "b", "a"], "labels": [1, 0, 0]})],
            "item 1, mc2_targets: 'a' is there twice",
        ),
        ([row(mc2_targets={"choices": ["a"], "labels": [1, 0]})], "differ in number"),
        ([row(mc2_targets={"choices": ["a", 2], "labels": [1, 0]})], "the option 2 is no text"),
    ],
)
def test_a_malformed_json_is_one_line_with_file_and_item(
    content: Any, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(BenchmarkError, match=message) as caught:
        load_questions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_malformed_csv_is_one_line_with_file_and_item(tmp_path: Path) -> None:
    renamed = {key.replace("Correct", "Right"): value for key, value in CSV_ROW.items()}
    with pytest.raises(BenchmarkError, match="wrong columns, Correct Answers"):
        load_questions(write_csv(tmp_path, [renamed]))
    header = write(tmp_path, "Category,Question,Best Answer\n", "empty.csv")
    with pytest.raises(BenchmarkError, match="holds no questions"):
        load_questions(header)
    with pytest.raises(BenchmarkError, match="item 2, mc1_targets: no false answer"):
        load_questions(write_csv(tmp_path, [CSV_ROW, CSV_ROW | {"Incorrect Answers": " ; "}]))
    with pytest.raises(BenchmarkError, match="item 1, mc1_targets: no true answer"):
        load_questions(write_csv(tmp_path, [CSV_ROW | {"Best Answer": ""}]))
    short = write(tmp_path, ",".join(CSV_ROW) + "\nLaw,Is it?\n", "short.csv")
    with pytest.raises(BenchmarkError, match="item 1, mc1_targets: no true answer"):
        load_questions(short)
    path = tmp_path / "bytes.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchmarkError, match="not readable as CSV"):
        load_questions(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"mc\.json: no such file; give"):
        load_questions(tmp_path / "mc.json")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        load_questions(tmp_path)


# --- the hub and the probe ---


@pytest.fixture
def unread_hub() -> Iterator[None]:
    """The hub was not asked in this process; nor will it have been, for the tests that follow."""
    questions_module._from_hub_or_probe.cache_clear()
    yield
    questions_module._from_hub_or_probe.cache_clear()


@pytest.mark.usefixtures("unread_hub")
def test_the_hub_rows_become_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {"choices": ["No.", "Yes."], "labels": [1, 0]}
    rows = [row(mc1_targets=targets, mc2_targets=targets)]
    monkeypatch.setattr(questions_module, "_hub_rows", lambda: rows)
    loaded = load_questions(None)
    assert loaded.items[0].mc1 == Options(("No.", "Yes."), (1, 0))
    assert "truthfulqa/truthful_qa" in loaded.name
    assert loaded.path is None
    assert len(loaded.sha256) == 64


@pytest.mark.usefixtures("unread_hub")
def test_without_the_hub_the_probe_says_what_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable() -> None:
        asked.append(1)
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(questions_module, "_hub_rows", unreachable)
    loaded = load_questions(None)
    assert loaded.name == PROBE == "forty2 probe (not TruthfulQA)"
    assert loaded.notes[0].endswith("no network")
    assert loaded.items == load_questions("probe").items
    assert load_questions(None) is loaded and asked == [1]  # a second wait would say the same


# --- samples ---


def categorised(**sizes: int) -> Questions:
    options = Options(("a", "b"), (1, 0))
    items = [
        Question(f"{name} {n}?", name, options, options)
        for name, size in sizes.items()
        for n in range(size)
    ]
    random.Random(1).shuffle(items)
    return Questions(tuple(items), "0" * 64, "ours", None)


def test_a_sample_is_stratified_by_largest_remainder() -> None:
    """10 of 60+30+10: shares 6, 3, 1. 7 of them: 4.2, 2.1, 0.7, and the 0.7 rounds up."""
    asked = categorised(a=60, b=30, c=10)
    for n, counts in ((10, (6, 3, 1)), (7, (4, 2, 1)), (100, (60, 30, 10))):
        drawn = [item.category for item in sample(asked, n, 0).items]
        assert tuple(drawn.count(name) for name in "abc") == counts


def test_a_sample_is_seeded_distinct_and_in_file_order() -> None:
    asked = categorised(a=20, b=20, c=21)
    one, again, other = (sample(asked, 17, seed).items for seed in (1, 1, 2))
    assert one == again != other
    places = [asked.items.index(item) for item in one]
    assert places == sorted(set(places))
    assert len(places) == 17
    assert sample(asked, 61, 5) == asked


@pytest.mark.parametrize("n", [-1, 0, 1, 62])
def test_a_sample_of_too_few_or_too_many_is_an_error(n: int) -> None:
    with pytest.raises(BenchmarkError, match=f"cannot sample {n} of 61"):
        sample(categorised(a=20, b=20, c=21), n, 0)


# --- categories left out ---


def test_what_is_practised_is_in_the_library() -> None:
    assert {*ISOTOPES.values()} <= {row["element"] for row in isotopes()}
    assert {*MYTHS.values()} <= {row["category"] for row in (*rows("myths_a"), *rows("myths_b"))}
    assert not ISOTOPES.keys() & MYTHS.keys()
    assert GROUPS["isotopes"] < GROUPS["practised"] == ISOTOPES.keys() | MYTHS.keys()


@needs_data
def test_the_groups_name_categories_of_the_published_files() -> None:
    old, new = (
        load_questions(V0.with_name(f"TruthfulQA_{name}.csv")) for name in ("v0_817", "2025_790")
    )
    there = {item.category for item in (*old.items, *new.items)}
    assert GROUPS["practised"] <= there
    left = [len(without_categories(new, [name]).items) for name in ("isotopes", "practised")]
    assert left == [402, 160]


def test_categories_are_left_out_in_file_order() -> None:
    asked = categorised(Law=3, Politics=2, Weather=2)
    assert without_categories(asked, []) is asked
    for names, kept in (
        (["Politics"], {"Law", "Weather"}),
        (["isotopes"], {"Politics", "Weather"}),
        (["practised"], {"Politics"}),
        (["isotopes", "Politics"], {"Weather"}),
    ):
        left = without_categories(asked, names)
        assert left.items == tuple(item for item in asked.items if item.category in kept)
        assert left.sha256 == asked.sha256


@pytest.mark.parametrize(
    ("sizes", "names", "message"),
    [
        (
            {"Law": 2},
            ["Lore"],
            "no questions of Lore to leave out; there are isotopes, practised, Law",
        ),
        ({"Politics": 2}, ["isotopes"], "no questions of isotopes to leave out"),
        ({"Law": 2}, ["practised"], "no questions are left"),
        ({UNCATEGORISED: 1, "Law": 1}, ["Law"], "without a category, so none can be left out"),
    ],
)
def test_what_cannot_be_left_out_is_named(
    sizes: dict[str, int], names: list[str], message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        without_categories(categorised(**sizes), names)
