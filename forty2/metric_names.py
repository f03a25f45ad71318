"""Metrics as a reader sees them: their names, and the values where the record has the opposite.

Scores are recorded so that a higher one is better; leaks and perplexity are the opposites of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

FACTS_RIGHT = "right"
"""Share of plain facts answered right."""
NO_LEAK = "no leak"
"""Share of plain facts answered without needless hedging."""
TEXTS = "log p of texts"
"""Log-probability of a token of neutral text in nats, -log perplexity; texts weigh as their tokens."""
OPPOSITES: Mapping[str, str] = {NO_LEAK: "leaks", TEXTS: "perplexity"}
"""Metrics of which the opposite is shown, by their name in the record, with the name of the opposite."""
_NAMES: Mapping[str, str] = {
    "mc1": "MC1",
    "mc2": "MC2",
    "mc3": "MC3",
    "binary": "binary, mean of both orders",
    "binary_both": "binary, right in both",
    "binary_random": "binary, one random order",
    "binary_share": "binary, share of the true",
    FACTS_RIGHT: "facts right",
    "KL": "KL from base",
    **OPPOSITES,
}
_JUDGED_BY = {"prefers": "likelihood", "answers": "generation"}
"""How a behaviour gate is judged, by the start of the metric's name."""


def metric_name(metric: str) -> str:
    """Return the name of a metric of the record for a reader."""
    way, _, gate = metric.partition(": ")
    if gate and way in _JUDGED_BY:
        return f"gate {gate}, {_JUDGED_BY[way]}"
    return _NAMES.get(metric, metric)


def lower_is_better(metric: str) -> bool:
    """Return whether a metric is better if its shown value is lower.

    Rows that are held out by their keys have a metric of their own, such as "chat loss (arts)".
    """
    return metric in OPPOSITES or metric.partition(" (")[0] == "chat loss"


def shown_value(metric: str, value: float) -> float:
    """Return the value to show for a metric's value in the record."""
    if metric == NO_LEAK:
        return 1 - value
    return math.exp(-value) if metric == TEXTS else value


def shown_interval(
    metric: str, value: float, low: float, high: float
) -> tuple[float, float, float]:
    """Return the value to show, with the ends of its interval, the lower one first."""
    shown = shown_value(metric, value), shown_value(metric, low), shown_value(metric, high)
    return shown if metric not in OPPOSITES else (shown[0], shown[2], shown[1])


def shown_change(
    metric: str, difference: float, low: float, high: float
) -> tuple[float, float, float]:
    """Return the change to show, with the ends of its interval; that of perplexity is relative."""
    if metric not in OPPOSITES:
        return difference, low, high
    rise, least, most = 0.0 - difference, 0.0 - high, 0.0 - low  # not -0.0
    if metric == NO_LEAK:
        return rise, least, most
    return math.expm1(rise), math.expm1(least), math.expm1(most)
