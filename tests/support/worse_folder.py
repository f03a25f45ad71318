"""Folders of the failure loop with clusters and labels that are written down, without embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from forty2.failures.folder import Item, read_half
from forty2.failures.testset import TestsetSettings, make_testset
from forty2.files import file_sha256
from support.failure_folder import Planted, write_folder, write_verdicts

LABEL = "journeys by train"


def builtin_folder(
    folder: Path,
    fails: Callable[[Item], bool],
    cluster: Callable[[Item], int],
    *,
    strata: dict[str, int],
    worse: Sequence[int] = (1,),
    sources: Sequence[str] = ("builtin",),
) -> Path:
    """Write a test set of built-in and other questions, with verdicts and clusters."""
    make_testset(folder, TestsetSettings(strata=strata, sources=sources))
    half = read_half(folder, "find")
    write_verdicts(folder, {item.id: "fail" if fails(item) else "pass" for item in half})
    write_clusters(folder, {item.id: cluster(item) for item in half}, worse)
    return folder


def planted_folder(folder: Path, rows: Sequence[Planted], weak: bool = False) -> Path:
    """Write items of planted topics; those of trains are cluster 1, which is worse and has a label."""
    write_folder(folder, rows)
    own = [row for row in rows if row.half == "find" and row.verdict in ("pass", "fail")]
    write_clusters(folder, {row.id: 1 if row.stratum == "trains" else 2 for row in own}, (1,))
    write_labels(folder, LABEL, weak=weak)
    return folder


def write_clusters(folder: Path, clusters: dict[str, int], worse: Sequence[int]) -> None:
    """Write the clusters of all scored items."""
    rows = [json.dumps({"id": name, "cluster": n, "x": 0, "y": 0}) for name, n in clusters.items()]
    (folder / "cluster_items.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    numbers = sorted({*clusters.values()})
    record = {
        "sentence": f"{len(worse)} of {len(numbers)} clusters fail more often than the rest.",
        "stable": True,
        "clusters": [{"cluster": n, "stable": True, "worse": n in worse} for n in numbers],
    }
    (folder / "clusters.json").write_text(json.dumps(record), "utf-8")


def write_labels(folder: Path, label: str, *, weak: bool = False) -> None:
    """Write a label of cluster 1."""
    record = {
        "source": "terms",
        "clusters_sha256": file_sha256(folder / "clusters.json"),
        "labels": [{"cluster": 1, "label": label, "weak": weak}],
    }
    (folder / "labels.json").write_text(json.dumps(record), "utf-8")
