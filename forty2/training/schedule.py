"""The course of a phase: the rows of each step, its learning rate, when to evaluate and to save.

All of it is a pure function of the recipe, the rows' lengths and weights, and the seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from forty2.training.batches import POOL, Extent, Order
from forty2.training.objectives.phase import Phase


@dataclass(frozen=True)
class PhasePlan:
    """The course of a phase, step by step; steps are numbered from 1."""

    phase: Phase
    order: Order
    """The rows of each batch."""
    steps: int
    """Optimizer steps."""
    seed: int
    """Seed of the order and of dropout."""
    extent: Extent
    """Batches of all steps together; the last step may have fewer than the others."""

    @property
    def batches(self) -> int:
        """Batches of all steps together."""
        return self.extent.batches

    @property
    def rows_used(self) -> list[int]:
        """Indices of the rows that the batches may use, each once, in file order."""
        return self.order.rows_seen(self.batches)

    @property
    def passes(self) -> float:
        """Average number of times that the batches use each of `rows_used`."""
        return max(1.0, self.batches / self.order.batches_per_epoch)

    @property
    def evaluations(self) -> int:
        """Evaluations in all, with the one before the first step."""
        return 1 + sum(map(self.evaluates_after, range(1, self.steps + 1)))

    @property
    def saves(self) -> int:
        """Checkpoints in all."""
        return sum(map(self.saves_after, range(1, self.steps + 1)))

    def exposures(self, steps: int) -> float:
        """Compute how often the first `steps` steps use each row of the file, on average.

        The rows of the steps' batches are counted.
        """
        batches = min(steps * self.phase.accumulate, self.batches)
        drawn = self.order.rows_drawn(batches)
        if batches == self.batches and self.extent.last_rows is not None:
            drawn += self.extent.last_rows - len(self.order.batch(batches - 1))
        return drawn / self.order.rows

    def unseen(self) -> int:
        """Count the rows of the file that no step uses."""
        seen: set[int] = set()
        for step in range(1, self.steps + 1):
            seen.update(*self.step_rows(step))
            if len(seen) == self.order.rows:
                break
        return self.order.rows - len(seen)

    def step_rows(self, step: int) -> list[list[int]]:
        """Return the row indices of each of a step's batches."""
        first = (step - 1) * self.phase.accumulate
        end = min(first + self.phase.accumulate, self.batches)
        rows = [self.order.batch(index) for index in range(first, end)]
        if end == self.batches and rows:
            rows[-1] = rows[-1][: self.extent.last_rows]
        return rows

    def evaluates_after(self, step: int) -> bool:
        """Return whether an evaluation is due after this step."""
        return _is_due(self.phase.eval_every_steps, step, self.steps)

    def saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step."""
        return _is_due(self.phase.save_every_steps, step, self.steps)


def plan_phase(
    phase: Phase,
    lengths: Sequence[int],
    weights: Sequence[float],
    seed: int,
    *,
    whole_epochs: bool = True,
) -> PhasePlan:
    """Plan a phase over the rows of a file.

    Args:
        lengths: (rows,) tokens of each row.
        weights: (rows,) average uses of each row per epoch.
        seed: of the order and of dropout.
        whole_epochs: false for a run of a release that rounded epochs to steps, and so may have
            ended within one.
    """
    pool = POOL if phase.sorts_batches else 1
    order = Order(lengths, phase.batch_size, seed, weights, phase.batch_tokens, pool)
    steps = phase.steps
    if steps is None:
        assert phase.epochs is not None
        if whole_epochs:
            extent = order.batches_of(phase.epochs)
            return PhasePlan(phase, order, -(-extent.batches // phase.accumulate), seed, extent)
        steps = max(1, round(phase.epochs * order.epoch_length / phase.accumulate))
    return PhasePlan(phase, order, steps, seed, Extent(steps * phase.accumulate))


def phase_seed(seed: int, number: int) -> int:
    """Return the seed of a phase, from the recipe's seed and its place in the recipe, from 1."""
    return seed + 1000 * number


def shared_steps(one: PhasePlan, other: PhasePlan) -> int:
    """Count the first steps that two plans of a phase, of different lengths, take alike.

    Evaluations and checkpoints are compared where they have a say in training. The learning rate
    is not: it must be constant after warm-up.
    """
    phase = one.phase
    lines = phase.red_lines
    evaluates = phase.best or phase.until or {lines.validation, lines.replies} != {"warn"}
    saves = "back" in dataclasses.asdict(lines).values()
    end = min(one.steps, other.steps)
    if one.step_rows(end) != other.step_rows(end):  # cut at the end of the shorter one
        end -= 1
    for step in range(1, end + 1):
        if (evaluates and one.evaluates_after(step) != other.evaluates_after(step)) or (
            saves and one.saves_after(step) != other.saves_after(step)
        ):
            return step - 1
    return end


def longer(plan: PhasePlan) -> PhasePlan:
    """Return the plan of the same phase with twice as many steps."""
    steps = 2 * plan.steps
    return dataclasses.replace(plan, steps=steps, extent=Extent(steps * plan.phase.accumulate))


def learning_rate(phase: Phase, step: int, steps: int) -> float:
    """Compute the learning rate of a step, from 1 to `steps`: linear warm-up, then the schedule."""
    if step <= phase.warmup_steps:
        return phase.lr * step / phase.warmup_steps
    if phase.schedule == "constant":
        return phase.lr
    progress = (step - phase.warmup_steps - 1) / max(1, steps - phase.warmup_steps)
    if phase.schedule == "linear":
        return phase.lr * (1 - progress)
    return phase.lr * 0.5 * (1 + math.cos(math.pi * progress))


def _is_due(every: int | None, step: int, steps: int) -> bool:
    """Return whether something done every `every` steps is due after `step`; None: five times."""
    return step == steps or step % (every or max(1, steps // 5)) == 0
