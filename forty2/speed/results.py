"""Results of a comparison, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from forty2.files import JsonObject
from forty2.speed.workers.__main__ import Figures, Measurement


@dataclass(frozen=True)
class Floor:
    """The least time that a suite can take on this machine."""

    operations: int
    """Operations that the whole suite needs."""
    operations_per_s: float
    """The machine's rate on matrix products of the model's sizes, measured in the same turns."""
    seconds: float
    """Seconds per unit."""
    ratio: float
    """Our seconds divided by those of the floor."""


@dataclass(frozen=True)
class SuiteResult:
    """One suite, measured for every trainer."""

    unit: str
    """Unit of the times: "batch" or "question"."""
    units: int
    """Units in the suite."""
    tokens: int
    source: str
    """Source of the rows."""
    medians: Mapping[str, Figures]
    """Medians by trainer, ours as `forty2`."""
    ratios: Mapping[str, Figures]
    """Our medians divided by another trainer's, by that trainer."""
    left_out: Mapping[str, str]
    """Reason that a trainer could not be measured, by its name."""
    runs: Mapping[str, Sequence[Measurement]]
    """Every measurement, by trainer; those of the machine's rate as `rate`."""
    floor: Floor | None = None
    """Least time; None: the model's operations cannot be counted."""


@dataclass(frozen=True)
class GrowthCurve:
    """Our cost at several sizes of one quantity."""

    size: Sequence[int]
    seconds: Sequence[float]
    gb: Sequence[float]
    seconds_exponents: Sequence[float]
    """Between neighbouring sizes: 1 is proportional growth, 2 is square."""
    gb_exponents: Sequence[float]


@dataclass(frozen=True)
class StepCost:
    """The cost of an objective's steps."""

    seconds: float
    """A step: processor time on a CPU, wall-clock time on a GPU."""
    ratio: float
    """Of the seconds to those of DPO's sigmoid loss; the median over the rounds."""
    gb: float
    """Peak of mlx's memory."""
    reference_pass: bool
    """Whether the objective also needs a pass over all rows before the first step."""


@dataclass(frozen=True)
class ComparisonResult:
    """Everything that `compare_trainers` measured, and the conditions."""

    machine: Mapping[str, str]
    """`forty2.machine.facts()`."""
    model: str
    precision: str
    """mlx's name of the weights' type."""
    rows: int
    rounds: int
    batch_size: int
    suites: Mapping[str, SuiteResult] = field(default_factory=dict)
    objectives: Mapping[str, StepCost] = field(default_factory=dict)
    """Costs of a step by objective over pairs; empty: not measured."""
    growth: Mapping[str, GrowthCurve] = field(default_factory=dict)
    """Curves by the quantity that grows; empty: not measured."""

    def as_json(self) -> JsonObject:
        """Return the result as a JSON object, without what was not measured."""
        value = asdict(self)
        for suite in value["suites"].values():
            if suite["floor"] is None:
                del suite["floor"]
        for part in ("objectives", "growth"):
            if not value[part]:
                del value[part]
        return value
