"""Metrics as a reader sees them."""

from __future__ import annotations

import math

import pytest

from forty2.metric_names import (
    NO_LEAK,
    OPPOSITES,
    TEXTS,
    lower_is_better,
    metric_name,
    shown_change,
    shown_interval,
    shown_value,
)


@pytest.mark.parametrize("metric", ["mc2", "chat loss", "chat loss (arts)", *OPPOSITES])
def test_what_is_shown_rises_unless_lower_is_better(metric: str) -> None:
    """The record has scores so that more is better; a loss is recorded as it is."""
    rises = shown_value(metric, -0.25) > shown_value(metric, -0.5)
    assert rises == (metric not in OPPOSITES)
    assert lower_is_better(metric) == (metric != "mc2")


@pytest.mark.parametrize("metric", ["mc2", *OPPOSITES])
def test_the_ends_of_an_interval_stay_in_order_and_around_the_value(metric: str) -> None:
    for shown in (shown_interval, shown_change):
        value, low, high = shown(metric, 0.5, 0.25, 0.875)
        assert low < value < high
    assert "-0.0" not in str(shown_change(metric, 0.0, 0.0, 0.0))


def test_changes_of_leaks_are_differences_and_those_of_perplexity_relative() -> None:
    assert shown_change(NO_LEAK, -0.5, -0.75, -0.25) == (0.5, 0.25, 0.75)
    twice = shown_change(TEXTS, -math.log(2), -math.log(4), 0.0)
    assert twice == pytest.approx((1, 0, 3))
    assert shown_value(TEXTS, -math.log(40)) == pytest.approx(40)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("mc2", "MC2"),
        ("right", "facts right"),
        ("no leak", "leaks"),
        ("log p of texts", "perplexity"),
        ("prefers: myth", "gate myth, likelihood"),
        ("answers: myth", "gate myth, generation"),
        ("prefers", "prefers"),
        ("of another: kind", "of another: kind"),
    ],
)
def test_every_metric_has_one_name(metric: str, name: str) -> None:
    assert metric_name(metric) == name
