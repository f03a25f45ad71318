"""KMeans of embeddings: the fit, the choice of k, how stable the clusters are, and a map.

scikit-learn computes. Everything runs in one thread, so that a seed gives the same clusters each
time: several threads add up centres in the order in which they end.

Axes: N items, D width of an embedding, k clusters.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.errors import RunError
from forty2.progress import Progress, silent

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

STARTS = 10
"""Fits from different centres, of which the best is kept."""
RESAMPLES = 20
RESAMPLE_STARTS = 3
LARGEST_RESAMPLE = 10_000
"""Items of a resample at most. Fewer than all make clusters look less stable, never more."""
LARGEST_K = 20
"""Largest k that `choose_k` tries."""
_JUDGED = 3_000
"""Items by which `choose_k` judges; the time grows with the square."""


class Fit(NamedTuple):
    """Clusters of N items."""

    centres: Vectors
    """(k, D)"""
    labels: Labels
    """Cluster of each item, (N,), from 0."""


class Stability(NamedTuple):
    """How alike clusters are that resamples of the items give."""

    rand: float
    """Mean adjusted Rand index: 1 for the same clusters, 0 for what chance gives."""
    jaccard: list[float]
    """For each cluster, the mean share that it has in common with the most similar cluster of a
    resample: items in both, divided by items in one of them."""
    resamples: int
    drawn: int
    """Items of a resample."""


def need_scikit_learn() -> None:
    """Refuse to cluster where scikit-learn is not installed.

    Raises:
        RunError: it is not.
    """
    try:
        import sklearn.cluster  # noqa: F401
    except ImportError as error:
        raise RunError(
            "clustering needs scikit-learn; install it with pip install 'forty2[failures]'"
        ) from error


def fit(vectors: Vectors, k: int, seed: int, starts: int = STARTS) -> Fit:
    """Divide vectors (N, D) into k clusters by Lloyd's algorithm from k-means++ centres."""
    from sklearn.cluster import KMeans

    with _alone():
        found = KMeans(k, n_init=starts, random_state=seed).fit(vectors)
    used, labels = np.unique(
        found.labels_, return_inverse=True
    )  # of almost equal texts, some are empty
    return Fit(found.cluster_centers_[used].astype(np.float32), labels.astype(np.int64))


def count_distinct(vectors: Vectors) -> int:
    """Count the different vectors, which is the largest k that is possible."""
    return len({row.tobytes() for row in vectors})


def choose_k(
    vectors: Vectors, seed: int, progress: Progress = silent
) -> tuple[int, dict[int, float]]:
    """Choose the k whose clusters have the largest mean silhouette.

    The silhouette compares the distance to an item's own cluster with that to the next one
    (Rousseeuw 1987, J. Comput. Appl. Math. 20:53). Of more than 10,000 items, 10,000 are clustered.

    Returns:
        k, and the silhouette of each k that was tried, from -1 to 1.
    """
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(seed)
    some = _draw(vectors, LARGEST_RESAMPLE, rng)
    judged = rng.permutation(len(some))[:_JUDGED]
    tried = range(2, min(LARGEST_K, count_distinct(some) - 1) + 1)
    scores: dict[int, float] = {}
    for k in tried:
        labels = fit(some, k, seed, RESAMPLE_STARTS).labels[judged]
        with _alone():
            several = len(set(labels.tolist())) > 1
            scores[k] = float(silhouette_score(some[judged], labels)) if several else -1.0
        progress("k", len(scores), len(tried), {})
    return max(scores, key=lambda k: (round(scores[k], 6), -k)), scores


def measure_stability(
    vectors: Vectors, found: Fit, seed: int, progress: Progress = silent
) -> Stability:
    """Cluster resamples, assign all items to their clusters, and compare these with the fit.

    Resamples are drawn with replacement (Hennig 2007, Comput. Stat. Data Anal. 52:258; adjusted
    Rand index: Hubert & Arabie 1985, J. Classif. 2:193).
    """
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(seed)
    k, drawn = len(found.centres), min(len(vectors), LARGEST_RESAMPLE)
    rands, jaccards = [], []
    for resample in range(RESAMPLES):
        places = np.sort(rng.integers(len(vectors), size=drawn))
        centres = fit(vectors[places], k, seed + 1 + resample, RESAMPLE_STARTS).centres
        labels = nearest(vectors, centres)
        rands.append(float(adjusted_rand_score(found.labels, labels)))
        jaccards.append(_jaccard(found.labels, labels, k))
        progress("stability", resample + 1, RESAMPLES, {})
    means = np.mean(jaccards, axis=0)
    return Stability(float(np.mean(rands)), [float(mean) for mean in means], RESAMPLES, drawn)


def nearest(vectors: Vectors, centres: Vectors) -> Labels:
    """Return the nearest of the centres (k, D) to each vector (N, D)."""
    scores = vectors @ centres.T - np.square(centres).sum(axis=1) / 2
    labels: Labels = scores.argmax(axis=1).astype(np.int64)
    return labels


def coordinates(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Compute a map (N, 2): the two directions in which vectors (N, D) differ most (PCA)."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    axes = axes[:, [-1, -2]]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # else either sign would be right
    places: npt.NDArray[np.float64] = centred.astype(np.float64) @ (axes * signs)
    return places


def _jaccard(labels: Labels, others: Labels, k: int) -> npt.NDArray[np.float64]:
    """Return each cluster's largest Jaccard index with one of the other clusters, (k,)."""
    both = np.bincount(labels * k + others, minlength=k * k).reshape(k, k)
    either = both.sum(axis=1)[:, None] + both.sum(axis=0)[None] - both
    shares: npt.NDArray[np.float64] = (both / np.maximum(either, 1)).max(axis=1)
    return shares


def _draw(vectors: Vectors, most: int, rng: np.random.Generator) -> Vectors:
    if len(vectors) <= most:
        return vectors
    return vectors[np.sort(rng.permutation(len(vectors))[:most])]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Compute in one thread; a resample with fewer different vectors than k needs no warning."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
