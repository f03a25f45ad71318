"""The course of a phase: the rows of each step, its learning rate, when to evaluate and to save.

All of it is a pure function of the recipe, the rows' lengths and weights, and the seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.errors import RecipeError
from forty2.training.batches import POOL, Extent, Order
from forty2.training.objectives.phase import Curriculum, Phase


class StageCourse(NamedTuple):
    """The course of one stage of a curriculum, or of a phase without stages."""

    rows: int
    """Rows that it uses."""
    first_step: int
    last_step: int
    uses: npt.NDArray[np.int64]
    """(rows of the file,) number of times that its batches hold each row."""


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
        if len(self.order.passes) > 1:
            return max(1.0, self.order.rows_drawn(self.batches) / len(self.rows_used))
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
        """Compute how often the first `steps` steps use each row, on average.

        The rows of the steps' batches are counted, against the rows of the file that are not left out.
        """
        batches = min(steps * self.phase.accumulate, self.batches)
        drawn = self.order.rows_drawn(batches)
        if batches == self.batches and self.extent.last_rows is not None:
            drawn += self.extent.last_rows - len(self.order.batch(batches - 1))
        return drawn / self.order.rows

    def unseen(self) -> int:
        """Count the rows that no step uses, beside those that the curriculum leaves out."""
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

    def stages(self) -> list[StageCourse]:
        """Count what the stages of the curriculum use; a phase without stages has one."""
        order, per_step = self.order, self.phase.accumulate
        rows = 1 + max(int(one.max()) for one in order.passes)
        batches: list[list[int]] = [[] for _ in order.passes]
        for index in range(self.batches):
            batches[order.pass_of(index)].append(index)
        found = []
        for stage, indices in enumerate(batches):
            uses = np.zeros(rows, np.int64)
            for index in indices:
                cut = self.extent.last_rows if index == self.batches - 1 else None
                np.add.at(uses, order.batch(index)[:cut], 1)
            first, last = order.first_batch(stage), indices[-1] if indices else -1
            found.append(
                StageCourse(
                    len(order.passes[stage]), first // per_step + 1, last // per_step + 1, uses
                )
            )
        return found

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
    difficulty: Sequence[float] | None = None,
    strata: Sequence[Sequence[str]] | None = None,
    whole_epochs: bool = True,
) -> PhasePlan:
    """Plan a phase over the rows of a file.

    Args:
        lengths: (rows,) tokens of each row.
        weights: (rows,) average uses of each row per epoch.
        seed: of the order and of dropout.
        difficulty: (rows,) how hard each row is, larger for harder ones; None: it is not known yet, so
            the counts are right and the rows are not.
        strata: (rows, keys) values over which batches are even; None: they are drawn at random.
        whole_epochs: false for a run of a release that rounded epochs to steps, and so may have
            ended within one.

    Raises:
        RecipeError: the curriculum leaves a stage without rows of its own, or without a step.
    """
    curriculum, passes, places = phase.curriculum, None, None
    if curriculum is not None:
        harder = _from_easy_to_hard(difficulty or [0.0] * len(lengths), seed)
        passes = _rows_of_passes(curriculum, harder)
        if curriculum.sorts_passes:
            places = np.empty(len(lengths), np.int64)
            places[harder] = np.arange(len(lengths))
    numbers = None
    if strata is not None:
        columns = [
            np.unique(values, return_inverse=True)[1] for values in zip(*strata, strict=True)
        ]
        numbers = np.stack(columns, axis=1).astype(np.int64)
    sorts = phase.sorts_batches and places is None and numbers is None
    order = Order(
        lengths,
        phase.batch_size,
        seed,
        weights,
        phase.batch_tokens,
        POOL if sorts else 1,
        passes=passes,
        places=places,
        strata=numbers,
    )
    plan = _of_length(phase, order, seed, whole_epochs)
    begins = order.first_batch(len(order.passes) - 1)
    if begins >= plan.batches:
        step = begins // phase.accumulate + 1
        raise RecipeError(
            f"curriculum.stages: the last of {len(order.passes)} stages begins after "
            f"{len(order.passes) - 1} passes, with step {step}, and the phase ends before; give more "
            f"than {len(order.passes) - 1} epochs, or {step} steps or more, or fewer stages"
        )
    return plan


def _of_length(phase: Phase, order: Order, seed: int, whole_epochs: bool) -> PhasePlan:
    """Plan a phase over batches in this order, as long as its `steps` or `epochs` say."""
    steps = phase.steps
    if steps is None:
        assert phase.epochs is not None
        if whole_epochs:
            extent = order.batches_of(phase.epochs)
            return PhasePlan(phase, order, -(-extent.batches // phase.accumulate), seed, extent)
        steps = max(1, round(phase.epochs * order.epoch_length / phase.accumulate))
    return PhasePlan(phase, order, steps, seed, Extent(steps * phase.accumulate))


def _from_easy_to_hard(difficulty: Sequence[float], seed: int) -> npt.NDArray[np.int64]:
    """Order row indices by difficulty; equally hard ones at random, since files are often grouped."""
    order = np.random.default_rng([seed, len(difficulty), 1]).permutation(len(difficulty))
    return order[np.argsort(np.asarray(difficulty, float)[order], kind="stable")]


def _rows_of_passes(
    curriculum: Curriculum, harder: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each pass, in file order.

    Args:
        harder: indices of all rows, from easy to hard.
    """
    rows, share = len(harder), curriculum.drop_hardest
    left_out = round(share * rows)
    if left_out == rows:
        raise RecipeError(
            f"curriculum.drop_hardest: {share:g} of {rows:,} rows leaves none; lower it"
        )
    if share and not left_out:
        raise RecipeError(
            f"curriculum.drop_hardest: {share:g} of {rows:,} rows is none; give {1 / rows:.2g} or more"
        )
    kept = harder[: rows - left_out]
    stages = curriculum.stages or [1.0]
    sizes = [max(1, round(stage * len(kept))) for stage in stages]
    for (one, size), (other, larger) in itertools.pairwise(zip(stages, sizes, strict=True)):
        if one != other and size == larger:
            raise RecipeError(
                f"curriculum.stages: {other:g} of {len(kept):,} rows adds none to {one:g} of them; "
                "remove one of the two"
            )
    return [np.sort(kept[:size]) for size in sizes]


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


def longer(plan: PhasePlan, times: int = 2) -> PhasePlan:
    """Return the plan of the same phase with this many times as many steps."""
    if times == 1:
        return plan
    steps = times * plan.steps
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
