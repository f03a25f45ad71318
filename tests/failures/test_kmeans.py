"""KMeans: planted groups are found and stable, noise is not, and a seed gives the same each time."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest

from forty2.errors import RunError
from forty2.failures import kmeans
from forty2.failures.kmeans import Labels, Vectors


def planted(count: int = 240, groups: int = 4, spread: float = 0.03) -> tuple[Vectors, Labels]:
    rng = np.random.default_rng(7)
    labels = rng.integers(groups, size=count)
    centres = np.linalg.qr(rng.standard_normal((24, groups)))[0].T
    vectors = centres[labels] + spread * rng.standard_normal((count, 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


def noise(count: int = 300) -> Vectors:
    vectors = np.random.default_rng(8).standard_normal((count, 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def same_groups(a: Labels, b: Labels) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


def test_planted_groups_are_found_and_stable() -> None:
    vectors, labels = planted()
    found = kmeans.fit(vectors, 4, 42)
    assert same_groups(found.labels, labels)
    stability = kmeans.measure_stability(vectors, found, 42)
    assert stability.rand > 0.98 and min(stability.jaccard) > 0.98


def test_clusters_of_noise_are_not_stable() -> None:
    vectors = noise()
    stability = kmeans.measure_stability(vectors, kmeans.fit(vectors, 5, 42), 42)
    assert stability.rand < 0.4 and max(stability.jaccard) < 0.6


def test_one_group_among_noise_is_stable_and_the_rest_is_not() -> None:
    group = np.zeros((60, 24), np.float32)
    group[:, 0] = 1
    group[:, 1] = np.linspace(-0.02, 0.02, 60)
    vectors = np.concatenate([group, noise(200)])
    found = kmeans.fit(vectors, 5, 42)
    stability = kmeans.measure_stability(vectors, found, 42)
    jaccard = dict(enumerate(stability.jaccard))
    ours = jaccard.pop(int(found.labels[0]))
    assert ours > 0.8 > max(jaccard.values())


def test_k_is_that_of_the_planted_groups() -> None:
    vectors, _ = planted(groups=5)
    chosen, scores = kmeans.choose_k(vectors, 42)
    assert chosen == 5 and max(scores, key=scores.__getitem__) == 5
    assert list(scores) == list(range(2, kmeans.LARGEST_K + 1))


def test_a_seed_gives_the_same_bytes_and_another_may_not() -> None:
    vectors = noise()
    first, again, other = (kmeans.fit(vectors, 6, seed) for seed in (42, 42, 43))
    assert np.array_equal(first.centres, again.centres)
    assert not np.array_equal(first.centres, other.centres)
    one, two = (kmeans.measure_stability(vectors, first, 42) for _ in range(2))
    assert one == two


def test_the_jaccard_index_by_hand() -> None:
    labels, others = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0, 0, 0])
    # cluster 0 has {0, 1} of {0, 1, 2} in common with 1; cluster 1 has {3, 4} of {2, 3, 4} with 0
    assert kmeans._jaccard(labels, others, 2) == pytest.approx([2 / 3, 2 / 3])


def test_the_nearest_centre_is_that_of_the_distances() -> None:
    vectors, centres = noise(50), noise(300)[290:] * 2
    distances = ((vectors[:, None] - centres[None]) ** 2).sum(axis=2)
    assert np.array_equal(kmeans.nearest(vectors, centres), distances.argmin(axis=1))


def test_the_map_shows_the_directions_of_most_spread_with_a_fixed_sign() -> None:
    rng = np.random.default_rng(5)
    plane = rng.standard_normal((200, 2)) * (5, 2)
    vectors = np.zeros((200, 24), np.float32)
    vectors[:, [3, 9]] = plane
    found = kmeans.coordinates(vectors)
    centred = vectors[:, [3, 9]] - vectors[:, [3, 9]].mean(axis=0)
    assert np.corrcoef(found[:, 0], centred[:, 0])[0, 1] > 0.99
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.linalg.norm(centred, axis=1), abs=1e-4)


def test_fewer_different_texts_than_clusters_leave_no_cluster_empty() -> None:
    vectors = np.repeat(noise(3), 10, axis=0)
    found = kmeans.fit(vectors, 5, 42)
    assert len(found.centres) == 3 == kmeans.count_distinct(vectors)
    assert set(found.labels.tolist()) == {0, 1, 2}
    stability = kmeans.measure_stability(vectors, found, 42)
    assert len(stability.jaccard) == 3 and stability.rand == pytest.approx(1)


def test_a_large_set_is_resampled_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "LARGEST_RESAMPLE", 100)
    vectors, _ = planted()
    stability = kmeans.measure_stability(vectors, kmeans.fit(vectors, 4, 42), 42)
    assert stability.drawn == 100 and stability.rand > 0.9
    assert kmeans.choose_k(vectors, 42)[0] == 4


def test_without_scikit_learn_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    inner = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return inner(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(RunError, match=r"pip install 'forty2\[failures\]'"):
        kmeans.need_scikit_learn()
