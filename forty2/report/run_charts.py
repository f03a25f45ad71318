"""Charts of a run's report: the change from the base model, training curves, and TruthfulQA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from forty2.metric_names import TEXTS, metric_name
from forty2.report.axes import Axis, percent
from forty2.report.charts import Chart, Point, change_bars, interval_chart, line_chart
from forty2.report.run_changes import ShownChange, shown_changes
from forty2.report.run_types import LogLine, Run, StageRecord

GOOD_F1 = 0.8
"""Smallest F1 of a detector at which a figure stands without a caution, as in `benchmark.reply_style`."""
_ENDS = (("", ""), (", lower end", "_low"), (", upper end", "_high"))
"""A figure and the ends of its 95% interval: words, and the ending of the key in the log."""
_SERIES: tuple[tuple[str, Axis, Mapping[str, str]], ...] = (
    (
        "Loss",
        Axis("nats"),
        {"training": "loss", "validation": "valid_loss", "held-out strata": "valid_hold_out_loss"},
    ),
    (
        "Margin",
        Axis("reward of the chosen response minus the rejected one's"),
        {"training": "margin", "validation": "valid_margin"},
    ),
    (
        "Rewards",
        Axis("β times the log-probability ratio to the reference"),
        {"chosen": "chosen_rewards", "rejected": "rejected_rewards"},
    ),
    (
        "Pair accuracy",
        percent("share of pairs whose chosen response has the higher reward"),
        {
            "training": "accuracy",
            "validation": "valid_accuracy",
            "held-out strata": "valid_hold_out_accuracy",
        },
    ),
    (
        "KL from the phase's start",
        Axis("nats per token, on rows of the phase"),
        {"training": "kl", "validation": "valid_kl"},
    ),
    (
        "KL from the base on neutral text",
        Axis("nats per token, on a few of the texts alone"),
        {"drift": "drift_kl"},
    ),
    ("Eval prompts passed", percent("share answered as expected"), {"passed": "valid_passed"}),
    (
        "Spiral score of replies",
        Axis("dialectic moves per 100 tokens"),
        {f"spiral score{end}": f"valid_spiral_score{key}" for end, key in _ENDS},
    ),
    (
        "Subtlety of replies",
        percent("share of implicit stances among all"),
        {f"subtlety{end}": f"valid_subtlety{key}" for end, key in _ENDS},
    ),
    ("Gradient norm", Axis("before clipping"), {"gradient norm": "grad_norm"}),
)
"""Charts of a phase: title, axis, and the logged metric by the name of its line."""
_OWN_CHARTS: Mapping[str, tuple[str, Axis]] = {
    "chat loss": (
        "Change in the loss on held-out chats",
        Axis("nats a token, left of the line: better than before; 95% interval"),
    ),
    TEXTS: (
        "Change in the perplexity of neutral text",
        Axis("of what it was, left of the line: better than before; 95% interval", 100.0, "%"),
    ),
}
"""Metrics whose changes have a chart of their own: its title and its axis."""
_BUCKET = "valid_passed_"
"""Beginning of the key in the log with the share of a bucket."""
_MOST_BUCKETS = 6
"""Most lines of a chart that can be told apart."""
_EVALUATIONS = (
    "validation",
    "held-out strata",
    "passed",
    "drift",
    "spiral score",
    "subtlety",
)
"""Lines of evaluations, which have a dot at each."""


def change_charts(run: Run) -> list[Chart]:
    """Draw every paired change of the last stage from the base model, benefits and costs, with intervals.

    The loss on held-out chats and the perplexity have other units than the shares: each has a chart.
    """
    if not run.comparisons or run.summary is None:
        return []
    last = run.comparisons[-1]
    drawn: dict[str, list[Point]] = {"": []}
    for change in shown_changes(last, run.summary.margin):
        chart = change.metric if change.metric in _OWN_CHARTS else ""
        drawn.setdefault(chart, []).append(_changed(change))
    charts = [
        interval_chart(
            *(f"Change from the base model to {last.stage}", drawn.pop("")),
            axis=Axis("right of the line: higher than before; 95% interval"),
            change=True,
        )
    ]
    for metric, (title, axis) in _OWN_CHARTS.items():
        charts.append(interval_chart(title, drawn.get(metric, []), axis=axis, change=True))
    return [chart for chart in charts if chart is not None]


def _changed(change: ShownChange) -> Point:
    """Return a change to draw; the margin is marked of what counts as a cost."""
    margin = change.margin if change.is_cost else None
    if margin is not None and not change.lower_is_better:
        margin = -margin
    return Point(change.name, *change.figure, margin=margin, worse=change.verdict == "tax")


def curves_by_phase(run: Run) -> dict[str, list[Chart]]:
    """Draw the charts of the training, by phase; the step of a finished phase's adapter is marked."""
    taken = {phase.name: phase.adapter_step for phase in run.phases}
    charts = {
        phase: _curves([line for line in run.log if line.phase == phase], taken.get(phase))
        for phase in dict.fromkeys(line.phase for line in run.log)
    }
    return {phase: drawn for phase, drawn in charts.items() if drawn}


def truthfulqa_charts(run: Run) -> list[Chart]:
    """Draw MC1 and MC2 of each stage, their changes, the calibration and the categories."""
    of_scores = Axis("score with 95% interval", from_0_to_1=True)
    of_changes = Axis("paired change with 95% interval")
    charts: list[Chart | None] = []
    for name in ("mc1", "mc2"):
        points = [point for stage in run.stages if (point := _point(stage, name)) is not None]
        charts.append(interval_chart(metric_name(name), points, axis=of_scores))
        changes = [
            Point(comparison.stage, change.difference, change.low, change.high)
            for comparison in run.comparisons
            if (change := comparison.changes.get(name)) is not None
        ]
        title = f"{metric_name(name)}: change from the base model"
        charts.append(interval_chart(title, changes, axis=of_changes, change=True))
    charts.append(_calibration(run.stages))
    if run.comparisons:
        last = run.comparisons[-1]
        by_category = sorted(last.categories.items(), key=lambda item: -item[1])
        axis = Axis(f"mean change from base to {last.stage}; few questions each")
        charts.append(change_bars("MC2 by category of questions", by_category, axis=axis))
    return [chart for chart in charts if chart is not None]


def _point(stage: StageRecord, name: str) -> Point | None:
    """Return a stage's score with its 95% interval by the normal approximation, cut to 0 to 1."""
    value, stderr = (
        (stage.mc1, stage.mc1_stderr) if name == "mc1" else (stage.mc2, stage.mc2_stderr)
    )
    if value is None:
        return None
    reach = 1.96 * (stderr or 0.0)
    return Point(stage.name, value, max(0.0, value - reach), min(1.0, value + reach))


def _calibration(stages: Sequence[StageRecord]) -> Chart | None:
    """Draw accuracy against confidence, of the first stage and of the last."""
    measured = [(stage.name, stage.calibration) for stage in stages if stage.calibration]
    return line_chart(
        "Calibration of MC1",
        {
            f"{name} (calibration error {calibration.error:.2f})": [
                (group.confidence, group.accuracy) for group in calibration.bins
            ]
            for name, calibration in (measured[:1] + measured[1:][-1:])
        },
        x=percent("confidence in the first choice"),
        y=percent("how often the model's first choice is right"),
        diagonal="ideal",
    )


def _weakness(keys: Iterable[str], lines: Sequence[LogLine]) -> str:
    """Say how weak the detector is that these metrics rest on; "": there is none, or it is good."""
    f1 = [
        line.values[name] for key in keys for line in lines if (name := f"{key}_f1") in line.values
    ]
    weak = f1 and min(f1) < GOOD_F1
    return f" (weak detector: F1 {min(f1):.2f} on held-out labels)" if weak else ""


def _curves(lines: Sequence[LogLine], adapter_step: int | None) -> list[Chart]:
    """Draw the charts of one phase's metrics over its steps."""
    mark = None if adapter_step is None else (f"adapter of step {adapter_step:,}", adapter_step)
    charts = [
        line_chart(
            title + _weakness(metrics.values(), lines),
            {
                name: [(line.step, line.values[key]) for line in lines if key in line.values]
                for name, key in metrics.items()
            },
            y=axis,
            dotted=_EVALUATIONS,
            mark=mark,
        )
        for title, axis, metrics in _SERIES
    ]
    charts.append(_buckets(lines, mark))
    return [chart for chart in charts if chart is not None]


def _buckets(lines: Sequence[LogLine], mark: tuple[str, float] | None) -> Chart | None:
    """Draw the share of eval prompts that passed by bucket; None: there is one, or too many to tell apart."""
    names = dict.fromkeys(key for line in lines for key in line.values if key.startswith(_BUCKET))
    if not 2 <= len(names) <= _MOST_BUCKETS:
        return None
    series = {
        name.removeprefix(_BUCKET): [
            (line.step, line.values[name]) for line in lines if name in line.values
        ]
        for name in names
    }
    title, axis = "Eval prompts by bucket", percent("share answered as expected")
    return line_chart(title, series, y=axis, dotted=[*series], mark=mark)
