"""Clusters of scored items: the topic that fails is found, and bad folders are one line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.failure_folder import Planted, planted, topic_text, write_folder

from forty2.errors import DataError
from forty2.failures.clustering import cluster_items, read_cluster_items, read_clusters
from forty2.failures.stored_embeddings import read_vectors
from forty2.inference.embedding import Embedder

Made = tuple[Path, dict[str, Any]]
ROWS = [
    *planted(30),
    *(Planted(f"secret-{n}", "trains", "Untouched?", half="untouched") for n in range(9)),
    Planted("none", "empty", "Nobody could judge this.", "unscored"),
]
"""Four topics, an untouched half and an item that nobody could judge."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = write_folder(tmp_path_factory.mktemp("failures") / "F", ROWS)
    return folder, cluster_items(folder, k=4)


def topic_of(record: dict[str, Any], number: int) -> set[str]:
    return {name.split("-")[0] for name in record["clusters"][number]["nearest"]}


def test_the_topic_that_fails_is_the_first_cluster_and_the_only_worse_one(made: Made) -> None:
    record = made[1]
    first, *others = record["clusters"]
    assert topic_of(record, 0) == {"trains"} and first["worse"]
    assert first["p_holm"] < 0.001 and first["interval"][0] > first["rest_rate"]
    assert not any(cluster["worse"] for cluster in others)
    assert record["sentence"] == "1 of 4 clusters fails more often than the rest."
    assert {"train", "travels", "km"} & {word for t in first["terms"] for word in t["term"].split()}


def test_counts_add_up_and_clusters_are_numbered_by_rate(made: Made) -> None:
    folder, record = made
    clusters = record["clusters"]
    assert sum(c["size"] for c in clusters) == record["items"] == 120
    assert sum(c["failures"] for c in clusters) == record["failures"]
    assert [c["rate"] for c in clusters] == sorted((c["rate"] for c in clusters), reverse=True)
    stored = read_cluster_items(folder)
    for cluster in clusters:
        members = [name for name, number in stored.items() if number == cluster["cluster"]]
        assert len(members) == cluster["size"] and set(cluster["nearest"]) <= set(members)


def test_p_is_fishers_by_hand(tmp_path: Path) -> None:
    """Of 6 items three fail, all of one cluster of three: 2 / C(6, 3) two-sided."""
    rows = [
        Planted(f"{topic}{n}", topic, topic_text(topic, random.Random(n)), verdict)
        for topic, verdict in (("trains", "fail"), ("cooking", "pass"))
        for n in range(3)
    ]
    record = cluster_items(write_folder(tmp_path, rows), k=2)
    assert [c["failures"] for c in record["clusters"]] == [3, 0]
    assert [c["p"] for c in record["clusters"]] == pytest.approx([0.1, 0.1])
    assert [c["p_holm"] for c in record["clusters"]] == pytest.approx([0.2, 0.2])


def test_the_untouched_half_is_nowhere(made: Made) -> None:
    folder, record = made
    assert not [name for name in read_vectors(folder) if name.startswith("secret")]
    for file in folder.glob("cluster*"):
        assert "secret" not in file.read_text("utf-8")
    assert record["strata"][3] == {
        "name": "empty",
        "passed": 0,
        "failed": 0,
        "unscored": 1,
        "interval": None,
    }


def test_the_order_of_rows_changes_no_byte(made: Made, tmp_path: Path) -> None:
    rows = random.Random(3).sample(ROWS, len(ROWS))
    folder = write_folder(tmp_path / "F", rows)
    verdicts = folder / "verdicts.jsonl"
    lines = verdicts.read_text("utf-8").splitlines(keepends=True)
    verdicts.write_text("".join(reversed(lines)), "utf-8")
    cluster_items(folder, k=4)
    for file in made[0].iterdir():
        if file.stem not in ("testset", "verdicts"):
            assert (folder / file.name).read_bytes() == file.read_bytes(), file.name


def test_embeddings_are_made_again_only_for_other_texts(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "F"
    shutil.copytree(made[0], folder)
    calls: list[int] = []
    inner = Embedder.embed

    def counted(self: Embedder, texts: Any, *rest: Any) -> Any:
        calls.append(len(texts))
        return inner(self, texts, *rest)

    monkeypatch.setattr(Embedder, "embed", counted)
    cluster_items(folder, k=3)
    assert calls == []
    array = folder / "embeddings.npy"
    array.write_bytes(array.read_bytes()[:-1])
    cluster_items(folder, k=3)
    write_folder(folder, [row._replace(text=row.text.replace("famous", "old")) for row in ROWS])
    cluster_items(folder, k=3)
    assert calls == [120, 120]
    assert np.array_equal(read_vectors(folder)["code-000"], read_vectors(made[0])["code-000"])


def test_k_can_be_chosen_by_silhouette(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "F"
    shutil.copytree(made[0], folder)
    record = cluster_items(folder, k="auto")
    silhouettes = record["silhouettes"]
    assert record["k_asked"] == "auto" and len(silhouettes) == 19
    assert silhouettes[str(record["k"])] == max(silhouettes.values())
    assert len(record["clusters"]) == record["k"]


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [("pass", "None of 24 items failed: no"), ("fail", "All 24 items failed: no")],
)
def test_verdicts_that_are_all_the_same_make_no_cluster_worse(
    tmp_path: Path, verdict: str, sentence: str
) -> None:
    rows = [row._replace(verdict=verdict) for row in planted(6)]
    record = cluster_items(write_folder(tmp_path, rows), k=3)
    assert record["sentence"].startswith(sentence)
    assert {c["p"] for c in record["clusters"]} == {1.0}
    assert not any(c["worse"] for c in record["clusters"])


def test_texts_without_groups_have_no_stable_clusters(tmp_path: Path) -> None:
    rng = random.Random(4)
    words = [
        "river",
        "lamp",
        "seven",
        "cloud",
        "paper",
        "stone",
        "green",
        "music",
        "winter",
        "glass",
        "table",
        "horse",
    ]
    rows = [
        Planted(
            f"{n:03d}", "other", " ".join(rng.choices(words, k=8)), rng.choice(["pass", "fail"])
        )
        for n in range(90)
    ]
    record = cluster_items(write_folder(tmp_path, rows), k=10)
    assert not record["stable"] and record["sentence"].startswith("No stable clusters")
    assert not any(c["stable"] or c["worse"] for c in record["clusters"])


Change = Callable[[list[Planted]], list[Planted]]
BAD: dict[str, tuple[Change, str]] = {
    "fewer items than k": (lambda rows: rows[:7], r"holds 7 items .* 10 clusters needs 10 or more"),
    "identical texts": (
        lambda rows: [row._replace(text="Again.") for row in rows],
        "holds 1 different texts among the scored items",
    ),
    "nothing scored": (
        lambda rows: [row._replace(verdict="unscored") for row in rows],
        "holds 0 items with a verdict",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_too_little_to_cluster_is_one_line(tmp_path: Path, change: Change, message: str) -> None:
    folder = write_folder(tmp_path, change(planted(5)))
    with pytest.raises(DataError, match=message) as caught:
        cluster_items(folder)
    assert "\n" not in str(caught.value) and "`k`" in str(caught.value)
    assert not (folder / "clusters.json").exists()


def test_empty_texts_and_other_scripts_are_clustered(tmp_path: Path) -> None:
    texts = [
        "",
        " ",
        "法国的首都是哪里？",
        "中国的首都是哪里？",
        "Где живёт медведь?",
        "🗼",
        "?",
        "\u0000x",
    ]
    rows = [Planted(f"{n}", "other", text, "fail") for n, text in enumerate(texts)]
    folder = write_folder(tmp_path, rows)
    assert sum(c["size"] for c in cluster_items(folder, k=2)["clusters"]) == len(texts)


def test_a_folder_without_clusters_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make it with forty2 failures cluster"):
        read_clusters(tmp_path)
    (tmp_path / "clusters.json").write_text(json.dumps({"clusters": 3}), "utf-8")
    with pytest.raises(DataError, match="holds no clusters"):
        read_clusters(tmp_path)
    with pytest.raises(DataError, match=r"cluster_items\.jsonl: not readable"):
        read_cluster_items(tmp_path)
