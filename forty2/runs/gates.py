"""Gates at the end of a phase: the shares of its eval prompts that must pass, by bucket.

They are judged by the evaluation of the adapter that the phase hands on, so nothing is asked twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forty2.benchmark.eval_prompt_files import ALL, load_eval_prompts
from forty2.benchmark.stats import Interval, wilson
from forty2.errors import RecipeError
from forty2.files import JsonObject, read_json, write_json
from forty2.training.objectives.phase import Phase

if TYPE_CHECKING:  # `inputs` checks gates
    from forty2.runs.context import RunContext
    from forty2.runs.inputs import PhaseInput

GATES = "gates.json"
"""File of a run with the results of the gates of each finished phase, by the phase's name."""
REPEATS = 3
"""Times that a phase whose gate fails is trained for as many steps again."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """One bucket of eval prompts against its gate."""

    bucket: str
    least: float
    """Smallest share that must pass."""
    passed: int
    """Prompts answered as expected."""
    n: int

    @property
    def share(self) -> float:
        return self.passed / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's 95% interval of the share."""
        return wilson(self.passed, self.n)

    @property
    def reached(self) -> bool:
        return self.share >= self.least

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.bucket}: {self.passed} of {self.n} eval prompts passed ({self.share:.1%}, 95% "
            f"interval {low:.1%} to {high:.1%}), at least {self.least:.1%} should"
        )

    def to_json(self) -> JsonObject:
        return {
            "least": self.least,
            "share": self.share,
            "n": self.n,
            **self.interval._asdict(),
            "passed": self.reached,
        }


def check_gate(name: str, phase: Phase) -> None:
    """Refuse a gate over a bucket without prompts, and a phase that cannot be repeated.

    Raises:
        RecipeError: says which.
        BenchmarkError: the file of prompts is unusable.
    """
    if phase.gate is None:
        return
    counts = _prompts_by_bucket(phase)
    for bucket in phase.gate:
        if bucket not in counts:
            raise RecipeError(
                f"phases.{name}.gate: {bucket}: {phase.eval_prompts} has no prompt in this bucket; "
                f"there are {', '.join(counts)}"
            )
    if phase.on_fail == "repeat" and phase.course_depends_on_length:
        raise RecipeError(
            f"phases.{name}.on_fail: repeat goes on after the last step, at which the weight of kl has "
            "come to its end; leave out kl.to"
        )


def longest(phase: Phase) -> int:
    """Return how many times its steps a phase may take at most."""
    return 1 + REPEATS if phase.on_fail == "repeat" else 1


def failed_buckets(phase: Phase, valid: Mapping[str, float]) -> list[str]:
    """Return the buckets of a phase whose share is below their gate.

    Args:
        valid: metrics of an evaluation.
    """
    gate = phase.gate or {}
    return [name for name, least in gate.items() if valid.get(_metric(name), 0.0) < least]


def gate_results(phase: Phase, valid: Mapping[str, float]) -> Iterator[GateResult]:
    """Yield the result of each gate of a phase.

    Args:
        valid: metrics of an evaluation.
    """
    counts = _prompts_by_bucket(phase) if phase.gate is not None else {}
    for bucket, least in (phase.gate or {}).items():
        n = counts[bucket]
        yield GateResult(bucket, least, round(valid.get(_metric(bucket), 0.0) * n), n)


def in_words(phase: Phase, valid: Mapping[str, float]) -> str:
    """Write the results of the gates that failed."""
    failed = (str(one) for one in gate_results(phase, valid) if not one.reached)
    return f"gate failed: {'; '.join(failed)}"


def judge_gates(run: RunContext, phase: PhaseInput) -> str | None:
    """Judge the gates of a finished phase, and record the results.

    The gates are those of the recipe as it is now: they may have changed since the phase was trained.

    Returns:
        Why the run ends here; None: it goes on.
    """
    settings, valid = phase.settings, read_json(run.path / phase.label / "phase.json")["valid"]
    if settings.gate is None:
        return None
    if run.group.first:
        file = run.path / GATES
        before = read_json(file) if file.exists() else {}
        results = {gate.bucket: gate.to_json() for gate in gate_results(settings, valid)}
        write_json(file, {**before, phase.name: results})
    if settings.on_fail == "continue" or not failed_buckets(settings, valid):
        return None
    if not run.group.first:
        return "a gate failed"
    return (
        f"{phase.name}: {in_words(settings, valid)}; the phase is kept in {run.path / phase.label}. Give "
        f"it more steps, lower phases.{phase.name}.gate or set phases.{phase.name}.on_fail to continue, "
        "then go on with `resume=True`"
    )


def _metric(bucket: str) -> str:
    """Return the name of a bucket's share among the metrics of an evaluation."""
    return "passed" if bucket == ALL else f"passed_{bucket}"


def _prompts_by_bucket(phase: Phase) -> Counter[str]:
    assert phase.eval_prompts is not None
    items = load_eval_prompts(phase.eval_prompts).items
    return Counter([*(item.bucket for item in items), *[ALL] * len(items)])
