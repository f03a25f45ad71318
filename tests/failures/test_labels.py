"""Labels: made without the held-out items, checked on them, and weak where they tell nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support.chat_server import Reply, said, server
from support.failure_folder import planted, write_folder

from forty2.errors import BenchmarkError, DataError, RunError
from forty2.failures import labels
from forty2.failures.asking import Limits
from forty2.failures.chat_models import ChatModel
from forty2.failures.clustering import cluster_items
from forty2.failures.labels import Sorter, is_held_out, label_clusters
from forty2.failures.scored import read_scored
from forty2.files import JsonObject


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


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


# --- a teacher ------------------------------------------------------------------------------------


def teacher_at(url: str) -> ChatModel:
    return ChatModel(name=url, model="m", tries=2, sleep=lambda _: None)


def named(label: object) -> Reply:
    return said(json.dumps({"label": label}))


def nearest(body: JsonObject) -> str:
    """The first text that a request wants a name for."""
    prompt: str = body["messages"][0]["content"]
    return prompt.partition("[Texts to be named]\n")[2].partition("\n")[0]


TOPICS = {
    "train": "journeys by train",
    "ingredients": "what to cook",
    "Python": "Python functions",
    "museums": "museums in a city",
}


def knows(_: int, body: JsonObject) -> Reply:
    text = nearest(body)
    return named(next(label for word, label in TOPICS.items() if word in text))


def test_a_teachers_names_are_checked_as_all_others(folder: Path) -> None:
    with server(knows) as (url, seen):
        made = label_clusters(folder, teacher_at(url))
        assert len(seen) == 4
        assert made["labels"][0]["label"] == "journeys by train"
        assert {label["label"] for label in made["labels"]} == {*TOPICS.values()}
        assert not any(label["weak"] for label in made["labels"])
        assert (made["source"], made["teacher_model"]) == (url, "m")
        assert made["requests"] == {"sent": 4, "failed": 0, "unreadable": 0}
        assert json.loads((folder / "labels.json").read_bytes()) == made
        assert not (folder / "labels.json.part").exists()
        assert label_clusters(folder, teacher_at(url)) == made and len(seen) == 4
    assert label_clusters(folder)["source"] == "terms", "the teacher's are replaced"


def test_a_teacher_sees_no_held_out_item(folder: Path) -> None:
    held_out = {item.text for item in read_scored(folder).items if is_held_out(item)}
    with server(knows) as (url, seen):
        label_clusters(folder, teacher_at(url))
    assert held_out
    for body in seen:
        prompt = body["messages"][0]["content"]
        assert not any(json.dumps(text)[1:-1] in prompt for text in held_out)
        _, inside, outside = re.split(r"\[Texts to be named\]|\[Other texts\]", prompt)
        assert outside.count("?") + outside.count(".") > 0 and inside.strip()


def test_a_stopped_teacher_is_asked_for_the_rest_alone(folder: Path) -> None:
    def dies(number: int, body: JsonObject) -> Reply:
        return (401, {"error": "who?"}, {}) if number > 2 else knows(number, body)

    limits = Limits(at_once=1)
    with server(dies) as (url, seen), pytest.raises(BenchmarkError, match="`teacher_model`"):
        label_clusters(folder, teacher_at(url), limits=limits)
    journal = folder / "labels.json.part"
    assert journal.read_bytes().count(b"\n") == 3
    with server(knows) as (after, again):
        journal.write_bytes(journal.read_bytes().replace(url.encode(), after.encode()))
        made = label_clusters(folder, teacher_at(after), limits=limits)
    assert len(again) == 2 and made["requests"]["sent"] == 4
    assert [nearest(body) for body in seen[2:]] == [nearest(again[0])]


def test_a_budget_that_ends_stops_the_labels_and_with_a_larger_one_they_go_on(folder: Path) -> None:
    with server(knows) as (url, seen):
        with pytest.raises(RunError, match=r"has ended, after [1-3] of 4 labels"):
            label_clusters(folder, teacher_at(url), limits=Limits(at_once=1, tokens=3500))
        assert 0 < len(seen) < 4 and not (folder / "labels.json").exists()
        made = label_clusters(folder, teacher_at(url), limits=Limits(at_once=1))
    assert len(seen) == 4 and not any(label["weak"] for label in made["labels"])


def test_nonsense_names_nothing_and_is_asked_for_again(folder: Path) -> None:
    odd = [
        said("Trains, I think."),
        said('{"label": ""}'),
        said('{"label": "x", "why": "y"}'),
        (200, b"<html>", {}),
        (400, {"error": "too long"}, {}),
        named(7),
    ]

    def nonsense(number: int, body: JsonObject) -> Reply:
        return knows(number, body) if number == 1 else odd[number % len(odd)]

    with server(nonsense) as (url, seen):
        made = label_clusters(folder, teacher_at(url), limits=Limits(at_once=1))
    assert [bool(label["label"]) for label in made["labels"]] == [True, False, False, False]
    assert all(label["weak"] for label in made["labels"][1:])
    requests = made["requests"]
    assert requests["sent"] == 1 + 3 * 3
    assert requests["failed"] + requests["unreadable"] == 9 and requests["failed"] > 0
    assert len(seen) >= 10


@pytest.mark.parametrize("text", ["Questions.", "A <b>label</b>", "\x1b[31m red"])
def test_labels_that_say_the_same_of_all_are_weak(folder: Path, text: str) -> None:
    with server(lambda *_: named(text)) as (url, _):
        made = label_clusters(folder, teacher_at(url))
    assert len(made["labels"]) == 4 and all(label["weak"] for label in made["labels"])
    assert made["sentence"].startswith("0 of 4")


def test_labels_of_other_clusters_are_weak(folder: Path) -> None:
    """A label must fit its own cluster: the same labels, each moved on by one, sort wrongly."""
    moved = dict(zip(TOPICS, [*list(TOPICS.values())[1:], "journeys by train"], strict=True))

    def wrong(_: int, body: JsonObject) -> Reply:
        return named(next(label for word, label in moved.items() if word in nearest(body)))

    with server(wrong) as (url, _):
        made = label_clusters(folder, teacher_at(url))
    assert all(label["weak"] for label in made["labels"])


def test_long_labels_are_one_line_of_at_most_200_characters(folder: Path) -> None:
    with server(lambda *_: named("a\nb\t" * 400)) as (url, _):
        made = label_clusters(folder, teacher_at(url))
    assert {len(label["label"]) for label in made["labels"]} == {200}
    assert made["labels"][0]["label"].startswith("a b a b")


# --- the check ------------------------------------------------------------------------------------


def sorted_by(monkeypatch: pytest.MonkeyPatch, sort: Sorter) -> None:
    monkeypatch.setattr(labels, "_embedding_sorter", lambda *_: sort)


def test_a_label_that_draws_everything_is_right_in_half_of_the_cases(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_by(monkeypatch, lambda _, items: [0] * len(items))
    first = label_clusters(folder)["labels"][0]
    assert first["right"] * 2 == first["sorted"] and first["weak"]


def test_a_sorter_that_knows_makes_a_label_strong_by_the_binomial(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = {
        row["id"]: row["cluster"]
        for row in map(json.loads, (folder / "cluster_items.jsonl").read_text().splitlines())
    }
    sorted_by(monkeypatch, lambda _, items: [clusters[item.id] - 1 for item in items])
    made = label_clusters(folder)
    for label in made["labels"]:
        assert label["right"] == label["sorted"]
        assert label["p"] == pytest.approx(0.5 ** label["sorted"])


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
