"""Test sets: strata, no question twice or in training data, halves that share no twins, seeded."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from forty2.errors import DataError, RunError
from forty2.failures.builtin.made import WORDS
from forty2.failures.folder import HALVES, Item, read_half
from forty2.failures.testset import STRATA, TestsetSettings, make_testset, question_text
from forty2.files import JsonObject


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def row(question: str, answer: str = "yes", **keys: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **keys}


def made(folder: Path, **settings: Any) -> tuple[JsonObject, dict[str, list[Item]]]:
    about = make_testset(folder, TestsetSettings(**settings))
    return about, {half: read_half(folder, half) for half in HALVES}


def questions(halves: dict[str, list[Item]]) -> set[str]:
    return {question_text(item.messages) for half in halves.values() for item in half}


def test_the_strata_have_the_seeds_proportions_and_both_halves_the_same(tmp_path: Path) -> None:
    about, halves = made(tmp_path / "F", size=100)
    assert {name: part["items"] for name, part in about["strata"].items()} == {
        name: count // 500 for name, count in STRATA.items()
    }
    for part in about["strata"].values():
        assert abs(part["find"] - part["untouched"]) <= 1
    assert len(halves["find"]) == len(halves["untouched"]) == 50
    assert len({item.id for half in halves.values() for item in half}) == 100
    assert all(item.verifier is not None for item in halves["find"])


def test_the_same_seed_makes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made(tmp_path / name, size=60, seed=seed)
    a, b, c = ((tmp_path / name / "testset.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    assert (tmp_path / "a/testset.json").read_bytes() == (tmp_path / "b/testset.json").read_bytes()


@pytest.mark.parametrize("place", [".", "..", "/", "file", "/dev/null"])
def test_a_place_that_is_no_folder_of_its_own_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine", "utf-8")
    with pytest.raises(RunError, match=f"^{place}: .*name a (new )?folder"):
        make_testset(place, TestsetSettings(size=10))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_questions_in_training_data_are_left_out_however_they_are_in_it(tmp_path: Path) -> None:
    rng = Random(1)
    asked = [f"Which {' '.join(rng.sample(WORDS, 18))} was founded first?" for _ in range(40)]
    source = write(tmp_path / "own.jsonl", [row(text) for text in asked])
    trained = [row(asked[0]), row(f"Please tell me. {asked[1]}")]  # the prompt, and within another
    words = asked[2].split()
    trained.append(row("Something else.", f"As one knows, {' '.join(words[2:16])}, and so on."))
    trained.append(row(asked[3].replace("founded", "settled")))  # nearly alike
    data = write(tmp_path / "train.jsonl", [*trained, row("Nothing of the kind?")])
    about, halves = made(
        tmp_path / "F", sources=[source], strata={"other": 40}, disjoint_from=[data]
    )
    assert questions(halves) & {*asked[:4]} == set()
    (searched,) = about["dropped"]["in_training_data"]
    assert searched["rows"] == 5 and sum(searched["dropped"].values()) >= 4
    assert searched["dropped"]["prompt"] >= 2 and len(searched["sha256"]) == 64
    assert about["strata"]["other"]["items"] < 40


def test_what_was_dropped_is_drawn_again(tmp_path: Path) -> None:
    _, first = made(tmp_path / "first", size=60)
    taken = [row(text) for text in questions(first)]
    data = write(tmp_path / "train.jsonl", taken)
    about, second = made(tmp_path / "second", size=60, disjoint_from=[data])
    assert about["items"] == 60 and not questions(first) & questions(second)


def test_duplicates_go_and_twins_stay_in_one_half(tmp_path: Path) -> None:
    rows = []
    for n in range(60):
        text = (
            f"In year {n * 7} the {n} ships of fleet {n * 3} left harbour {n * 11} with {n * 5} crates of "
            f"tea and {n * 13} of salt. Who counted the crates of fleet {n * 3} before they left?"
        )
        rows.append(row(text))
        rows.append(row(text.upper()))  # the same but for case
        rows.append(row(text.replace("before they left", "at noon")))  # nearly the same, or a twin
    source = write(tmp_path / "own.jsonl", rows)
    about, halves = made(tmp_path / "F", sources=[source], strata={"other": 180})
    assert about["dropped"]["duplicates"]["other"] == 60
    groups = {half: {item.group for item in items} for half, items in halves.items()}
    assert not groups["find"] & groups["untouched"]
    fleets = {
        half: {question_text(item.messages).split()[8] for item in items}
        for half, items in halves.items()
    }
    assert not fleets["find"] & fleets["untouched"], "twins are on one side"


def test_system_messages_do_not_make_questions_alike_or_different(tmp_path: Path) -> None:
    system = {
        "role": "system",
        "content": " ".join(f"Tool number {n} does nothing." for n in range(60)),
    }
    asked = [
        "Is it raining in Oslo now?",
        "Who wrote this letter to Ann?",
        "Count the red boats there.",
    ]
    rows = [{"messages": [system, {"role": "user", "content": text}]} for text in asked]
    rows.append({"messages": [{"role": "user", "content": asked[0]}]})
    source = write(tmp_path / "own.jsonl", rows)
    about, halves = made(tmp_path / "F", sources=[source], strata={"other": 4})
    assert questions(halves) == {*asked} and about["dropped"]["duplicates"] == {"other": 1}


def test_strata_of_ones_own_and_one_that_lacks_items(tmp_path: Path) -> None:
    rows = [row(f"Paragraph {n}: what does it forbid?", stratum="law") for n in range(30)]
    rows += [row("Only one about tax?", stratum="tax"), row("None of these?")]
    source = write(tmp_path / "own.jsonl", rows)
    strata = {"law": 10, "tax": 5, "sport": 3}
    about, halves = made(tmp_path / "F", sources=[source], strata=strata)
    assert {name: part["items"] for name, part in about["strata"].items()} == {
        "law": 10,
        "tax": 1,
        "sport": 0,
    }
    assert {item.stratum for half in halves.values() for item in half} == {"law", "tax"}
    assert about["sources"][0]["strata"] == {"law": 30, "other": 1, "tax": 1}


def test_a_stratum_is_drawn_from_all_its_sources_in_turn(tmp_path: Path) -> None:
    rows = [row(f"My question about topic {n}?", stratum="code") for n in range(50)]
    source = write(tmp_path / "own.jsonl", rows)
    _, halves = made(tmp_path / "F", sources=[source, "builtin"], strata={"code": 40})
    own = sum(item.source.startswith(source) for half in halves.values() for item in half)
    assert own == 20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": 1}, "two items or more"),
        ({"strata": {"law": -1}}, "NAME=COUNT"),
        ({"strata": {}, "size": 10}, "two items or more"),
        ({"strata": {"law": 0, "tax": 0}, "size": 10}, "two items or more"),
        ({"strata": {"law": 10}}, "0 questions are left"),
        ({"size": 10, "sources": ["none.jsonl"]}, "none.jsonl: cannot be read"),
        ({"size": 10, "disjoint_from": ["none.jsonl"]}, "none.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        make_testset(tmp_path / "F", TestsetSettings(**settings))
    assert not (tmp_path / "F").exists()


def test_a_test_set_is_not_replaced(tmp_path: Path) -> None:
    made(tmp_path / "F", size=10)
    with pytest.raises(DataError, match="exists already"):
        make_testset(tmp_path / "F", TestsetSettings(size=10))


@pytest.mark.slow
def test_fifty_thousand_items_without_a_file(tmp_path: Path) -> None:
    about, _ = made(tmp_path / "F")
    assert {name: part["items"] for name, part in about["strata"].items()} == STRATA


@pytest.mark.parametrize("size", [2, 3])
def test_a_size_below_the_number_of_strata_leaves_some_empty(tmp_path: Path, size: int) -> None:
    about, halves = made(tmp_path / "F", size=size)
    assert about["items"] == size and all(halves.values())
    counts = [part["items"] for part in about["strata"].values()]
    assert sorted(counts) == [0] * (5 - size) + [1] * size
