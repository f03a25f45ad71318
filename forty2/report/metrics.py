"""Names, figures and units of metrics, as reports over several seeds show them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

SCORES = ("mc1", "mc2", "mc3")
"""TruthfulQA's metrics: scores from 0 to 1, not shares."""
_NAMES = {
    "right": "facts right",
    "mc1": "MC1",
    "mc2": "MC2",
    "mc3": "MC3",
    "no leak": "leaks",
    "log p of texts": "perplexity",
    "KL": "KL from base",
}
_FORMS = {
    **dict.fromkeys(SCORES, ".3f"),
    "log p of texts": ".2f",
    "KL": ".2g",
    "pair margin": ".2f",
    "chat loss": ".3f",
    "reply tokens": ".0f",
}
"""Formats of values; those of the other metrics are shares."""


@dataclass(frozen=True, slots=True)
class Score:
    """The mean of one metric, with its 95% interval."""

    value: float
    low: float
    high: float


class Figure(NamedTuple):
    """A value with its interval to show: leaks and perplexity instead of their opposites."""

    value: float
    low: float
    high: float


def metric_name(metric: str) -> str:
    """Return a metric's name for a reader."""
    return _NAMES.get(metric, metric)


def shown_score(metric: str, score: Score) -> Figure:
    """Return the figure to show for a score."""
    value, low, high = score.value, score.low, score.high
    if metric == "no leak":
        return Figure(1 - value, 1 - high, 1 - low)
    if metric == "log p of texts":
        return Figure(math.exp(-value), math.exp(-high), math.exp(-low))
    return Figure(value, low, high)


def written_score(metric: str, score: Score) -> str:
    """Write a score with its interval; without it if it is not finite, as that of one seed."""
    form = _FORMS.get(metric, ".1%")
    figure = shown_score(metric, score)
    value, low, high = (format(x, form) for x in figure)
    return f"{value} ({low} to {high})" if all(map(math.isfinite, figure)) else value
