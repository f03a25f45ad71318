"""Coverage: how often a phase trains on each supervised token, its own and those that it replays.

MyPT's operators were best at 2.3 passes over the supervised tokens, and garbage beyond 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from forty2.runs.phase_data import PhaseData
from forty2.text.rows import supervised_tokens
from forty2.training.batches import Extent
from forty2.training.objectives.phase import Phase
from forty2.training.schedule import PhasePlan

MOST_PASSES = 3.0
"""Most passes without a warning in a stage of a curriculum: a phase that replays rows or has a gate."""
MOST_ELSEWHERE = 10.0
"""Most passes without a warning in any other phase: with few rows, three are often not enough."""
OWN = "its own rows"
"""Name of the rows that a phase does not replay."""


def coverage_of(plan: PhasePlan, data: PhaseData, steps: int | None = None) -> dict[str, float]:
    """Compute a phase's passes over the supervised tokens of its own rows, and of each replayed source.

    A row counts with its uses times its supervised tokens. Rows that a curriculum leaves out do not
    count.

    Args:
        steps: steps that were taken; None: all.
    """
    if steps is not None and steps < plan.steps:
        extent = Extent(steps * plan.phase.accumulate)
        plan = dataclasses.replace(plan, steps=steps, extent=extent)
    rows = data.train.rows
    tokens = _supervised(rows)
    trained = np.zeros(len(rows), np.int64)
    for stage in plan.stages():
        trained[: len(stage.uses)] += tokens[: len(stage.uses)] * stage.uses
    counted = np.zeros(len(rows), np.bool_)
    counted[plan.order.passes[-1]] = True
    replayed, end = {}, len(rows)
    for source in reversed(data.replayed):
        replayed[source.name] = slice(end - source.rows, end)
        end -= source.rows
    parts = {OWN: slice(0, end), **dict(reversed(replayed.items()))}
    return {
        name: float(trained[part].sum() / max(1, tokens[part][counted[part]].sum()))
        for name, part in parts.items()
    }


def coverage_warnings(phase: Phase, coverage: Mapping[str, float]) -> list[str]:
    """List the rows whose supervised tokens a phase trains on too often."""
    most = MOST_PASSES if phase.replay or phase.gate else MOST_ELSEWHERE
    return [
        f"trains {passes:.1f} times on each supervised token of {name}; beyond {most:g} times, expect "
        "them to be memorized"
        for name, passes in coverage.items()
        if passes > most
    ]


def _supervised(rows: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Return the supervised tokens of each row; prepared rows can count them all at once."""
    counts = getattr(rows, "supervised", None)
    return np.array(
        [supervised_tokens(row) for row in rows] if counts is None else counts, np.int64
    )
