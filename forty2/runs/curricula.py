"""The forecast of a phase whose rows are ordered or divided: uses by stage and by stratum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forty2.data.strata import Cell
from forty2.runs.phase_data import PhaseData
from forty2.training.objectives.phase import REFERENCE_MARGIN
from forty2.training.schedule import PhasePlan

_MOST_STRATA = 60
"""Most strata that are listed."""


class StageForecast(NamedTuple):
    """One stage of a curriculum; a phase without stages is one."""

    rows: int
    """Rows that it uses, easier ones of the stages before among them."""
    first_step: int
    last_step: int
    drawn: int
    """Rows in its batches, repeats included."""


class CurriculumForecast(NamedTuple):
    """The use of a phase's rows."""

    order: str
    """The order in words; "": rows are not ordered."""
    left_out: int
    """Hardest rows, which are never used."""
    stages: tuple[StageForecast, ...]
    keys: tuple[str, ...]
    """Keys of the strata; empty: rows are not divided."""
    strata: dict[Cell, tuple[int, ...]]
    """Rows of each stratum in the file, then the rows drawn from it in each stage. Empty where they are
    not divided, and where the order is not known before the phase begins."""

    def __str__(self) -> str:
        head = f"rows {self.order}" if self.order else "rows in random order"
        if self.left_out:
            head += f"; the hardest {self.left_out} are left out"
        lines = [head, f"{'stage':<8}{'rows':>7}{'steps':>12}{'drawn':>8}{'seen':>8}"]
        for number, stage in enumerate(self.stages, 1):
            steps = f"{stage.first_step}-{stage.last_step}"
            seen = stage.drawn / stage.rows
            lines.append(f"{number:<8}{stage.rows:>7}{steps:>12}{stage.drawn:>8}{seen:>7.2f}x")
        if not self.keys:
            return "\n".join(lines)
        named = "/".join(self.keys)
        if not self.strata:
            return "\n".join([*lines, f"by {named}: known when the phase begins"])
        width = max(len(named), *(len("/".join(cell)) for cell in self.strata)) + 2
        stages = range(1, len(self.stages) + 1)
        drawn = (
            "".join(f"{f'stage {n}':>9}" for n in stages) if len(stages) > 1 else f"{'drawn':>9}"
        )
        lines.append(f"{named:<{width}}{'rows':>6}{drawn}")
        for cell, (rows, *uses) in list(self.strata.items())[:_MOST_STRATA]:
            lines.append(f"{'/'.join(cell):<{width}}{rows:>6}" + "".join(f"{n:>9}" for n in uses))
        if len(self.strata) > _MOST_STRATA:
            lines.append(f"and {len(self.strata) - _MOST_STRATA:,} more strata")
        return "\n".join(lines)


def forecast_curriculum(plan: PhasePlan, data: PhaseData) -> CurriculumForecast | None:
    """Count the uses of a phase's rows by stage and stratum; None: they are not ordered or divided."""
    curriculum, keys = plan.phase.curriculum, tuple(plan.phase.stratify or ())
    if curriculum is None and not keys:
        return None
    courses = plan.stages()
    stages = tuple(
        StageForecast(course.rows, course.first_step, course.last_step, int(course.uses.sum()))
        for course in courses
    )
    order, left_out, known = "", 0, True
    if curriculum is not None:
        left_out = len(data.train.rows) - plan.order.rows
        known = curriculum.by != REFERENCE_MARGIN
        kind = "from easy to hard in every pass" if curriculum.sorts_passes else "in random order"
        order = f"{kind}, {'easy ones first, ' if curriculum.stages else ''}by {curriculum.by}"
    strata: dict[Cell, tuple[int, ...]] = {}
    if data.strata is not None and known:
        cells = sorted(set(data.strata))
        number = {cell: n for n, cell in enumerate(cells)}
        of_rows = np.array([number[cell] for cell in data.strata])
        counts = [np.bincount(of_rows, minlength=len(cells))]
        counts += [
            np.bincount(of_rows[: len(course.uses)], course.uses, len(cells)).astype(int)
            for course in courses
        ]
        columns = np.stack(counts, axis=1).tolist()
        strata = {cell: tuple(row) for cell, row in zip(cells, columns, strict=True)}
    return CurriculumForecast(order, left_out, stages, keys, strata)
