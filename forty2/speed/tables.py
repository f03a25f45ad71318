"""Formatting of results as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forty2.speed.results import GrowthCurve, StepCost, SuiteResult
from forty2.speed.workers.__main__ import Figures


def format_suite(name: str, suite: SuiteResult) -> str:
    """Format every trainer's medians, with the ratio of ours to theirs after time and memory."""
    head = f"s/{suite.unit}", "ratio", "tokens/s", "mlx GB", "ratio", "RSS GB", "ratio"
    lines = [_row(name, head)]
    for trainer, figures in suite.medians.items():
        lines.append(_row(f"  {trainer}", _cells(figures, suite.ratios.get(trainer))))
    if suite.floor is not None:
        floor = suite.floor
        lines.append(
            f"  floor {floor.seconds:.3f} s/{suite.unit}: "
            f"{floor.operations / suite.units / 1e9:,.0f} billion operations at "
            f"{floor.operations_per_s / 1e9:,.0f} billion a second; forty2 takes "
            f"{floor.ratio:.2f} times as long"
        )
    lines += [f"  {trainer} left out: {reason}" for trainer, reason in suite.left_out.items()]
    return "\n".join(lines)


def format_objectives(costs: Mapping[str, StepCost]) -> str:
    """Format what a step of each objective takes, with its ratio to the first one's."""
    lines = [_row("objective", ("s/step", "ratio", "mlx GB", "reference"))]
    for name, cost in costs.items():
        reference = "one pass" if cost.reference_pass else "none"
        cells = f"{cost.seconds:.3f}", f"{cost.ratio:.2f}", f"{cost.gb:.2f}", reference
        lines.append(_row(f"  {name}", cells))
    return "\n".join(lines)


def format_growth(growth: Mapping[str, GrowthCurve]) -> str:
    """Format the cost at each size, with the exponent of its growth from the size before."""
    lines = []
    for quantity, curve in growth.items():
        lines.append(_row(quantity, ("seconds", "exponent", "GB", "exponent")))
        for i, size in enumerate(curve.size):
            cells = [
                f"{curve.seconds[i]:.3f}",
                _exponent(curve.seconds_exponents, i),
                f"{curve.gb[i]:.2f}",
                _exponent(curve.gb_exponents, i),
            ]
            lines.append(_row(f"{size:>16,}", cells))
    return "\n".join(lines)


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:<16}" + "".join(f"{cell:>10}" for cell in cells)


def _cells(figures: Figures, ratios: Figures | None) -> list[str]:
    return [
        f"{figures.seconds:.3f}",
        "" if ratios is None else f"{ratios.seconds:.2f}",
        f"{figures.per_s:.1f}",
        f"{figures.mlx_gb:.2f}",
        "" if ratios is None else f"{ratios.mlx_gb:.2f}",
        f"{figures.process_gb:.2f}",
        "" if ratios is None else f"{ratios.process_gb:.2f}",
    ]


def _exponent(exponents: Sequence[float], index: int) -> str:
    return "" if index == 0 else f"{exponents[index - 1]:.2f}"
