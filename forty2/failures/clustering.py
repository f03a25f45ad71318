"""Clusters of all scored items, failures and passes, each tested for more failures than the rest.

    clusters.json         how the clusters were made, how stable they are, and each one's figures
    cluster_items.jsonl   the cluster of each item, and its place on the map

Clusters are made from the texts alone, the last user message of each item of the half `find`. So a
cluster's failure rate is not high by construction, and an exact test of it is fair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from forty2.benchmark.stats import Interval, holm, wilson
from forty2.errors import DataError
from forty2.failures import kmeans
from forty2.failures.kmeans import Fit, Labels, Stability, Vectors
from forty2.failures.scored import ScoredHalf, ScoredItem, read_scored
from forty2.failures.stored_embeddings import Embeddings, embed_items
from forty2.failures.terms import distinctive
from forty2.files import JsonObject, atomic_write, read_json, write_json
from forty2.inference.embedding import MINILM
from forty2.progress import Progress, silent

CLUSTERS, CLUSTER_ITEMS = "clusters.json", "cluster_items.jsonl"
K = 10
LEAST_RAND = 0.6
"""Smallest adjusted Rand index of stable clusters."""
LEAST_JACCARD = 0.6
"""Smallest Jaccard index of a stable cluster: below it, Hennig 2007 advises to read nothing into it."""
LEVEL = 0.05
NEAREST = 10
"""Items nearest to a cluster's centre whose ids are recorded."""
CONTRASTED = 1000
"""Most texts on each side that distinctive terms are taken from."""
_TERMS = 10


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster and its failures."""

    cluster: int
    """Its number, from 1; the highest failure rate first."""
    size: int
    failures: int
    rate: float
    """Share of its items that failed."""
    interval: Interval
    """Wilson's 95% interval of the rate."""
    rest_rate: float
    """Share of all other items that failed."""
    p: float
    """Fisher's exact two-sided test of the rate against the rest's."""
    p_holm: float
    """p corrected for the number of clusters."""
    worse: bool
    """Whether it is stable and fails more often than the rest, at 5% after correction."""
    jaccard: float
    stable: bool
    nearest: list[str]
    """Ids of the items nearest to the centre, the nearest first."""
    terms: list[dict[str, object]]
    """Terms that set it apart from the nearest items outside."""


def cluster_items(
    folder: Path,
    *,
    k: int | Literal["auto"] = K,
    seed: int = 42,
    model: str = MINILM,
    progress: Progress = silent,
) -> JsonObject:
    """Cluster the scored items of a folder, test the clusters, and write both files.

    The result depends on the items and the seed, not on the order of rows.

    Args:
        k: number of clusters; "auto": the one with the largest silhouette, from 2 to 20.
        model: a name that `load_embedder` takes.

    Returns:
        What clusters.json holds.

    Raises:
        RunError: scikit-learn is not installed, or a file cannot be written.
        DataError: a file is unusable, or there are fewer different texts than clusters.
        ModelError: the embedding model cannot be loaded.
    """
    kmeans.need_scikit_learn()
    half = read_scored(folder)
    _check_count(folder, len(half.items), k, "items with a verdict of pass or fail")
    embeddings = embed_items(folder, half.items, model, progress)
    vectors = embeddings.vectors
    distinct = kmeans.count_distinct(vectors)
    _check_count(folder, distinct, k, "different texts among the scored items")
    silhouettes = None
    chosen = k
    if chosen == "auto":
        chosen, tried = kmeans.choose_k(vectors, seed, progress)
        silhouettes = {str(number): score for number, score in tried.items()}
    fit = kmeans.fit(vectors, chosen, seed)
    stability = kmeans.measure_stability(vectors, fit, seed, progress)
    fit, stability = _in_order(half.items, fit, stability)
    clusters = _clusters(half.items, vectors, fit, stability)
    record = _record(half, embeddings, stability, clusters)
    record |= {"k_asked": k, "k": len(clusters), "silhouettes": silhouettes, "seed": seed}
    _write_items(folder / CLUSTER_ITEMS, half.items, vectors, fit.labels)
    write_json(folder / CLUSTERS, record)
    return record


def read_clusters(folder: Path) -> JsonObject:
    """Read clusters.json.

    Raises:
        DataError: there is none, or it is not whole.
    """
    path = folder / CLUSTERS
    if not path.exists():
        raise DataError(f"{path}: no such file; make it with forty2 failures cluster {folder}")
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("clusters"), list):
        raise DataError(f"{path}: holds no clusters; run forty2 failures cluster {folder} again")
    return record


def read_cluster_items(folder: Path) -> dict[str, int]:
    """Read the cluster of each item, by id.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / CLUSTER_ITEMS
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return {str(row["id"]): int(row["cluster"]) for row in rows}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: not readable ({error}); run forty2 failures cluster {folder} again"
        ) from error


def by_nearness(vectors: Vectors, centre: Vectors) -> Labels:
    """Return the places of vectors (N, D) from the nearest to a centre (D,) on; ties by place."""
    distances = np.square(vectors - centre).sum(axis=1)
    return np.argsort(distances.round(6), kind="stable").astype(np.int64)


def _check_count(folder: Path, count: int, k: int | str, what: str) -> None:
    least = 3 if k == "auto" else int(k)
    if count < least:
        needed = "choosing k" if k == "auto" else f"{k} clusters"
        raise DataError(
            f"{folder}: holds {count} {what}, and {needed} needs {least} or more; "
            + ("score more items" if least <= 3 else "score more items, or give a smaller `k`")
        )


def _in_order(items: Sequence[ScoredItem], fit: Fit, stability: Stability) -> tuple[Fit, Stability]:
    """Number clusters by failure rate, then size, then the first id."""
    failed = np.array([item.failed for item in items])
    sizes = np.bincount(fit.labels, minlength=len(fit.centres))
    failures = np.bincount(fit.labels, weights=failed, minlength=len(fit.centres))
    firsts = [int((fit.labels == n).argmax()) for n in range(len(sizes))]
    rates = failures / np.maximum(sizes, 1)
    order = sorted(range(len(sizes)), key=lambda n: (-float(rates[n]), -int(sizes[n]), firsts[n]))
    ranks = np.argsort(order)
    return (
        Fit(fit.centres[order], ranks[fit.labels].astype(np.int64)),
        stability._replace(jaccard=[stability.jaccard[n] for n in order]),
    )


def _clusters(
    items: Sequence[ScoredItem], vectors: Vectors, fit: Fit, stability: Stability
) -> list[Cluster]:
    from scipy.stats import fisher_exact

    failed = np.array([item.failed for item in items])
    total, all_failed = len(items), int(failed.sum())
    counts = []
    for n in range(len(fit.centres)):
        inside = fit.labels == n
        counts.append((int(inside.sum()), int(failed[inside].sum())))
    tables = [
        ((bad, size - bad), (all_failed - bad, total - size - (all_failed - bad)))
        for size, bad in counts
    ]
    ps = [min(1.0, float(fisher_exact(table).pvalue)) for table in tables]
    found = []
    for n, ((size, bad), p, p_holm) in enumerate(zip(counts, ps, holm(ps), strict=True)):
        rest = (all_failed - bad) / (total - size) if total > size else 0.0
        order = by_nearness(vectors, fit.centres[n])
        inside = order[fit.labels[order] == n]
        outside = order[fit.labels[order] != n]
        stable = stability.rand >= LEAST_RAND and stability.jaccard[n] >= LEAST_JACCARD
        most = min(size, CONTRASTED)
        near, far = ([items[place].text for place in side[:most]] for side in (inside, outside))
        found.append(
            Cluster(
                cluster=n + 1,
                size=size,
                failures=bad,
                rate=bad / size,
                interval=wilson(bad, size),
                rest_rate=rest,
                p=p,
                p_holm=p_holm,
                worse=stable and p_holm < LEVEL and bad / size > rest,
                jaccard=stability.jaccard[n],
                stable=stable,
                nearest=[items[place].id for place in inside[:NEAREST]],
                terms=[term._asdict() for term in distinctive(near, far, _TERMS)],
            )
        )
    return found


def _record(
    half: ScoredHalf, embeddings: Embeddings, stability: Stability, clusters: Sequence[Cluster]
) -> JsonObject:
    return {
        "sentence": _sentence(half, stability, clusters),
        "text": "last user message",
        "model": embeddings.model,
        "model_sha256": embeddings.model_sha256,
        "items": len(half.items),
        "failures": half.failures,
        "strata": [
            {**stratum._asdict(), "interval": _interval(stratum.failed, stratum.passed)}
            for stratum in half.strata
        ],
        "stability": {**stability._asdict(), "least_rand": LEAST_RAND},
        "least_jaccard": LEAST_JACCARD,
        "stable": stability.rand >= LEAST_RAND,
        "clusters": [asdict(cluster) for cluster in clusters],
    }


def _interval(failed: int, passed: int) -> Interval | None:
    """Return the interval of the pass rate; None if nothing was scored."""
    return wilson(passed, passed + failed) if passed + failed else None


def _sentence(half: ScoredHalf, stability: Stability, clusters: Sequence[Cluster]) -> str:
    count, failures = len(half.items), half.failures
    if not failures:
        return f"None of {count:,} items failed: no cluster is worse than the rest."
    if failures == count:
        return f"All {count:,} items failed: no cluster is worse than the rest."
    if stability.rand < LEAST_RAND:
        return (
            f"No stable clusters: resamples of the items give others (adjusted Rand "
            f"{stability.rand:.2f}, below {LEAST_RAND})."
        )
    worse = sum(cluster.worse for cluster in clusters)
    if not worse:
        return f"None of {len(clusters)} clusters fails more often than the rest beyond chance."
    verb = "fails" if worse == 1 else "fail"
    return f"{worse} of {len(clusters)} clusters {verb} more often than the rest."


def _write_items(path: Path, items: Sequence[ScoredItem], vectors: Vectors, labels: Labels) -> None:
    places = kmeans.coordinates(vectors).round(5) + 0.0
    with atomic_write(path) as file:
        for item, label, (x, y) in zip(items, labels.tolist(), places.tolist(), strict=True):
            row = {"id": item.id, "cluster": label + 1, "x": x, "y": y}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
