"""The reference: stored, reused, made anew when damaged, and known by a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.training import ALL, PAIRS, adapted

from forty2.errors import TrainingError
from forty2.model.adapter import adapter_weights
from forty2.training.reference import reference_key, reference_logps


def test_reference_is_stored_reused_and_recomputed_when_damaged(tmp_path: Path) -> None:
    model, store = adapted(), tmp_path / "reference.npz"
    first = reference_logps(model, PAIRS, ALL, store)

    class Untouchable(nn.Module):
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("the stored reference was not used")

    untouchable: Any = Untouchable  # mlx's constructor has no types
    again = reference_logps(untouchable(), PAIRS, ALL, store)
    for n in ALL:
        np.testing.assert_array_equal(first[n], again[n])
    store.write_bytes(store.read_bytes()[:-40])
    mended = reference_logps(model, PAIRS, ALL, store)
    for n in ALL:
        np.testing.assert_array_equal(first[n], mended[n])


def test_a_log_probability_that_is_not_finite_names_the_row_and_is_not_stored(
    tmp_path: Path,
) -> None:
    model, store = adapted(), tmp_path / "reference.npz"
    model.model.embed_tokens.weight[PAIRS[3].prompt[0]] = mx.nan
    with pytest.raises(TrainingError, match=r"^dpo\.jsonl:4: .*log-probability that is not finite"):
        reference_logps(model, PAIRS, [3], store)
    assert not store.exists()


def test_reference_key_depends_on_weights_adapter_and_rows() -> None:
    adapter = adapter_weights(adapted())
    key = reference_key("base", adapter, PAIRS)
    name = next(iter(adapter))
    assert key == reference_key("base", dict(adapter), list(PAIRS))
    assert key != reference_key("other", adapter, PAIRS)
    assert key != reference_key("base", {**adapter, name: adapter[name] + 1e-3}, PAIRS)
    assert key != reference_key("base", adapter, PAIRS[1:])
