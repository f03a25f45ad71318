"""Metrics as reports show them: their names, formats, units and meanings.

A run's report has a column for each metric of its stages. Reports over several seeds, of an ablation
or a sweep, have a line for each, and show leaks and perplexity where the record has their opposites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from forty2.metric_names import TEXTS, metric_name, shown_change, shown_interval
from forty2.report.axes import Axis, percent
from forty2.report.run_types import ChangeRecord

# --- a run's stages -------------------------------------------------------------------------------


class Column(NamedTuple):
    """A metric's column in a table of a run's stages."""

    title: str
    form: str
    """Format of its values."""
    meaning: str


STAGE_COLUMNS: Mapping[str, Column] = {
    "mc1": Column("MC1", ".3f", "TruthfulQA score from 0 to 1, higher is better"),
    "mc2": Column("MC2", ".3f", "the same, over all true answers"),
    "facts_right": Column("Facts", ".1%", "share of plain facts answered right"),
    "leak_rate": Column(
        "Leaks", ".1%", "share of them answered with needless hedging, lower is better"
    ),
    "preference": Column(
        "Prefers",
        ".1%",
        "share of held-out prompts whose good answer is likelier than the bad one",
    ),
    "margin": Column("Margin", "+.3f", "by how much, in nats per token; 0.69 is twice as likely"),
    "perplexity": Column("Perplexity", ".2f", "on neutral texts, lower is better"),
    "kl": Column(
        "KL",
        ".2g",
        "distance from the base model over neutral texts and good answers to built-in prompts, in nats "
        "per token; above 0.5 is far from it",
    ),
}
"""Measurements of a stage, by its field."""
HELD_OUT_COLUMNS: Mapping[str, Column] = {
    "pairs right": Column(
        "Pairs",
        ".1%",
        "share whose chosen answer gained more probability, against the base, than the rejected one; "
        "the base has 50%",
    ),
    "pair margin": Column("Margin", "+.2f", "how much more, in nats; 0.69 is twice as likely"),
    "ratings right": Column(
        "Ratings",
        ".1%",
        "share of good answers that gained probability and of bad ones that lost it; the base has "
        "50%",
    ),
    "chat loss": Column(
        "Chat loss", ".3f", "mean -ln(probability) of a token, in nats; lower is better"
    ),
    "prompts passed": Column("Passed", ".1%", "share of the eval prompts answered as expected"),
    "replies stopped": Column("Stopped", ".1%", "share of replies that ended by themselves"),
    "reply tokens": Column("Tokens", ".1f", "their mean length"),
}
"""Means over a run's held-out rows, by metric."""


def signed(change: ChangeRecord) -> str:
    """Write a change as it was recorded."""
    return f"{change.difference:+.4f}"


def interval(change: ChangeRecord) -> str:
    """Write the interval of a change as it was recorded."""
    return f"{change.low:+.4f} to {change.high:+.4f}"


# --- several seeds --------------------------------------------------------------------------------

_INTERVAL = "with 95% interval"


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a metric, and how charts and tables write its changes."""

    name: str
    """Empty: a score, a share, or a ratio."""
    values: Axis
    changes: Axis
    name_of_changes: str = "points"
    factor_of_changes: float = 100
    """Factor by which changes are multiplied in tables."""
    form_of_changes: str = "+.1f"


_SHARE = Unit(
    "",
    percent(f"share of prompts, {_INTERVAL}"),
    Axis(f"paired, percentage points, {_INTERVAL}", 100.0),
)
_SCORE = Unit(
    "",
    Axis(f"score, {_INTERVAL}", from_0_to_1=True),
    Axis(f"paired, {_INTERVAL}"),
    name_of_changes="",
    factor_of_changes=1,
    form_of_changes="+.3f",
)
"""TruthfulQA's scores lie between 0 and 1 and are no shares."""
_NATS = Unit(
    "nats",
    Axis(f"nats a token, {_INTERVAL}"),
    Axis(f"paired, nats a token, {_INTERVAL}"),
    name_of_changes="nats",
    factor_of_changes=1,
    form_of_changes="+.3f",
)
_TOKENS = Unit(
    "tokens",
    Axis(f"tokens a reply, {_INTERVAL}"),
    Axis(f"paired, tokens a reply, {_INTERVAL}"),
    name_of_changes="tokens",
    factor_of_changes=1,
)
_DIVERGENCE = Unit(
    "nats per token",
    Axis(f"nats per token, {_INTERVAL}"),
    Axis(f"nats per token, {_INTERVAL}"),
)
_PERPLEXITY = Unit(
    "",
    Axis(f"on neutral texts, {_INTERVAL}"),
    Axis(f"paired, percent of what it was, {_INTERVAL}", 100.0, "%"),
    name_of_changes="%",
)


class Metric(NamedTuple):
    """How a metric is shown over several seeds."""

    name: str
    form: str
    """Format of its values."""
    unit: Unit

    @property
    def name_of_changes(self) -> str:
        """Name with the unit of changes."""
        unit = self.unit.name_of_changes
        return f"{self.name} ({unit})" if unit else self.name


_FORMS = {
    "mc1": (".3f", _SCORE),
    "mc2": (".3f", _SCORE),
    "mc3": (".3f", _SCORE),
    TEXTS: (".2f", _PERPLEXITY),
    "KL": (".2g", _DIVERGENCE),
    "pair margin": (".2f", _NATS),
    "chat loss": (".3f", _NATS),
    "reply tokens": (".0f", _TOKENS),
}
"""Formats and units of metrics by their name in the record; the others are shares."""


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


def shown_metric(metric: str) -> Metric:
    """Return how to show a metric of the record."""
    return Metric(metric_name(metric), *_FORMS.get(metric, (".1%", _SHARE)))


def shown_score(metric: str, score: Score) -> Figure:
    """Return the figure to show for a score."""
    return Figure(*shown_interval(metric, score.value, score.low, score.high))


def shown_figure(metric: str, change: ChangeRecord) -> Figure:
    """Return the figure to show for a change; a change of perplexity is relative."""
    return Figure(*shown_change(metric, change.difference, change.low, change.high))


def written_score(metric: str, score: Score | None) -> str:
    """Write a score with its interval; without it if it is not finite, as that of one seed."""
    if score is None:
        return "–"
    figure = shown_score(metric, score)
    value, low, high = (format(x, shown_metric(metric).form) for x in figure)
    return f"{value} ({low} to {high})" if all(map(math.isfinite, figure)) else value


def written_change(metric: str, change: ChangeRecord | None) -> str:
    """Write a change with its interval and its verdict, in the unit of the metric's changes."""
    if change is None:
        return "–"
    unit = shown_metric(metric).unit
    value, low, high = (
        format(unit.factor_of_changes * x, unit.form_of_changes)
        for x in shown_figure(metric, change)
    )
    return f"{value} ({low} to {high}), {change.verdict}"
