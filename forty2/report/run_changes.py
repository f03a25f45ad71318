"""The changes of a stage from the base model that its verdict is over: benefits, then costs."""

from __future__ import annotations

import math
from typing import NamedTuple

from forty2.metric_names import TEXTS, lower_is_better, metric_name
from forty2.report.metrics import Figure, shown_figure
from forty2.report.run_types import ChangeRecord, ComparisonRecord


class ShownChange(NamedTuple):
    """A change as reports show it; that of perplexity is relative to what it was."""

    metric: str
    figure: Figure
    margin: float | None
    """Largest loss that counts as none, in the unit of the figure; None: not recorded."""
    verdict: str
    p: float | None
    """p value, corrected for all metrics of the comparison."""
    is_cost: bool

    @property
    def lower_is_better(self) -> bool:
        return lower_is_better(self.metric)

    @property
    def title(self) -> str:
        """Name with the direction, where a fall is an improvement."""
        return f"{self.name} (lower is better)" if self.lower_is_better else self.name

    @property
    def name(self) -> str:
        return metric_name(self.metric)

    def written(self, value: float) -> str:
        """Write a value in the unit of the figure, with its sign."""
        return f"{value:+.1%}" if self.metric == TEXTS else f"{value:+.4f}"

    @property
    def written_margin(self) -> str:
        if self.margin is None:
            return "–"
        return f"{100 * self.margin:g}%" if self.metric == TEXTS else f"{self.margin:g}"


def shown_changes(comparison: ComparisonRecord, margin: float | None) -> list[ShownChange]:
    """List the changes of the metrics that the verdict on a stage is over.

    Args:
        margin: largest loss that counts as none, of metrics that are no cost.
    """
    own = [
        _shown(name, change, margin, change.verdict, False)
        for name, change in comparison.changes.items()
        if name not in comparison.costs
    ]
    costs = [
        _shown(name, cost.change, cost.margin, cost.verdict, True)
        for name, cost in comparison.costs.items()
    ]
    return [*own, *costs]


def _shown(
    metric: str, change: ChangeRecord, margin: float | None, verdict: str, is_cost: bool
) -> ShownChange:
    if metric == TEXTS and margin is not None:
        margin = round(math.expm1(margin), 12)
    return ShownChange(metric, shown_figure(metric, change), margin, verdict, change.p, is_cost)
