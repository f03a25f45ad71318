"""Labels of clusters, from the contrast with the nearest items outside, each of them checked.

A label is made from three quarters of the items. Then the others are sorted by the labels alone: of
members that the label was not made from, and as many of the nearest outside, how many are put on
the right side? A label that does not beat chance is marked weak.

Labels come from `label_by_terms`, or from any other function that turns a `Contrast` into a text,
such as a teacher model; who sorts is a function, too.

    labels.json   each stable cluster's label, who made it, and how well it sorted
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forty2.benchmark.stats import holm
from forty2.errors import DataError
from forty2.failures.clustering import (
    CLUSTERS,
    CONTRASTED,
    LEVEL,
    by_nearness,
    read_cluster_items,
    read_clusters,
)
from forty2.failures.folder import Item
from forty2.failures.kmeans import need_scikit_learn
from forty2.failures.scored import ScoredItem, read_scored
from forty2.failures.stored_embeddings import read_vectors
from forty2.failures.terms import distinctive
from forty2.files import JsonObject, file_sha256, write_json
from forty2.inference.embedding import load_embedder

LABELS = "labels.json"
SORTED = 100
"""Most held-out members that a label sorts, and as many items outside."""
LONGEST = 200
"""Characters of a label; a longer one is cut."""
_TERMS = 4


class Contrast(NamedTuple):
    """What a label is made from."""

    cluster: int
    inside: list[str]
    """Texts of members, the nearest to the centre first; none is held out."""
    outside: list[str]
    """Texts of the nearest items outside, as many; none is held out."""


Labeller = Callable[[Contrast], str]
"""Makes a cluster's label; "" if it finds none."""
Sorter = Callable[[Sequence[str], Sequence[ScoredItem]], Sequence[int]]
"""Returns for each item the place of the label that it belongs to, told by the labels alone."""


class _Groups(NamedTuple):
    """The items of one cluster, and the nearest outside, the nearest to the centre first."""

    inside: list[ScoredItem]
    outside: list[ScoredItem]


def label_clusters(
    folder: Path,
    *,
    labeller: Labeller | None = None,
    source: str = "terms",
    sorter: Sorter | None = None,
) -> JsonObject:
    """Label the stable clusters of a folder, check the labels, and write labels.json.

    Args:
        labeller: makes a label; None: `label_by_terms`.
        source: who that is, for the record.
        sorter: sorts held-out items by the labels; None: by the embeddings of label and item.

    Returns:
        What labels.json holds; without labels if the clusters are not stable.

    Raises:
        DataError: there are no clusters, or they are of other items.
        ModelError: the embedding model cannot be loaded.
    """
    need_scikit_learn()
    record = read_clusters(folder)
    labels: list[JsonObject] = []
    sentence = "No stable clusters, so there are no names."
    if record["stable"]:
        groups = _groups(folder, record)
        make = labeller or label_by_terms
        texts = [_one_line(make(_contrast(n, group))) for n, group in enumerate(groups, 1)]
        checks = _check(texts, groups, sorter or _embedding_sorter(folder, record["model"]))
        for cluster, text, check in zip(record["clusters"], texts, checks, strict=True):
            if cluster["stable"]:
                labels.append({"cluster": cluster["cluster"], "label": text, **check})
        weak = sum(label["weak"] for label in labels)
        sentence = f"{len(labels) - weak} of {len(labels)} labels sort held-out items above chance."
    made = {
        "sentence": sentence,
        "source": source,
        "clusters_sha256": file_sha256(folder / CLUSTERS),
        "labels": labels,
    }
    write_json(folder / LABELS, made)
    return made


def label_by_terms(contrast: Contrast) -> str:
    """Join the terms that most set the texts inside apart; # stands for any number."""
    terms = distinctive(contrast.inside, contrast.outside, most=_TERMS)
    return ", ".join(term.term for term in terms)


def is_held_out(item: ScoredItem | Item) -> bool:
    """Return whether an item is kept from labellers: a quarter is, by the hash of its group.

    So no labeller sees an item that nearly repeats a held-out one.
    """
    return hashlib.sha256(str(item.group).encode()).digest()[0] % 4 == 0


def _groups(folder: Path, record: JsonObject) -> list[_Groups]:
    """Return the items of each cluster and those outside."""
    items = read_scored(folder).items
    clusters, stored = read_cluster_items(folder), read_vectors(folder)
    if {item.id for item in items} != clusters.keys() or clusters.keys() != stored.keys():
        raise DataError(
            f"{folder / CLUSTERS}: is of other items than those with a verdict now; "
            f"run forty2 failures cluster {folder} again"
        )
    vectors = np.stack([stored[item.id] for item in items])
    labels = np.array([clusters[item.id] for item in items])
    groups = []
    for cluster in record["clusters"]:
        members = labels == cluster["cluster"]
        order = by_nearness(vectors, vectors[members].mean(axis=0))
        inside = [items[place] for place in order[members[order]]]
        outside = [items[place] for place in order[~members[order]]]
        groups.append(_Groups(inside, outside))
    return groups


def _contrast(cluster: int, group: _Groups) -> Contrast:
    inside = [item.text for item in group.inside if not is_held_out(item)][:CONTRASTED]
    outside = [item.text for item in group.outside if not is_held_out(item)]
    return Contrast(cluster, inside, outside[: len(inside)])


def _check(labels: Sequence[str], groups: Sequence[_Groups], sort: Sorter) -> list[JsonObject]:
    """Sort held-out items by the labels, and test each label by the exact binomial at 1/2.

    Members and items outside are equal in number, so a label that draws everything to itself, or
    nothing, is right in half of the cases.
    """
    from scipy.stats import binomtest

    counts = []
    for n, group in enumerate(groups):
        inside = [item for item in group.inside if is_held_out(item)][:SORTED]
        outside = [item for item in group.outside if is_held_out(item)][: len(inside)]
        inside = inside[: len(outside)]
        if not labels[n] or not inside:
            counts.append((0, 0))
            continue
        places = list(sort(labels, [*inside, *outside]))
        right = sum(place == n for place in places[: len(inside)])
        right += sum(place != n for place in places[len(inside) :])
        counts.append((right, len(places)))
    ps = [
        float(binomtest(right, n, 0.5, alternative="greater").pvalue) if n else 1.0
        for right, n in counts
    ]
    return [
        {"sorted": n, "right": right, "p": p, "p_holm": corrected, "weak": corrected >= LEVEL}
        for (right, n), p, corrected in zip(counts, ps, holm(ps), strict=True)
    ]


def _embedding_sorter(folder: Path, model: str) -> Sorter:
    """Return a sorter that takes the label whose embedding is nearest to the item's."""
    embedder, vectors = load_embedder(model), read_vectors(folder)

    def sort(labels: Sequence[str], items: Sequence[ScoredItem]) -> list[int]:
        scores = np.stack([vectors[item.id] for item in items]) @ embedder.embed(labels).T
        scores[:, [not label for label in labels]] = -np.inf
        places: list[int] = scores.argmax(axis=1).tolist()
        return places

    return sort


def _one_line(label: str) -> str:
    return " ".join(label.split())[:LONGEST]
