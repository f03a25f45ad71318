"""Axes of charts: quantities with their units, round ticks, and how values are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

SHARE_TICKS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
"""Ticks of an axis that shows all shares."""
_LARGEST = 1e30
"""Values beyond this are left out like infinite ones: the axes' arithmetic would overflow."""


class Axis(NamedTuple):
    """A quantity with its unit and the format of its values."""

    label: str = ""
    factor: float = 1.0
    """Factor by which values are multiplied when they are written."""
    suffix: str = ""
    from_0_to_1: bool = False
    """Whether values lie in this range: a line chart shows all of it, other charts no more."""


PLAIN = Axis()
STEPS = Axis("step")


def percent(label: str) -> Axis:
    """Return an axis of shares, written from 0% to 100%."""
    return Axis(label, 100.0, "%", from_0_to_1=True)


def is_drawable(*values: float) -> bool:
    """Return whether these are finite, and small enough for the axes' arithmetic."""
    return all(math.isfinite(value) and abs(value) < _LARGEST for value in values)


def round_ticks(low: float, high: float, axis: Axis) -> list[float]:
    """Choose round values at equal distances, from at or below `low` to at or above `high`."""
    from matplotlib.ticker import MaxNLocator

    if high <= low:
        room = abs(low) * 0.1 or 1.0
        low, high = 0.0 if 0 <= low < room else low - room, high + room
    if axis.from_0_to_1:
        low, high = max(0.0, low), min(1.0, high)
    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    return [float(tick) for tick in locator.tick_values(low, high)]


def whole_ticks(low: float, high: float) -> list[float]:
    """Choose whole numbers at equal distances from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True)
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]


def writer(
    ticks: Sequence[float], axis: Axis, change: bool = False, *, more: int = 0
) -> Callable[[float], str]:
    """Return a function that writes values of an axis, with as many decimals as its ticks need.

    Args:
        change: whether values, except zero, have a sign.
        more: decimals beyond those of the ticks.
    """
    scaled = [tick * axis.factor for tick in ticks]
    exact = 1e-6 * max(map(abs, scaled), default=0.0)
    needed = (n for n in range(5) if all(abs(round(tick, n) - tick) <= exact for tick in scaled))
    decimals = next(needed, None)
    form = f",.{decimals + more}f" if decimals is not None and exact < 1 else f".{3 + more}g"

    def write(value: float) -> str:
        value = value * axis.factor + 0.0  # the sum turns -0 into 0
        text = f"{value:{'+' if change and value else ''}{form}}"
        return text + axis.suffix

    return write
