"""Calibration against hand-worked cases, and what must hold of any scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forty2.benchmark.calibration import calibration, first_choice


def test_by_hand() -> None:
    assert first_choice([0.0, 0.0, -math.inf], [1, 1, 0]) == (0.5, True)
    assert first_choice([0.0, 0.0], [1, 0]) == (0.5, False)  # a tie is not knowledge
    confidence, right = first_choice([math.log(3.0), 0.0], [0, 1])
    assert confidence == pytest.approx(0.75) and not right
    # two at 0.75, one of them right: off by 0.25; one at 0.95, right: off by 0.05
    found = calibration([(0.75, True), (0.75, False), (0.95, True)])
    assert found["ece"] == pytest.approx((2 * 0.25 + 0.05) / 3)
    assert [bin["n"] for bin in found["bins"]] == [2, 1]


def test_a_border_belongs_to_the_bin_below() -> None:
    found = calibration([(0.7, True), (0.65, True), (0.71, True), (1.0, True)])
    assert [bin["n"] for bin in found["bins"]] == [2, 1, 1]


def test_a_model_that_is_right_as_often_as_it_is_sure_has_no_error() -> None:
    random = np.random.default_rng(3)
    confidence = random.uniform(0.25, 1.0, 40_000)
    right = random.random(40_000) < confidence
    assert calibration(list(zip(confidence.tolist(), right.tolist(), strict=True)))["ece"] < 0.01


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.booleans()), min_size=1, max_size=50))
def test_order_does_not_matter_and_nothing_is_lost(choices: list[tuple[float, bool]]) -> None:
    found = calibration(choices)
    assert 0 <= found["ece"] <= 1
    assert sum(bin["n"] for bin in found["bins"]) == len(choices)
    assert calibration(choices[::-1])["ece"] == pytest.approx(found["ece"])
