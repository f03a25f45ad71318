"""The time that a run will take, estimated from a few of its own batches and questions.

The real model computes the real rows with the settings of the recipe; times are then multiplied by the
number of tokens, evaluations and questions. Steps are taken with a learning rate of zero, so nothing
is trained.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.replies import SEVERAL
from forty2.benchmark.runner import measure
from forty2.benchmark.stages import load_measurement
from forty2.benchmark.task import BATCH_SIZE, Task
from forty2.benchmark.tasks.behaviour import Behaviour
from forty2.benchmark.tasks.divergence import Base, Divergence, base_of, drift_from, probes
from forty2.benchmark.tasks.eval_prompts import check_replies, load_eval_prompts, probe
from forty2.benchmark.tasks.held_out import HeldOut, HeldOutRows
from forty2.benchmark.tasks.perplexity import WINDOW, Perplexity
from forty2.benchmark.tasks.reply_style import measure_replies
from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.model.chat_template import settings_of
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.model.initial_adapter import attach_initial_adapter
from forty2.model.loading import LoadedModel, load, model_sha256
from forty2.progress import Progress, silent
from forty2.recipe.schema import Benchmark, Recipe
from forty2.recipe.tags import tag_settings, with_tags
from forty2.runs.drift import TEXTS
from forty2.runs.held_out import held_out_rows, is_measured, measures_phase
from forty2.runs.phase_data import PhaseData, style_prompts
from forty2.text.rows import first_prompts
from forty2.training.batched_loss import BatchedLoss, KlPenalty, batched_loss, micro_batches
from forty2.training.batches import lengths_of
from forty2.training.evaluation import evaluate
from forty2.training.frozen_states import frozen_states_size, states_to_store, store_states
from forty2.training.objectives.phase import REPLY_METRICS
from forty2.training.optimizers import make_optimizer
from forty2.training.reference import reference_logps
from forty2.training.reference_states import store_reference_states
from forty2.training.schedule import PhasePlan
from forty2.training.step import Stepper

_STEPS = 3
"""Steps of a phase that are timed."""
_AMONG = 100
"""First steps of a phase among which those are chosen."""
_LONG = 3.0
"""Seconds of work from which on it is timed at its first time. Shorter work is timed at its second, when
weights are loaded and functions are compiled."""
_ENOUGH = 10.0
"""Seconds of steps after which no further one is timed."""
_ROWS = 8
"""Validation rows that are timed."""
_QUESTIONS = 4
"""Questions of each benchmark that are timed."""
NOT_IN_IT = "loading, checkpoints, fusing, the report"
"""Work that the estimate leaves out in every run."""


class PhaseTime(NamedTuple):
    """The estimated seconds of a phase."""

    before: float
    """Before the first step: the reference pass, and the states of frozen blocks."""
    steps: float
    evaluations: float

    @property
    def seconds(self) -> float:
        """All of them together."""
        return self.before + self.steps + self.evaluations


@dataclass(frozen=True)
class RunTime:
    """The estimated seconds of a run."""

    phases: dict[str, PhaseTime]
    stages: int = 0
    """Stages that are measured; 0: the recipe measures nothing."""
    each_stage: float = 0.0
    """Seconds to measure one."""
    left_out: tuple[str, ...] = ()
    """Benchmarks that are not in the estimate."""

    @property
    def seconds(self) -> float:
        """All of them together."""
        return sum(p.seconds for p in self.phases.values()) + self.stages * self.each_stage


def time_run(
    recipe: Recipe,
    data: Mapping[str, PhaseData],
    plans: Mapping[str, PhasePlan],
    *,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> RunTime:
    """Estimate the time of a run.

    Args:
        data: rows of each phase, by name.
        plans: course of each phase, by name.
    """
    progress("timing the base", 0, 1, {})
    loaded = load(
        recipe.model,
        template=settings_of(recipe),
        tags=tag_settings(recipe),
        trust_remote_code=trust_remote_code,
    )
    loaded.model.eval()
    key = with_tags(model_sha256(loaded.path), recipe)
    base = base_of(loaded, key, TEXTS)  # before it has an adapter
    drift = _seconds(lambda: drift_from(loaded, base))
    attach_initial_adapter(loaded.model, recipe, seed=0, tags=loaded.tags)
    shortcuts = supported_shortcuts(loaded.model)
    phases = {}
    for name, part in data.items():
        progress(f"timing {name}", 0, 1, {})
        with tempfile.TemporaryDirectory() as scratch:
            timer = _PhaseTimer(loaded, plans[name], part, shortcuts, Path(scratch))
            phases[name] = timer.time_phase(drift)
    if not is_measured(recipe):
        return RunTime(phases)
    progress("timing the measurements", 0, 1, {})
    fused = 0 if recipe.fuse is None else 1 + (recipe.fuse.quantize is not None)
    rows = held_out_rows(recipe, data, loaded.tokenizer.decode)
    stage = _StageTimer(loaded, recipe.benchmark or Benchmark(tasks=[]), recipe.seed, base, rows)
    measured = 1 + sum(measures_phase(recipe, name) for name in phases) + fused
    return RunTime(phases, measured, stage.time_stage(), stage.left_out)


def _seconds(work: Callable[[], object]) -> float:
    """Time some work; work that takes little time is done twice, and the second time counts."""
    started = time.perf_counter()
    work()
    first = time.perf_counter() - started
    if first >= _LONG:
        return first
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- a phase --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PhaseTimer:
    """Times one phase."""

    loaded: LoadedModel
    plan: PhasePlan
    data: PhaseData
    shortcuts: Shortcuts
    scratch: Path

    def time_phase(self, drift: float) -> PhaseTime:
        """Estimate the seconds of the phase.

        Args:
            drift: seconds to measure the drift from the base once.
        """
        rows, plan = self.data.train.rows, self.plan
        steps = self._chosen_steps()
        sample = sorted({i for step in steps for part in plan.step_rows(step) for i in part})
        self.loaded.model.eval()
        loss, before = self._loss(rows, sample, plan.rows_used, plan.passes)
        evaluation = drift + self._reply_seconds()
        for part in (self.data.valid, self.data.hold_out):
            if part is None:
                continue
            held_out = part.rows
            every, few = range(len(held_out)), _spread(range(len(held_out)), _ROWS)
            valid_loss, more = self._loss(held_out, few, every, plan.evaluations)
            before += more
            once = functools.partial(evaluate, self.loaded.model, valid_loss, which=few)
            evaluation += _share(held_out, every, few) * _seconds(once)
        return PhaseTime(before, self._step_seconds(steps, loss), plan.evaluations * evaluation)

    def _chosen_steps(self) -> list[int]:
        """Choose steps to time: a short one, one in the middle, and a long one."""
        first = range(1, min(self.plan.steps, _AMONG) + 1)
        return _spread(sorted(first, key=self._tokens), _STEPS)

    @functools.cached_property
    def _lengths(self) -> Sequence[int]:
        return lengths_of(self.data.train.rows)

    def _tokens(self, step: int) -> int:
        return sum(self._lengths[i] for part in self.plan.step_rows(step) for i in part)

    def _loss(
        self, rows: Any, sample: Sequence[int], used: Sequence[int], passes: float
    ) -> tuple[BatchedLoss, float]:
        """Make the loss over a sample of rows, with stored states and reference as the phase does.

        Args:
            used: indices of the rows that the phase uses.
            passes: average number of times that it uses each of them.

        Returns:
            The loss, and the estimated seconds to make it for all of `used`.
        """
        model, phase = self.loaded.model, self.plan.phase
        frozen, reference, kl = None, None, None
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            started = time.perf_counter()
            if states_to_store(model, phase, rows, used, passes, shortcuts=self.shortcuts):
                size = frozen_states_size(model, rows, sample)
                frozen = store_states(model, rows, sample, size, Path(folder, "states"))
            if phase.needs_reference:
                store = Path(folder, "reference.npz")
                reference = reference_logps(
                    model, rows, sample, store, shortcuts=self.shortcuts, frozen=frozen
                )
            if phase.kl_term is not None and self.shortcuts.split_head:
                store = Path(folder, "reference.states")
                states = store_reference_states(
                    model, rows, sample, store, shortcuts=self.shortcuts, frozen=frozen
                )
                kl = KlPenalty(phase.kl_term, states)
            seconds = time.perf_counter() - started
        weights = self.data.token_weights
        loss = batched_loss(phase, rows, reference, self.shortcuts, frozen, kl, weights)
        return loss, _share(rows, used, sample) * seconds

    def _step_seconds(self, steps: Sequence[int], loss: BatchedLoss) -> float:
        """Estimate the seconds of all steps from these."""
        model, plan = self.loaded.model, self.plan
        checkpoint_gradients(model, plan.phase.grad_checkpoint)
        model.train()
        stepper = Stepper(model, make_optimizer(plan.phase), loss, plan.phase)
        tokens, seconds = 0, 0.0
        try:
            for step in steps:
                parts = plan.step_rows(step)
                batches = [batch for part in parts for batch in micro_batches(loss, part)]
                seconds += _seconds(functools.partial(stepper.step, batches, 0.0))
                tokens += self._tokens(step)
                if seconds > _ENOUGH:
                    break
        finally:
            checkpoint_gradients(model, False)
            model.eval()
        trained_on = plan.exposures(plan.steps) * plan.order.tokens
        return trained_on / tokens * seconds

    def _reply_seconds(self) -> float:
        """Estimate the seconds to answer the prompts of one evaluation."""
        return self._check_seconds() + self._style_seconds()

    def _style_seconds(self) -> float:
        """Estimate the seconds to measure the style of replies, of the phases that choose by it."""
        if self.data.valid is None or not self.plan.phase.chosen_by & {*REPLY_METRICS}:
            return 0.0
        prompts = style_prompts(self.data.valid)
        few = prompts[:BATCH_SIZE]
        return len(prompts) / len(few) * _seconds(lambda: measure_replies(self.loaded, few))

    def _check_seconds(self) -> float:
        """Estimate the seconds to answer eval prompts, or else a few rows' prompts."""
        if self.plan.phase.eval_prompts is None:
            prompts = first_prompts((self.data.valid or self.data.train).rows, SEVERAL)
            return _seconds(lambda: check_replies(self.loaded, prompts))
        asked = load_eval_prompts(self.plan.phase.eval_prompts)
        few = dataclasses.replace(asked, items=asked.items[:BATCH_SIZE])
        batches = -(-len(asked.items) // BATCH_SIZE)
        return batches * _seconds(lambda: probe(self.loaded, few))


def _spread(values: Sequence[int], n: int) -> list[int]:
    """Choose `n` values at even distances, or all if there are fewer."""
    n = min(n, len(values))
    return [values[(2 * k + 1) * len(values) // (2 * n)] for k in range(n)]


def _share(rows: Any, used: Sequence[int], sample: Sequence[int]) -> float:
    """Compute how many times the tokens of the sample the rows that are used have."""
    lengths = np.asarray(lengths_of(rows))
    return float(lengths[list(used)].sum() / lengths[list(sample)].sum())


# --- a measurement --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StageTimer:
    """Times the measurement of one stage."""

    loaded: LoadedModel
    benchmark: Benchmark
    seed: int
    base: Base
    held_out: HeldOutRows | None
    """None: none are measured."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the tasks that are not timed: those that run programs that the model writes."""
        return tuple(entry.task for entry in self.benchmark.tasks if entry.run_untrusted_code)

    def time_stage(self) -> float:
        """Estimate the seconds to measure one stage."""
        full = load_measurement(self.benchmark, self.seed)
        few = load_measurement(self._with_few_questions(), self.seed)
        seconds = 0.0
        for name, (task, questions) in few.tasks.items():
            if name not in self.left_out:
                whole = full.tasks[name]
                share = whole.task.source(whole.questions).n / task.source(questions).n
                seconds += share * self._task_seconds(task, questions)
        if self.held_out is not None:
            seconds += self._held_out_seconds(self.held_out)
        return seconds + self._always_seconds(full.n, facts_alone=full.truthfulqa is None)

    def _held_out_seconds(self, rows: HeldOutRows) -> float:
        """Estimate the seconds of the held-out rows from a few, and of the replies from all."""
        places = _spread(range(len(rows.rows)), _ROWS)
        few = rows._replace(rows=tuple(rows.rows[n] for n in places), prompts=(), eval_prompts=())
        seconds = 0.0
        if places:
            whole, part = (
                sum(len(side.ids) for row in some.rows for side in row.sides)
                for some in (rows, few)
            )
            seconds = whole / part * self._task_seconds(HeldOut(rows=few), few)
        replies = rows._replace(rows=())
        if replies.prompts or replies.eval_prompts:
            seconds += self._task_seconds(HeldOut(rows=replies), replies)
        return seconds

    def _with_few_questions(self) -> Benchmark:
        def few(n: int | None) -> int:
            return min(n or _QUESTIONS, _QUESTIONS)

        tasks = [dataclasses.replace(entry, n=few(entry.n)) for entry in self.benchmark.tasks]
        return dataclasses.replace(self.benchmark, n=few(self.benchmark.n), tasks=tasks)

    def _always_seconds(self, n: int | None, *, facts_alone: bool) -> float:
        """Estimate the seconds of what is measured at every stage, whatever the recipe's tasks."""
        windows = sum(
            -(-(len(self.loaded.tokenizer.encode(text)) - 1) // WINDOW)
            for text in Perplexity().load().values()
        )
        few = Behaviour(n=_QUESTIONS, seed=self.seed, facts_alone=facts_alone)
        whole = Behaviour(n=n, seed=self.seed, facts_alone=facts_alone)
        shares: list[tuple[Task[Any], float]] = [
            (few, len(whole.load()) / len(few.load())),
            (
                Perplexity(n=_QUESTIONS, seed=self.seed),
                min(windows, n or windows) / min(windows, _QUESTIONS),
            ),
            (
                Divergence(base=self.base, seed=self.seed),
                len(probes(self.loaded, n)) / len(self.base.probes),
            ),
        ]
        return sum(share * self._task_seconds(task, task.load()) for task, share in shares)

    def _task_seconds(self, task: Task[Any], questions: Any) -> float:
        return _seconds(
            lambda: measure(
                task,
                questions,
                self.loaded,
                adapter=None,
                partial=PartialResults.in_memory(),
                report=lambda *_: None,
            )
        )
