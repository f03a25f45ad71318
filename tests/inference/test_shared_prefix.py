"""Rows after a shared prefix score as whole rows."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from support.models import ARCHITECTURES, tiny_model

from forty2.inference.shared_prefix import SharedPrefix, score_rows
from forty2.model.kv_cache import keeps_plain_keys

RNG = np.random.default_rng(1)


def ids(length: int) -> list[int]:
    return [int(i) for i in RNG.integers(1, 300, length)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("primer", [0, 9])
def test_rows_after_several_stems_score_as_whole_rows(architecture: str, primer: int) -> None:
    model = tiny_model(architecture)
    begin = ids(primer)
    stems = [
        (ids(length), [(ids(given), ids(scored)) for given, scored in rows])
        for length, rows in ((5, [(1, 1), (1, 9)]), (14, [(2, 4)]), (1, [(1, 3), (3, 2), (1, 1)]))
    ]
    got = SharedPrefix(model).extend(begin).score_after(stems)
    for (middle, rows), scores in zip(stems, got, strict=True):
        whole = [score_rows(model, [(begin + middle + g, s)])[0] for g, s in rows]
        np.testing.assert_allclose(scores, whole, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "sliding", "qwen2", "phi3"])
def test_a_prefix_followed_many_times_scores_as_whole_rows(architecture: str) -> None:
    model = tiny_model(architecture)
    assert keeps_plain_keys(model)
    begin, middle = ids(9), ids(5)
    rows = [(ids(1), ids(n)) for n in (1, 4, 9)]
    whole = score_rows(model, [(begin + middle + given, scored) for given, scored in rows])
    prefix = SharedPrefix(model).extend(begin)
    for _ in range(2):  # following a prefix must not change it
        scored = prefix.extend(middle).score(rows)
        for one, other in zip(scored, whole, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "sliding", "qwen2", "phi3"])
def test_logits_after_a_prefix_are_those_of_whole_rows(architecture: str) -> None:
    model = tiny_model(architecture)
    begin, rows = ids(9), [ids(3), ids(7)]
    got = SharedPrefix(model).extend(begin).logits(rows, 2)
    for row, logits in zip(rows, got, strict=True):
        whole = model(mx.array([begin + row]))[0, -2:]
        np.testing.assert_allclose(np.asarray(logits), np.asarray(whole), atol=1e-4)
