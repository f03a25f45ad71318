"""Keys and values of prefixes and of packed rows give the logits of whole rows."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from support.models import ARCHITECTURES, tiny_model

from forty2.model.kv_cache import CacheLayer, can_pack, keeps_plain_keys, segment_cache
from forty2.model.surgery import blocks

RNG = np.random.default_rng(5)
SHARING = ["llama", "sliding", "qwen2", "phi3"]


def ids(rows: int, length: int) -> mx.array:
    return mx.array(RNG.integers(1, 300, (rows, length)))


@pytest.mark.parametrize("architecture", SHARING)
def test_rows_after_prefixes_of_different_lengths_have_the_logits_of_whole_rows(
    architecture: str,
) -> None:
    model = tiny_model(architecture)
    prefixes, rows, lengths = ids(2, 9), ids(2, 4), [9, 5]
    layers = [CacheLayer() for _ in blocks(model)]
    model(prefixes, cache=layers)
    cache = [CacheLayer(layer.keys_and_values(), mx.array(lengths)) for layer in layers]
    got = model(rows, cache=cache)
    for n, length in enumerate(lengths):
        whole = mx.concatenate([prefixes[n, :length], rows[n]])[None]
        np.testing.assert_allclose(
            np.asarray(got[n]), np.asarray(model(whole)[0, length:]), atol=1e-4
        )


@pytest.mark.parametrize("architecture", SHARING)
def test_a_common_prefix_comes_before_every_row(architecture: str) -> None:
    model = tiny_model(architecture)
    common, rows = ids(1, 9), ids(3, 4)
    layers = [CacheLayer() for _ in blocks(model)]
    model(common, cache=layers)
    got = model(rows, cache=[CacheLayer(common=layer.keys_and_values()) for layer in layers])
    whole = model(mx.concatenate([mx.repeat(common, 3, axis=0), rows], axis=1))[:, 9:]
    np.testing.assert_allclose(np.asarray(got), np.asarray(whole), atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_have_the_logits_they_have_alone(architecture: str) -> None:
    model = tiny_model(architecture)
    assert can_pack(model) == (architecture != "gemma2")  # it takes no mask for each row
    if not can_pack(model):
        return
    row = ids(1, 10)
    segments = mx.array([[0] * 4 + [1] * 6])
    packed = model(row, cache=segment_cache(model, segments))
    alone = mx.concatenate([model(row[:, :4]), model(row[:, 4:])], axis=1)
    np.testing.assert_allclose(np.asarray(packed), np.asarray(alone), atol=1e-4)


def test_a_model_with_another_kind_of_cache_shares_nothing() -> None:
    model = tiny_model()
    assert keeps_plain_keys(model)

    class Recurrent(type(model)):  # type: ignore[misc]
        def make_cache(self) -> list[object]:
            return [object() for _ in self.layers]

    model.__class__ = Recurrent
    assert not keeps_plain_keys(model) and not can_pack(model)
