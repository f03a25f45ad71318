"""The training step, and the one loop around it. Takes any objective and names none.

Everything that a step depends on is either in a checkpoint (adapter, optimizer) or a pure function
of the step's number (batch, learning rate, random key), so a run can go on from any checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from forty2.batches import Batch, Order, rows_of_epoch
from forty2.errors import Interrupted, RunError, TrainingError
from forty2.model.adapter import AdapterSpec, load_arrays, restore, save_adapter
from forty2.model.checkpointing import checkpoint_gradients
from forty2.objectives import Objective
from forty2.progress import Progress, silent
from forty2.recipe import Phase
from forty2.rundir import damage, read_json, seal, staged, write_json

OPTIMIZER = "optimizer.safetensors"


class Trained(NamedTuple):
    """What a phase ended with."""

    steps: int
    metrics: dict[str, float]
    """Of the last step."""
    valid: dict[str, float]
    """Of the evaluation whose adapter was kept; empty without validation rows."""
    kept_step: int
    """The step whose adapter the model now holds: the last, or the best one."""


def make_optimizer(phase: Phase) -> optim.Optimizer:
    """The phase's optimizer; its learning rate is set anew before every step."""
    if phase.optimizer == "adamw":
        return optim.AdamW(phase.lr, weight_decay=phase.weight_decay, bias_correction=True)
    if phase.optimizer == "adam":
        return optim.Adam(phase.lr, bias_correction=True)
    if phase.optimizer == "lion":
        return optim.Lion(phase.lr, weight_decay=phase.weight_decay)
    if phase.optimizer == "sgd":
        return optim.SGD(phase.lr, weight_decay=phase.weight_decay)
    return optim.Adafactor(
        phase.lr, relative_step=False, scale_parameter=False, weight_decay=phase.weight_decay
    )


def learning_rate(phase: Phase, step: int, steps: int) -> float:
    """The rate of step 1, 2, ... `steps`: a straight rise over the warm-up, then the schedule."""
    if step <= phase.warmup_steps:
        return phase.lr * step / phase.warmup_steps
    if phase.schedule == "constant":
        return phase.lr
    share = (step - phase.warmup_steps - 1) / max(1, steps - phase.warmup_steps)
    if phase.schedule == "linear":
        return phase.lr * (1 - share)
    return phase.lr * 0.5 * (1 + math.cos(math.pi * share))


def total_steps(phase: Phase, rows: int) -> int:
    """Optimizer steps of a phase over so many rows."""
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None
    return max(1, round(phase.epochs * rows / (phase.batch_size * phase.accumulate)))


def due(every: int | None, step: int, steps: int) -> bool:
    """Whether something done `every` so many steps (a fifth when absent) is due after `step`."""
    return step == steps or step % (every or max(1, steps // 5)) == 0


class Stepper:
    """One optimizer step: gradients of one or more batches, summed, scaled, clipped, applied."""

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, objective: Objective, phase: Phase
    ) -> None:
        loss_and_gradients = nn.value_and_grad(
            model, lambda model, arrays: tuple(objective.loss(model, arrays))
        )
        state = [model.state, optimizer.state, mx.random.state]

        # On the CPU compiling saves nothing (products rule) and needs a C++ compiler at run time.
        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            if mx.default_device() == mx.Device(mx.cpu):
                return function
            return functools.partial(mx.compile, inputs=state, outputs=state)(function)

        @compiled
        def add_gradients(arrays: list[mx.array], sums: Any) -> tuple[mx.array, Any, Any]:
            (total, metrics), gradients = loss_and_gradients(model, arrays)
            if sums is not None:
                gradients = tree_map(mx.add, sums, gradients)
            return total, metrics, gradients

        @compiled
        def update(sums: Any, weight: mx.array) -> mx.array:
            gradients = tree_map(lambda g: g / weight, sums)
            squares = [mx.square(g).sum() for _, g in tree_flatten(gradients)]
            norm = mx.sqrt(mx.stack(squares).sum())
            if phase.clip_norm is not None:
                factor = mx.minimum(1.0, phase.clip_norm / (norm + 1e-6))
                gradients = tree_map(lambda g: g * factor, gradients)
            optimizer.update(model, gradients)
            return norm

        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._add_gradients, self._update = add_gradients, update

    def step(self, batches: list[Batch], rate: float) -> tuple[dict[str, float], float]:
        """Take one step. Returns the metrics, averaged over all batches, and the gradient norm."""
        self._optimizer.learning_rate = mx.array(rate)
        weight = sum(batch.weight for batch in batches)
        sums, parts = None, []
        for batch in batches:
            _, metrics, sums = self._add_gradients(self._objective.arrays(batch), sums)
            parts.append(metrics)
            mx.async_eval(metrics, sums)
        norm = self._update(sums, mx.array(float(weight)))
        mx.eval(self._model.trainable_parameters(), self._optimizer.state, norm, parts)
        means = {key: sum(float(part[key]) for part in parts) / weight for key in parts[0]}
        return means, float(norm)


def evaluate(model: nn.Module, objective: Objective, batch_size: int) -> dict[str, float]:
    """Metrics over all rows of an objective, without dropout and without learning."""
    model.eval()
    order = sorted(range(len(objective.lengths)), key=objective.lengths.__getitem__)
    sums: dict[str, float] = {}
    weight = 0
    for start in range(0, len(order), batch_size):
        batch = objective.batch(order[start : start + batch_size])
        metrics = objective.loss(model, objective.arrays(batch)).metrics
        mx.eval(metrics)
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value)
        weight += batch.weight
    return {key: value / weight for key, value in sums.items()}


def train(
    model: nn.Module,
    objective: Objective,
    phase: Phase,
    *,
    name: str,
    seed: int,
    spec: AdapterSpec,
    work: Path,
    valid: Objective | None = None,
    log: Callable[[Mapping[str, Any]], None] = lambda record: None,
    rewind: Callable[[int], None] = lambda step: None,
    progress: Progress = silent,
) -> Trained:
    """Run a phase to its end, from its last checkpoint if `work` holds one.

    Args:
        model: with adapter layers attached; what is trainable is trained, in place.
        name: of the phase, for records and progress.
        seed: of batches and dropout.
        work: folder for checkpoints; the caller deletes it when the phase is safely stored.
        valid: what to evaluate, with its own rows.
        log: takes one record per step and per evaluation.
        rewind: told the step that a phase goes on from (-1: anew), so that records beyond can go.

    Raises:
        TrainingError: the loss or gradient is not finite. The last checkpoint stays.
        RunError: the checkpoints are damaged.
        Interrupted: SIGINT or SIGTERM came. The step under way was finished and saved.
    """
    rows = rows_of_epoch(objective.weights)
    steps = total_steps(phase, rows)
    order = Order(objective.parts, phase.batch_size, seed, objective.weights)
    optimizer = make_optimizer(phase)
    optimizer.init(model.trainable_parameters())
    keeper = _Keeper(model, optimizer, spec, work)
    state, wrong = keeper.resume()
    step = state.step if state is not None else 0
    rewind(step if state is not None else -1)  # -1: the evaluation at step 0 comes again, too
    checkpoint_gradients(model, phase.grad_checkpoint)
    stepper = Stepper(model, optimizer, objective, phase)
    metrics = state.metrics if state is not None else {}
    last_valid = state.valid if state is not None else {}
    if wrong:
        warning = f"{'; '.join(wrong)}: went back to the checkpoint of step {step}"
        log({"phase": name, "step": step, "warning": warning})
        progress(name, step, steps, {"warning": warning})

    def validate() -> None:
        nonlocal last_valid
        if valid is None:
            return
        last_valid = evaluate(model, valid, phase.batch_size)
        log({"phase": name, "step": step, **{f"valid_{k}": v for k, v in last_valid.items()}})
        if phase.best is not None:
            keeper.offer(step, last_valid, phase.best.metric, phase.best.direction)

    try:
        with _stop_asked() as asked:
            if state is None:
                validate()
            model.train()
            while step < steps and not asked:
                step += 1
                mx.random.seed((seed << 20) + step)
                batches = list(
                    _batches(objective, order, (step - 1) * phase.accumulate, phase.accumulate)
                )
                rate = learning_rate(phase, step, steps)
                started = time.perf_counter()
                metrics, norm = stepper.step(batches, rate)
                seconds = time.perf_counter() - started
                _check_finite(name, step, metrics["loss"], norm, batches, work)
                speed = sum(batch.tokens for batch in batches) / seconds
                log(
                    {
                        "phase": name, "step": step, **metrics, "lr": rate, "grad_norm": norm,
                        "tokens_per_s": round(speed, 1),
                        "peak_memory_gb": round(mx.get_peak_memory() / 1e9, 3),
                    }
                )  # fmt: skip
                if due(phase.eval_every_steps, step, steps):
                    validate()
                    model.train()
                if due(phase.save_every_steps, step, steps):
                    keeper.save(step, metrics, last_valid)
                info = {"loss": f"{metrics['loss']:.4f}", "tokens/s": f"{speed:.0f}"}
                progress(name, step, steps, info)
            if asked:
                keeper.save(step, metrics, last_valid)
                raise Interrupted(
                    f"{name}: stopped by {asked[0].name} after step {step} of {steps}, which is "
                    f"saved in {work}; go on with --resume"
                )
    finally:
        checkpoint_gradients(model, False)
        model.eval()
    kept = keeper.take_best() if phase.best is not None and valid is not None else None
    if kept is not None:
        return Trained(steps, metrics, kept[1], kept[0])
    return Trained(steps, metrics, last_valid, steps)


@contextlib.contextmanager
def _stop_asked() -> Iterator[list[signal.Signals]]:
    """A list that takes the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    Python allows handlers in the main thread only: elsewhere signals do what they did before.
    """
    asked: list[signal.Signals] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number))

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # A signal that is ignored (nohup, a job in the background) stays so, and a handler
            # that is not Python's (None) could not be put back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def checkpoints(work: Path) -> list[Path]:
    """The folders of a phase's checkpoints, newest first."""
    found = [p for p in work.glob("step*") if p.name.removeprefix("step").isdecimal()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step"))


class _State(NamedTuple):
    """Where a checkpoint stands, beside its arrays."""

    step: int
    best: dict[str, Any] | None
    metrics: dict[str, float]
    """Of this step."""
    valid: dict[str, float]
    """Of the last evaluation."""


class _Keeper:
    """Checkpoints of a phase: the two newest, and the best by a validation metric."""

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, spec: AdapterSpec, work: Path
    ) -> None:
        self._model, self._optimizer, self._spec, self._work = model, optimizer, spec, work
        self._best: dict[str, Any] | None = None

    def save(self, step: int, metrics: dict[str, float], valid: dict[str, float]) -> None:
        with staged(self._work / f"step{step}") as folder:
            save_adapter(self._model, self._spec, folder)
            state = dict(tree_flatten(self._optimizer.state))
            mx.save_safetensors(str(folder / OPTIMIZER), state)
            write_json(folder / "state.json", _State(step, self._best, metrics, valid)._asdict())
            seal(folder)
        # Beyond this step there can only be a damaged one that the phase went back from.
        found = checkpoints(self._work)
        kept = [old for old in found if _step_of(old) <= step][:2]
        for old in found:
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> tuple[_State | None, list[str]]:
        """Restore the newest checkpoint that is whole; also what is wrong with newer ones.

        Raises:
            RunError: there are checkpoints and none is whole.
        """
        wrong: list[str] = []
        for folder in checkpoints(self._work):
            reason = damage(folder)
            if reason is not None:
                wrong.append(reason)
                continue
            state = _State(**read_json(folder / "state.json"))
            restore(self._model, folder)
            saved = load_arrays(folder / OPTIMIZER)
            self._optimizer.state = tree_unflatten(list(saved.items()))
            self._best = state.best
            return state, wrong
        if wrong:
            raise RunError(
                f"{'; '.join(wrong)}: no checkpoint is whole; delete {self._work}, then go on with "
                "--resume: the phase starts anew"
            )
        return None, []

    def offer(self, step: int, valid: dict[str, float], metric: str, direction: str) -> None:
        """Keep the adapter aside if its metric is the best so far."""
        if metric not in valid:
            raise TrainingError(
                f"best.metric: this objective has no {metric}; it has {', '.join(valid)}"
            )
        sign = 1 if direction == "max" else -1
        if self._best is None or sign * valid[metric] > sign * self._best["valid"][metric]:
            self._best = {"step": step, "valid": valid}
            with staged(self._work / "best") as folder:
                save_adapter(self._model, self._spec, folder)
                seal(folder)

    def take_best(self) -> tuple[int, dict[str, float]] | None:
        """Put the best adapter back into the model."""
        if self._best is None:
            return None
        reason = damage(self._work / "best")
        if reason is not None:
            raise RunError(
                f"{reason}: the best adapter is lost; delete {self._work}, then go on with "
                "--resume: the phase starts anew"
            )
        restore(self._model, self._work / "best")
        return int(self._best["step"]), self._best["valid"]


def _batches(objective: Objective, order: Order, first: int, count: int) -> Iterator[Batch]:
    for index in range(first, first + count):
        yield objective.batch(order.batch(index))


def _check_finite(
    name: str, step: int, loss: float, norm: float, batches: list[Batch], work: Path
) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    origins = [origin for batch in batches for origin in batch.origins]
    what = "loss" if not math.isfinite(loss) else "gradient"
    kept = f"; the last good checkpoint is in {work}" if checkpoints(work) else ""
    raise TrainingError(
        f"{name}, step {step}: the {what} is not finite on rows {', '.join(origins)}{kept}; "
        "lower lr, or look at these rows"
    )
