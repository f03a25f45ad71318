"""The training loop of a phase, for any objective.

Everything a step depends on is either in a checkpoint (adapter, optimizer state) or a pure function
of the step's number (batches, learning rate, random key), so a run can go on from any checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from forty2.errors import Interrupted, PeerLost, TrainingError
from forty2.machine import on_gpu
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.progress import Progress, silent
from forty2.training.batched_loss import BatchedLoss, micro_batches
from forty2.training.checkpoints import Checkpoints, PhaseState, restore_optimizer
from forty2.training.evaluation import Drift, Evaluator
from forty2.training.movement import MovementCheck
from forty2.training.objectives.phase import REPLY_METRICS
from forty2.training.optimizers import make_optimizer
from forty2.training.processes import ALONE, Group
from forty2.training.red_lines import PATIENCE, RedLine, RedLineMonitor, judge_drift
from forty2.training.schedule import PhasePlan, learning_rate
from forty2.training.step import Stepper, StepResult
from forty2.training.stop_signals import stop_signals

MAX_ROLLBACKS = 3
"""Times that a phase may go back to a checkpoint; its learning rate is then an eighth."""


class MetricsLog(Protocol):
    """The record of a phase's metrics: one entry a step, evaluation and warning."""

    def log(self, record: Mapping[str, str | float], /) -> None:
        """Append a record."""

    def forget_metrics_after(self, phase: str, step: int, /) -> None:
        """Drop a phase's records beyond the step that it goes on from; -1: all of them."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A phase to train, with everything that it needs."""

    name: str
    """The phase's name in the recipe, for records and messages."""
    plan: PhasePlan
    model: nn.Module
    """The model with adapter layers attached; its trainable parameters are changed in place."""
    loss: BatchedLoss
    """The loss over the training rows."""
    evaluator: Evaluator
    checkpoints: Checkpoints
    """The phase's checkpoints; training goes on from the last one, if there is one."""
    log: MetricsLog
    progress: Progress = silent
    group: Group = ALONE
    """The processes that train this phase together, each with a model and checkpoints of its own."""
    carried: Path | None = None
    """Folder with the optimizer's state that the phase begins with; None: it begins with a new one."""


class Trained(NamedTuple):
    """The outcome of a phase."""

    steps: int
    """Steps that were taken or skipped."""
    metrics: dict[str, float]
    """Metrics of the last step."""
    valid: dict[str, float]
    """Metrics of the evaluation at `kept_step`; empty without validation rows."""
    kept_step: int
    """The step whose adapter the model now holds: the last, or the best one."""
    optimizer: optim.Optimizer
    """The optimizer after the last step."""


def train(training: Training) -> Trained:
    """Train a phase to its end, from its last checkpoint if there is one.

    Raises:
        TrainingError: a red line ends the phase, and the steps before it are saved; or its first
            steps do not move a tensor that is to be trained.
        RunError: the checkpoints are damaged.
        Interrupted: SIGINT or SIGTERM came. The step under way was finished and saved.
        PeerLost: another process of the group was lost. The steps before are saved.
    """
    model = training.model
    checkpoint_gradients(model, training.plan.phase.grad_checkpoint)
    mx.reset_peak_memory()
    rollback: _Rollback | None = None
    try:
        with stop_signals() as received:
            while True:
                try:
                    return _Attempt(training, rollback).run(received)
                except _Rollback as error:
                    rollback = error
    finally:
        checkpoint_gradients(model, False)
        model.eval()


class _Rollback(Exception):
    """A red line sends the phase back to its last checkpoint, at half the learning rate."""

    def __init__(self, message: str, rollbacks: int) -> None:
        super().__init__(message)
        self.rollbacks = rollbacks
        """Rollbacks before this one; the checkpoint may know of fewer."""


class _Attempt:
    """One attempt at a phase: from its last checkpoint to its end, or to a red line."""

    def __init__(self, training: Training, rollback: _Rollback | None) -> None:
        """Go on from the last checkpoint, or begin the phase.

        Args:
            rollback: what ended the attempt before; None: this is the first one.
        """
        self.training, self.plan = training, training.plan
        self.phase, self.model = training.plan.phase, training.model
        self.optimizer = make_optimizer(self.phase)
        resumed, damage = training.checkpoints.resume(self.model, self.optimizer)
        self.is_new = resumed is None
        if self.is_new and training.carried is not None:
            restore_optimizer(self.optimizer, training.carried)
        self.state = resumed or PhaseState()
        # A new phase evaluates before its first step again, too.
        training.log.forget_metrics_after(training.name, -1 if self.is_new else self.state.step)
        went_back = f"went back to the checkpoint of step {self.state.step}"
        if damage:
            self._warn(self.state.step, f"{'; '.join(damage)}: {went_back}")
        if rollback is not None:
            self.monitor.rollbacks = rollback.rollbacks + 1
            rate = 1 / 2**self.monitor.rollbacks
            self._warn(self.state.step + 1, f"{rollback}: {went_back}, now at {rate} lr")
        self.stepper = Stepper(
            self.model, self.optimizer, training.loss, self.phase, training.group
        )
        self.movement = MovementCheck(self.model)

    def run(self, received: Sequence[signal.Signals]) -> Trained:
        """Take all steps, evaluate and save.

        Args:
            received: fills with the signals that ask the phase to stop.
        """
        state, plan = self.state, self.plan
        if self.is_new:
            self._evaluate()
            if "back" in dataclasses.asdict(self.phase.red_lines).values():
                self._save()
        while (
            not (stop := self._stop_signal(received))
            and state.step < plan.steps
            and not self._reached_goal()
        ):
            self._take_step(state.step + 1)
            if plan.evaluates_after(state.step):
                self._evaluate()
            if plan.saves_after(state.step):
                self._save()
        if stop:
            self._save()
            raise Interrupted(
                f"{self.training.name}: stopped by {signal.Signals(stop).name} after step "
                f"{state.step} of {plan.steps}, which is saved in {self.training.checkpoints.work}; "
                "to go on: `resume=True`",
                stop,
            )
        if state.best is not None:
            self.training.checkpoints.restore_best(state.best, self.model)
            valid, kept = state.best.valid, state.best.step
        else:
            valid, kept = state.valid, state.step
        return Trained(state.step, state.metrics, valid, kept, self.optimizer)

    @property
    def monitor(self) -> RedLineMonitor:
        """The figures by which red lines are judged."""
        return self.state.monitor

    def _take_step(self, step: int) -> None:
        """Take a step, or skip it where a red line says so."""
        group, loss, monitor = self.training.group, self.training.loss, self.monitor
        mx.random.seed((group.rank << 56) + (self.plan.seed << 20) + step)
        rows = self.plan.step_rows(step)
        batches = [
            batch
            for rotation, batch_rows in enumerate(rows)
            for batch in micro_batches(loss, group.shard(batch_rows, rotation))
        ]
        rate = learning_rate(self.phase, step, self.plan.steps) / 2**monitor.rollbacks
        spike_limit = monitor.spike_limit(self.phase.spike_threshold)
        warns_of_spikes = self.phase.red_lines.spike == "warn"  # then the step is taken
        self.model.train()
        started = time.perf_counter()
        with self._saved_if_peer_lost():
            result = self.stepper.step(
                batches,
                rate,
                math.inf if warns_of_spikes else spike_limit,
                progress=(step - 1) / max(1, self.plan.steps - 1),
            )
        seconds = time.perf_counter() - started
        red = monitor.judge_step(result.loss, result.norm, spike_limit)
        if red is not None and not (red.line == "spike" and warns_of_spikes):
            self._act_on(red, step, rows)
            if monitor.count_skipped():
                self._stop(f"{red.reason}, and {PATIENCE} steps in a row are skipped")
            self.state.step = step
            return
        self._report_step(step, result, rate, result.tokens / seconds)
        self._check_movement(step, rows, result, rate)
        self.state.step, self.state.metrics = step, result.metrics
        stuck = monitor.count_taken(
            result.loss, result.norm, uninformed_loss=self.phase.uninformed_loss
        )
        for crossed in filter(None, (red, stuck)):
            self._act_on(crossed, step, rows)

    def _check_movement(
        self, step: int, rows: Sequence[Sequence[int]], result: StepResult, rate: float
    ) -> None:
        """Refuse to go on if a tensor that is to be trained does not move.

        All processes see the same rows and gradients, so all come to the same conclusion.
        """
        if self.movement.done:
            return
        reaches_all = any(self.training.loss.reaches_all(batch_rows) for batch_rows in rows)
        if not (rate and reaches_all):
            return
        fault = self.movement.judge(result, full_rate=step > self.phase.warmup_steps)
        if fault is not None:
            raise TrainingError(f"{self.training.name}, step {step}: {fault}")

    def _report_step(self, step: int, result: StepResult, rate: float, speed: float) -> None:
        """Log a step's metrics and report progress; `speed` is in tokens per second."""
        self.training.log.log(
            {
                "phase": self.training.name,
                "step": step,
                **result.metrics,
                "lr": rate,
                "grad_norm": result.norm,
                "tokens_per_s": round(speed, 1),
                "peak_memory_gb": round(mx.get_peak_memory() / 1e9, 3),
            }
        )
        seen = f"{self.plan.exposures(step):.2f}x"
        info = {"loss": f"{result.loss:.4f}", "tokens/s": f"{speed:.0f}", "seen": seen}
        if on_gpu():
            info["compiled"] = str(len(self.stepper.shapes))
        self.training.progress(self.training.name, step, self.plan.steps, info)

    def _evaluate(self) -> None:
        """Evaluate the model, log the figures, and act on the red lines that they cross."""
        state, name = self.state, self.training.name
        valid, replies, drift, hold_out = self.training.evaluator.evaluate(
            self.model,
            self.training.group,
            lambda part, done, total, info: self.training.progress(
                f"{name}: {part}", done, total, info
            ),
        )
        apart = {f"hold_out_{key}": value for key, value in hold_out.items()}
        measured = {**valid, **replies.metrics, **apart}
        if drift is not None and "perplexity" in self.phase.chosen_by:
            measured["perplexity"] = drift.neutral_perplexity
        broken = [key for key, value in measured.items() if not math.isfinite(value)]
        if drift is not None and not all(map(math.isfinite, drift[:2])):
            broken.append("drift from the base")
        if broken:
            reason = f"validation {', '.join(broken)} is not finite"
            self._act_on(RedLine("not_finite", reason), state.step)
            return
        state.valid = measured
        if measured:
            figures = {f"valid_{key}": value for key, value in measured.items()}
            self.training.log.log({"phase": name, "step": state.step, **figures})
            notice = f"step {state.step} of {self.plan.steps}: {self._in_words(measured)}"
            self.training.progress(name, state.step, self.plan.steps, {"notice": notice})
        crossed = self.monitor.judge_evaluation(valid["loss"]) if valid else []
        best = self.phase.best
        # The lowest loss is not the best of a model that memorizes: what was kept before stays.
        if best is not None and not (crossed and best.metric == "loss"):
            self.training.checkpoints.save_if_best(state, self.model, best)
        if drift is not None:
            figures = {"drift_kl": drift.kl, "drift_perplexity": drift.perplexity}
            self.training.log.log({"phase": name, "step": state.step, **figures})
            crossed += self._judge_drift(drift)
        # Early in a phase nothing else is expected.
        if replies.garbage and 2 * state.step > self.plan.steps:
            crossed.append(RedLine("replies", replies.garbage))
        found = [RedLine("replies", fault) for fault in replies.faults]
        found += [RedLine("tags", fault) for fault in replies.broken_tags]
        if state.step:
            crossed += [*found, *(RedLine("tags", fault) for fault in replies.missing_tags)]
        else:  # the base model has them, and was never shown new tags
            for red in found:
                self._warn(0, f"{name}, before training: {red.reason}", red.line)
        for red in crossed:
            self._act_on(red, state.step)

    def _judge_drift(self, drift: Drift) -> list[RedLine]:
        """Return the red line of a drift that is to be acted on; a phase warns of it once."""
        red, warned = judge_drift(drift), self.monitor.warned_of_drift
        if red is None or (warned and self.phase.red_lines.drift == "warn"):
            return []
        self.monitor.warned_of_drift = True
        if self.state.step:
            return [red]
        self._warn(0, f"{self.training.name}, before training: {red.reason}", "drift")  # by another
        return []

    def _in_words(self, measured: Mapping[str, float]) -> str:
        """Write the figures that matter most at an evaluation."""
        training_loss = self.state.metrics.get("loss")
        figures = [
            ("training loss", training_loss, ".3f"),
            ("validation loss", measured.get("loss"), ".3f"),
            ("accuracy", measured.get("accuracy"), ".0%"),
            ("prompts passed", measured.get("passed"), ".0%"),
            ("held-out strata: loss", measured.get("hold_out_loss"), ".3f"),
            ("accuracy", measured.get("hold_out_accuracy"), ".0%"),
        ]
        for name in sorted(self.phase.chosen_by & {"perplexity", *REPLY_METRICS}):
            figures.append((name.replace("_", " "), measured.get(name), ".3g"))
            figures.append(("F1 of its detector", measured.get(f"{name}_f1"), ".2f"))
        return ", ".join(
            f"{name} {value:{form}}" for name, value, form in figures if value is not None
        )

    def _act_on(self, red: RedLine, step: int, batches: Sequence[Sequence[int]] = ()) -> None:
        """Do what the recipe says about a red line that was crossed on these batches of rows."""
        loss = self.training.loss
        origins = [origin for rows in batches for origin in loss.batch(rows).origins]
        on_rows = f" on rows {', '.join(origins)}" if origins else ""
        message = f"{self.training.name}, step {step}: {red.reason}{on_rows}"
        action = getattr(self.phase.red_lines, red.line)
        if action == "back" and self.monitor.rollbacks < MAX_ROLLBACKS:
            raise _Rollback(message, self.monitor.rollbacks)
        if action in ("stop", "back"):
            # A step that was not taken is tried again after --resume, and stops again.
            was_taken = step == self.state.step
            self._stop(message, "`resume=True` goes on all the same; " if was_taken else "")
        self._warn(step, message, red.line)

    def _stop(self, message: str, remedy: str = "") -> NoReturn:
        self._save()
        name, work = self.training.name, self.training.checkpoints.work
        raise TrainingError(
            f"{message}; step {self.state.step} is saved in {work}; {remedy}in another `run_dir`, "
            f"lower phases.{name}.lr, or say in phases.{name}.red_lines what to do"
        )

    def _warn(self, step: int, message: str, line: str = "checkpoint") -> None:
        name = self.training.name
        self.training.log.log({"phase": name, "step": step, "red_line": line, "warning": message})
        self.training.progress(name, self.state.step, self.plan.steps, {"warning": message})

    def _save(self) -> None:
        self.training.checkpoints.save(self.state, self.model, self.optimizer)

    def _reached_goal(self) -> bool:
        """Return whether the last evaluation is good enough to end the phase."""
        goal, valid = self.phase.until, self.state.valid
        return goal is not None and bool(valid) and goal.reached(valid)

    def _stop_signal(self, received: Sequence[signal.Signals]) -> int:
        """Return the signal that asked this or another process of the group to stop, or 0."""
        with self._saved_if_peer_lost():
            return self.training.group.all_max(max(received, default=0))

    @contextlib.contextmanager
    def _saved_if_peer_lost(self) -> Iterator[None]:
        """Save the steps taken so far if another process is lost in this block."""
        try:
            yield
        except PeerLost as lost:
            if self.training.group.first:
                self._save()
            step = f"after step {self.state.step} of {self.plan.steps}"
            raise PeerLost(f"{self.training.name}, {step}: {lost}") from lost
