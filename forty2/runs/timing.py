"""The time that a run will take, estimated from a few of its own batches, questions and replies.

The real model computes the real rows with the settings of the recipe: of each phase, one batch of
training rows and one of validation rows. Times are then multiplied by the number of tokens, evaluations
and questions. Steps are taken with a learning rate of zero, so nothing is trained.
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
import numpy.typing as npt

from forty2.benchmark import probing
from forty2.benchmark.eval_prompt_files import load_eval_prompts
from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.replies import SEVERAL
from forty2.benchmark.runner import measure
from forty2.benchmark.stages import load_measurement
from forty2.benchmark.task import BATCH_SIZE, Task
from forty2.benchmark.tasks import behaviour, eval_prompts, held_out, reply_style
from forty2.benchmark.tasks.behaviour import Behaviour
from forty2.benchmark.tasks.divergence import base_of, drift_from, probes, spread
from forty2.benchmark.tasks.eval_prompts import Asked
from forty2.benchmark.tasks.held_out import HeldOut, HeldOutRows
from forty2.benchmark.tasks.perplexity import WINDOW, Perplexity
from forty2.inference.generation import generate_replies
from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.inference.padding import batch_tokens, group_by_length
from forty2.machine import on_gpu
from forty2.model.chat_template import settings_of
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.model.initial_adapter import attach_initial_adapter, begin_phase
from forty2.model.loading import LoadedModel, load, model_sha256
from forty2.progress import Progress, silent
from forty2.recipe.schema import Benchmark, Recipe
from forty2.recipe.tags import tag_settings, with_tags
from forty2.runs.drift import TEXTS
from forty2.runs.held_out import held_out_rows, is_measured, measures_phase
from forty2.runs.phase_data import PhaseData, style_prompts
from forty2.text.encoder import Encoder
from forty2.text.rows import first_prompts
from forty2.training.batched_loss import BatchedLoss, KlPenalty, batched_loss, micro_batches
from forty2.training.batches import lengths_of, parts_of
from forty2.training.evaluation import evaluate
from forty2.training.frozen_states import frozen_states_size, states_to_store, store_states
from forty2.training.objectives.phase import REPLY_METRICS
from forty2.training.optimizers import make_optimizer
from forty2.training.reference import reference_logps
from forty2.training.reference_states import store_reference_states
from forty2.training.schedule import PhasePlan
from forty2.training.step import Stepper

_AMONG = 100
"""First steps of a phase among which the one of middle length is timed."""
_LONG = 3.0
"""Seconds of work on a GPU from which on it is timed at its first time. Shorter work is timed at its
second, when kernels are compiled."""
_QUESTIONS = 4
"""Questions of each benchmark that are timed."""
_TEXTS = 4
"""Neutral texts, and held-out answers, whose next tokens are predicted to time the drift from the base.
All of them are gone on with to time replies."""
_REPLY_TOKENS = 8
"""Tokens of a reply that are timed, after the first one."""
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
    base = base_of(loaded, key, _TEXTS)  # before it has an adapter
    each_probe = _seconds(lambda: drift_from(loaded, base)) / _TEXTS
    attach_initial_adapter(loaded.model, recipe, seed=0, tags=loaded.tags)
    shortcuts = supported_shortcuts(loaded.model)
    answers = _time_replies(loaded, [probe.ids for probe in base.probes])
    phases = {}
    for name, part in data.items():
        progress(f"timing {name}", 0, 1, {})
        begin_phase(loaded.model, recipe, name, seed=0, tags=loaded.tags)
        with tempfile.TemporaryDirectory() as scratch:
            timer = _PhaseTimer(loaded, plans[name], part, shortcuts, answers, Path(scratch))
            phases[name] = timer.time_phase(TEXTS * each_probe)
    if not is_measured(recipe):
        return RunTime(phases)
    progress("timing the measurements", 0, 1, {})
    fused = 0 if recipe.fuse is None else 1 + (recipe.fuse.quantize is not None)
    rows = held_out_rows(recipe, data, loaded.tokenizer.decode)
    benchmark = recipe.benchmark or Benchmark(tasks=[])
    stage = _StageTimer(loaded, benchmark, recipe.seed, answers, each_probe, rows)
    measured = 1 + sum(measures_phase(recipe, name) for name in phases) + fused
    return RunTime(phases, measured, stage.time_stage(), stage.left_out)


def _seconds(work: Callable[[], object]) -> float:
    """Time some work; on a GPU short work is done twice, and the second time counts."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    if on_gpu() and seconds < _LONG:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    return seconds


def _batch(lengths: npt.NDArray[np.int64], indices: Sequence[int]) -> list[int]:
    """Choose rows of middle length among these, half as many as are computed at once.

    Args:
        lengths: tokens of each row, or of each of its parts, as `group_by_length` takes them.
    """
    groups = group_by_length(lengths[list(indices)], batch_tokens() // 2)
    return [indices[n] for n in groups[len(groups) // 2]]


# --- replies --------------------------------------------------------------------------------------


class _ReplyTime(NamedTuple):
    """The seconds of replies, by their parts."""

    prompt_token: float
    step: float
    """Of one more token of all replies of a batch: hardly more if they are many."""

    def seconds(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, batch_size: int = BATCH_SIZE
    ) -> float:
        """Estimate the seconds to answer prompts with replies as long as they may be.

        Args:
            prompts: token ids of each; there may be none.
        """
        if not prompts:
            return 0.0
        batches = max(1.0, len(prompts) / batch_size)
        return sum(map(len, prompts)) * self.prompt_token + batches * max_tokens * self.step


def _time_replies(loaded: LoadedModel, prompts: Sequence[list[int]]) -> _ReplyTime:
    """Time short replies to a few prompts."""

    def answer(tokens: int) -> float:
        return _seconds(lambda: [*generate_replies(loaded, prompts, max_tokens=tokens)])

    first = answer(1)
    step = max(0.0, answer(1 + _REPLY_TOKENS) - first) / _REPLY_TOKENS
    return _ReplyTime(first / sum(map(len, prompts)), step)


# --- a phase --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PhaseTimer:
    """Times one phase."""

    loaded: LoadedModel
    plan: PhasePlan
    data: PhaseData
    shortcuts: Shortcuts
    answers: _ReplyTime
    scratch: Path

    def time_phase(self, drift: float) -> PhaseTime:
        """Estimate the seconds of the phase.

        Args:
            drift: seconds to measure the drift from the base once.
        """
        rows, plan = self.data.train.rows, self.plan
        sample = _batch(parts_of(rows), self._middle_rows())
        self.loaded.model.eval()
        loss, before = self._loss(rows, sample, plan.rows_used, plan.passes)
        evaluation = drift + self._reply_seconds()
        for part in (self.data.valid, self.data.hold_out):
            if part is None:
                continue
            every = range(len(part.rows))
            few = _batch(parts_of(part.rows), every)
            valid_loss, more = self._loss(part.rows, few, every, plan.evaluations)
            before += more
            once = functools.partial(evaluate, self.loaded.model, valid_loss, which=few)
            evaluation += _share(part.rows, every, few) * _seconds(once)
        return PhaseTime(before, self._step_seconds(sample, loss), plan.evaluations * evaluation)

    def _middle_rows(self) -> Sequence[int]:
        """Return the rows of a batch of a step that is neither short nor long."""
        lengths, plan = lengths_of(self.data.train.rows), self.plan
        steps = [plan.step_rows(n) for n in range(1, min(plan.steps, _AMONG) + 1)]
        steps.sort(key=lambda parts: sum(lengths[i] for part in parts for i in part))
        return max(steps[len(steps) // 2], key=len)

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

    def _step_seconds(self, sample: Sequence[int], loss: BatchedLoss) -> float:
        """Estimate the seconds of all steps from one over these rows."""
        model, plan = self.loaded.model, self.plan
        checkpoint_gradients(model, plan.phase.grad_checkpoint)
        model.train()
        stepper = Stepper(model, make_optimizer(plan.phase), loss, plan.phase)
        batches = [*micro_batches(loss, sample)]
        try:
            seconds = _seconds(lambda: stepper.step(batches, 0.0))
        finally:
            checkpoint_gradients(model, False)
            model.eval()
        lengths = lengths_of(self.data.train.rows)
        trained_on = plan.exposures(plan.steps) * plan.order.tokens
        return trained_on / sum(lengths[i] for i in sample) * seconds

    def _reply_seconds(self) -> float:
        """Estimate the seconds to answer the prompts of one evaluation."""
        phase, valid = self.plan.phase, self.data.valid
        if phase.eval_prompts is not None:
            asked = Asked(self.loaded, load_eval_prompts(phase.eval_prompts)).ids
            seconds = self.answers.seconds(asked, eval_prompts.MAX_TOKENS)
        else:
            asked = first_prompts((valid or self.data.train).rows, SEVERAL)
            seconds = self.answers.seconds(asked, probing.SPOT_TOKENS)
        if valid is not None and phase.chosen_by & {*REPLY_METRICS}:
            seconds += self.answers.seconds(style_prompts(valid), reply_style.MAX_TOKENS)
        return seconds


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
    answers: _ReplyTime
    each_probe: float
    """Seconds to compare the next tokens of one text with the base's."""
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
        return seconds + self._always_seconds(full.n, facts_alone=full.facts_alone)

    def _held_out_seconds(self, rows: HeldOutRows) -> float:
        """Estimate the seconds of the held-out rows, their prompts, and the eval prompts."""
        seconds = 0.0
        if rows.rows:
            lengths = np.array([sum(len(side.ids) for side in row.sides) for row in rows.rows])
            sample = _batch(lengths, range(len(lengths)))
            few = HeldOutRows(tuple(rows.rows[n] for n in sample), prompts=())
            share = float(lengths.sum() / lengths[sample].sum())
            seconds = share * self._task_seconds(HeldOut(rows=few), few)
        prompts = [prompt.ids for prompt in rows.prompts]
        seconds += self.answers.seconds(prompts, held_out.MAX_TOKENS)
        for file in rows.eval_prompts:
            asked = Asked(self.loaded, file).ids
            seconds += self.answers.seconds(asked, eval_prompts.MAX_TOKENS)
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
        one = Perplexity(n=1, seed=self.seed)
        return (
            min(windows, n or windows) * self._task_seconds(one, one.load())
            + len(probes(self.loaded, n)) * self.each_probe
            + self._behaviour_seconds(Behaviour(n=n, facts_alone=facts_alone))
        )

    def _behaviour_seconds(self, task: Behaviour) -> float:
        """Estimate the seconds of the behaviour gates: of the likelihoods, and of the replies."""
        questions = task.load()
        encoder = Encoder(self.loaded.tokenizer)
        few = spread(questions, _QUESTIONS)
        seconds = _seconds(lambda: list(behaviour.likelihoods(self.loaded, encoder, few)))
        prompts = [encoder.prompt([behaviour.turn(row)]) for row in questions]
        replies = self.answers.seconds(prompts, behaviour.MAX_TOKENS, behaviour.BATCH_SIZE)
        return len(questions) / len(few) * seconds + replies

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
