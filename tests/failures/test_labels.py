"""Labels: made without the held-out items, checked on them, and weak where they tell nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.failure_folder import planted, write_folder

from forty2.errors import DataError
from forty2.failures.clustering import cluster_items
from forty2.failures.labels import Contrast, is_held_out, label_by_terms, label_clusters
from forty2.failures.scored import ScoredItem, read_scored


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("labels") / "F", planted(40))
    assert cluster_items(folder, k=4)["stable"]
    return folder


@pytest.fixture
def folder(clustered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clustered, tmp_path / "F"))


def test_terms_name_each_topic_and_sort_its_held_out_items(folder: Path) -> None:
    made = label_clusters(folder)
    assert json.loads((folder / "labels.json").read_bytes()) == made
    assert [label["cluster"] for label in made["labels"]] == [1, 2, 3, 4]
    assert "train" in made["labels"][0]["label"]
    for label in made["labels"]:
        assert not label["weak"] and label["p_holm"] < 0.05
        assert label["right"] / label["sorted"] > 0.7
    assert made["sentence"] == "4 of 4 labels sort held-out items above chance."


def test_a_labeller_sees_no_held_out_item(folder: Path) -> None:
    held_out = {item.text for item in read_scored(folder).items if is_held_out(item)}
    seen: list[Contrast] = []

    def teacher(contrast: Contrast) -> str:
        seen.append(contrast)
        return label_by_terms(contrast)

    made = label_clusters(folder, labeller=teacher, source="teacher")
    assert held_out and len(seen) == 4 and made["source"] == "teacher"
    for contrast in seen:
        assert not held_out & {*contrast.inside, *contrast.outside}
        assert 0 < len(contrast.outside) <= len(contrast.inside)


@pytest.mark.parametrize("text", ["", "Questions.", "A <b>label</b>"])
def test_labels_that_say_the_same_of_all_are_weak(folder: Path, text: str) -> None:
    made = label_clusters(folder, labeller=lambda _: text)
    assert len(made["labels"]) == 4 and all(label["weak"] for label in made["labels"])
    assert made["sentence"].startswith("0 of 4")


def test_labels_of_other_clusters_are_weak(folder: Path) -> None:
    """A label must fit its own cluster: the same labels, each moved on by one, sort wrongly."""
    right: dict[int, str] = {}

    def record(contrast: Contrast) -> str:
        right[contrast.cluster] = label_by_terms(contrast)
        return right[contrast.cluster]

    label_clusters(folder, labeller=record)
    made = label_clusters(folder, labeller=lambda contrast: right[contrast.cluster % 4 + 1])
    assert all(label["weak"] for label in made["labels"])


def test_a_label_that_draws_everything_is_right_in_half_of_the_cases(folder: Path) -> None:
    def greedy(labels: Sequence[str], items: Sequence[ScoredItem]) -> list[int]:
        return [0] * len(items)

    first = label_clusters(folder, sorter=greedy)["labels"][0]
    assert first["right"] * 2 == first["sorted"] and first["weak"]


def test_a_sorter_that_knows_makes_a_label_strong_by_the_binomial(folder: Path) -> None:
    clusters = {
        row["id"]: row["cluster"]
        for row in map(json.loads, (folder / "cluster_items.jsonl").read_text().splitlines())
    }
    made = label_clusters(folder, sorter=lambda _, items: [clusters[item.id] - 1 for item in items])
    for label in made["labels"]:
        assert label["right"] == label["sorted"]
        assert label["p"] == pytest.approx(0.5 ** label["sorted"])


def test_long_labels_are_one_line_of_at_most_200_characters(folder: Path) -> None:
    made = label_clusters(folder, labeller=lambda _: "a\nb\t" * 400)
    assert {len(label["label"]) for label in made["labels"]} == {200}
    assert made["labels"][0]["label"].startswith("a b a b")


def test_unstable_clusters_get_no_names(folder: Path) -> None:
    path = folder / "clusters.json"
    record = json.loads(path.read_bytes())
    record["clusters"][1]["stable"] = False
    path.write_text(json.dumps(record), "utf-8")
    assert [label["cluster"] for label in label_clusters(folder)["labels"]] == [1, 3, 4]
    path.write_text(json.dumps({**record, "stable": False}), "utf-8")
    made = label_clusters(folder)
    assert made["labels"] == [] and made["sentence"].startswith("No stable clusters")


def test_clusters_of_other_items_are_refused(folder: Path) -> None:
    lines = (folder / "verdicts.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "verdicts.jsonl").write_text("".join(lines[1:]), "utf-8")
    with pytest.raises(DataError, match="of other items than those with a verdict now"):
        label_clusters(folder)
