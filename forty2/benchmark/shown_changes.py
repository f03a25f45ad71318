"""Changes as a comparison shows them: the names and the figures that a run's table and report have, too.

Scores are recorded so that a higher one is better; leaks and perplexity are the opposites of theirs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from forty2.benchmark.metrics import shown_metric
from forty2.benchmark.tasks.perplexity import TEXTS

_NAMES = {"right": "facts", "no leak": "leaks", TEXTS: "perplexity"}
_GATE_NAMES = {"prefers": "likelihood", "answers": "generation"}
"""Ways to judge a behaviour gate, by the start of the metric's name."""


class ShownChange(NamedTuple):
    """The figures of one metric's change."""

    before: float
    after: float
    difference: float
    low: float
    """Lower end of the 95% interval of the difference."""
    high: float
    detectable: float | None = None
    """Smallest true change that would be seen; None: unknown."""


def shown_name(metric: str) -> str:
    """Return a metric's name for a reader."""
    way, _, gate = metric.partition(": ")
    if gate and way in _GATE_NAMES:
        return f"gate {gate}, {_GATE_NAMES[way]}"
    return _NAMES.get(metric, shown_metric(metric))


def shown_change(metric: str, change: ShownChange) -> ShownChange:
    """Return the figures to show for a change as it was recorded."""
    before, after, difference, low, high, detectable = change
    if metric == "no leak":
        return ShownChange(
            1 - before, 1 - after, 0.0 - difference, 0.0 - high, 0.0 - low, detectable
        )
    if metric == TEXTS:
        was = math.exp(-before)

        def moved(change: float) -> float:
            return was * math.expm1(change)

        return ShownChange(
            was,
            math.exp(-after),
            moved(-difference),
            moved(-high),
            moved(-low),
            None if detectable is None else moved(detectable),
        )
    return change
