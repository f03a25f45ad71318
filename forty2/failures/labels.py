"""Labels of clusters, from the contrast with the nearest items outside, each of them checked.

A label is made from three quarters of the items. Then the others are sorted by the labels alone: of
members that the label was not made from, and as many of the nearest outside, how many are put on
the right side? A label that does not beat chance is marked weak.

Labels come from `label_by_terms`, or from a teacher, which is shown the same contrast.

    labels.json   each stable cluster's label, who made it, and how well it sorted
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.stats import holm
from forty2.errors import DataError, RunError
from forty2.failures.asking import Limits, Request, open_asker
from forty2.failures.chat_models import ChatModel
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
from forty2.failures.teaching import label_prompt, parse_label
from forty2.failures.terms import distinctive
from forty2.files import JsonObject, file_sha256, read_json, write_json
from forty2.inference.embedding import load_embedder
from forty2.progress import Progress, silent

LABELS = "labels.json"
SORTED = 100
"""Most held-out members that a label sorts, and as many items outside."""
LONGEST = 200
"""Characters of a label; a longer one is cut."""
BY_TERMS = "terms"
"""Source of labels that no teacher made."""
_TERMS = 4
_SHOWN = 20
"""Most texts on each side that a teacher is shown."""
_TRIES, _TEMPERATURE, _MAX_TOKENS, _SEED = 3, 0.3, 256, 42
"""How a teacher is asked for a label."""


class Contrast(NamedTuple):
    """What a label is made from."""

    cluster: int
    inside: list[str]
    """Texts of members, the nearest to the centre first; none is held out."""
    outside: list[str]
    """Texts of the nearest items outside, as many; none is held out."""


Sorter = Callable[[Sequence[str], Sequence[ScoredItem]], Sequence[int]]
"""Returns for each item the place of the label that it belongs to, told by the labels alone."""


class _Groups(NamedTuple):
    """The items of one cluster, and the nearest outside, the nearest to the centre first."""

    inside: list[ScoredItem]
    outside: list[ScoredItem]


def label_clusters(
    folder: Path,
    teacher: str | ChatModel | None = None,
    *,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> JsonObject:
    """Label the stable clusters of a folder, check the labels, and write labels.json.

    Args:
        teacher: address of an OpenAI-compatible server, `local:MODEL`, or either of them with its
            settings; None: `label_by_terms`. A teacher that labelled these clusters before is not
            asked again.

    Returns:
        What labels.json holds; without labels if the clusters are not stable.

    Raises:
        DataError: there are no clusters, or they are of other items.
        RunError: the budget of the teacher has ended, and what it answered is stored.
        ModelError: the embedding model cannot be loaded.
        BenchmarkError: the teacher does not work; what it answered is stored.
        ServeError: a local teacher cannot be loaded.
    """
    need_scikit_learn()
    if teacher is not None and not isinstance(teacher, ChatModel):
        teacher = ChatModel(name=teacher)
    record = read_clusters(folder)
    header = {
        "source": BY_TERMS if teacher is None else teacher.name,
        "teacher_model": None if teacher is None else teacher.model,
        "clusters_sha256": file_sha256(folder / CLUSTERS),
    }
    out = folder / LABELS
    if teacher is not None and (before := _made_before(out, header)) is not None:
        return before
    groups = _groups(folder, record) if record["stable"] else []
    contrasts = [_contrast(n, group) for n, group in enumerate(groups, 1)]
    if teacher is None:
        made = _labelled(folder, record, groups, [label_by_terms(one) for one in contrasts])
        made = {**header, "requests": None, **made}
        write_json(out, made)
        return made
    with PartialResults.open(out, header, resume=True) as partial:
        texts, requests = _ask(teacher, contrasts, partial, limits or Limits(), progress)
        made = {**header, "requests": requests, **_labelled(folder, record, groups, texts)}
        partial.finish(made)
    return made


def _made_before(out: Path, header: JsonObject) -> JsonObject | None:
    """Return the labels that are there, if they were made in this way."""
    if not out.exists():
        return None
    before = read_json(out)
    same = isinstance(before, dict) and all(before.get(key) == header[key] for key in header)
    return before if same else None


def _labelled(
    folder: Path, record: JsonObject, groups: Sequence[_Groups], texts: Sequence[str]
) -> JsonObject:
    """Check the labels of all clusters, and return those of the stable ones."""
    if not record["stable"]:
        return {"sentence": "No stable clusters, so there are no names.", "labels": []}
    texts = [_one_line(text) for text in texts]
    checks = _check(texts, groups, _embedding_sorter(folder, record["model"]))
    labels = [
        {"cluster": cluster["cluster"], "label": text, **check}
        for cluster, text, check in zip(record["clusters"], texts, checks, strict=True)
        if cluster["stable"]
    ]
    strong = sum(not label["weak"] for label in labels)
    return {
        "sentence": f"{strong} of {len(labels)} labels sort held-out items above chance.",
        "labels": labels,
    }


def _ask(
    teacher: ChatModel,
    contrasts: Sequence[Contrast],
    partial: PartialResults,
    limits: Limits,
    progress: Progress,
) -> tuple[list[str], JsonObject]:
    """Ask a teacher for the label of each contrast, again if none can be read; "" where none can."""
    found: dict[int, str] = {}
    counts: Counter[str] = Counter()
    with open_asker(
        teacher,
        partial,
        stage="labels",
        seed=_SEED,
        temperature=_TEMPERATURE,
        max_tokens=_MAX_TOKENS,
        limits=limits,
        progress=progress,
    ) as asker:
        for turn in range(_TRIES):
            left = [one for one in contrasts if one.cluster not in found]
            requests = [
                Request(
                    f"label/{one.cluster}/{turn}",
                    label_prompt(one.inside[:_SHOWN], one.outside[:_SHOWN]),
                )
                for one in left
            ]
            for one, answer in zip(left, asker.ask(requests), strict=False):
                said = answer["said"]
                label = "" if said is None else parse_label(said)
                counts["failed" if said is None else "read" if label else "unreadable"] += 1
                if label:
                    found[one.cluster] = label
            if asker.ended:
                raise RunError(
                    f"the budget for the teacher has ended, after {len(found)} of {len(contrasts)} labels; "
                    "raise it, and give the same command again: no answer is lost"
                )
    sent = {"sent": counts.total(), "failed": counts["failed"], "unreadable": counts["unreadable"]}
    return [found.get(one.cluster, "") for one in contrasts], sent


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
