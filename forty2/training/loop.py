"""The training step, and the one loop around it. Takes any objective and names none.

Everything that a step depends on is either in a checkpoint (adapter, optimizer) or a pure function
of the step's number (batch, learning rate, random key), so a run can go on from any checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from forty2.errors import Interrupted, PeerLost, TrainingError
from forty2.machine import on_gpu
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.progress import Progress, silent
from forty2.recipe.schema import Adapter
from forty2.training.batched_loss import BatchedLoss, micro_batches
from forty2.training.batches import POOL, Batch, Order
from forty2.training.checkpoints import Keeper, State
from forty2.training.objectives.phase import Phase
from forty2.training.processes import ALONE, Group
from forty2.training.red_lines import IDLE, Red

ROLLBACKS = 3
"""How often a phase may go back: then its rate is an eighth."""


CACHED = 2 << 30
"""Bytes of freed buffers that are kept for reuse: of steps of many shapes most would not fit again."""


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


def order_of(
    phase: Phase,
    lengths: Sequence[int],
    weights: Sequence[float],
    seed: int,
) -> Order:
    """The batches of a phase over rows with these lengths and weights."""
    pool = POOL if phase.sorts_batches else 1
    return Order(lengths, phase.batch_size, seed, weights, phase.batch_tokens, pool)


def total_steps(phase: Phase, order: Order) -> int:
    """Optimizer steps of a phase."""
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None
    return max(1, round(phase.epochs * order.epoch_length / phase.accumulate))


def due(every: int | None, step: int, steps: int) -> bool:
    """Whether something done `every` so many steps (a fifth when absent) is due after `step`."""
    return step == steps or step % (every or max(1, steps // 5)) == 0


class Step(NamedTuple):
    """What an optimizer step saw."""

    metrics: dict[str, float]
    """Averaged over all its batches."""
    loss: float
    """Their mean, in fp32: what a limit is held against."""
    norm: float
    """Of the gradient, all arrays together, before clipping."""
    tokens: int
    """Of all its batches, without padding."""


class Stepper:
    """One optimizer step: gradients of one or more batches, summed, scaled, clipped, applied.

    A group sums over the batches of all its processes, of which some may have none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        objective: BatchedLoss,
        phase: Phase,
        group: Group = ALONE,
    ) -> None:
        loss_and_gradients = nn.value_and_grad(
            model, lambda model, arrays: tuple(objective.loss(model, arrays))
        )
        optimizer.init(model.trainable_parameters())  # what a checkpoint brought stays
        state = [model.state, optimizer.state, mx.random.state]

        # On the CPU compiling saves nothing (products rule) and needs a C++ compiler at run time.
        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            if not on_gpu():
                return function
            return functools.partial(mx.compile, inputs=state, outputs=state)(function)

        @compiled
        def add_gradients(arrays: list[mx.array], sums: Any) -> tuple[mx.array, Any, Any]:
            (total, metrics), gradients = loss_and_gradients(model, arrays)
            if sums is not None:
                gradients = tree_map(mx.add, sums, gradients)
            return total, metrics, gradients

        @compiled
        def update(sums: Any, weight: mx.array, loss: mx.array, limit: mx.array) -> mx.array:
            gradients = tree_map(lambda g: g / weight, sums)
            squares = [mx.square(g).sum() for _, g in tree_flatten(gradients)]
            norm = mx.sqrt(mx.stack(squares).sum())
            good = mx.isfinite(norm) & (loss <= limit) & mx.isfinite(loss)
            if phase.clip_norm is not None:
                factor = mx.minimum(1.0, phase.clip_norm / (norm + 1e-6))
                gradients = tree_map(lambda g: g * factor, gradients)
            states = (model.trainable_parameters(), optimizer.state)
            before = tree_map(lambda value: value, states)
            optimizer.update(model, gradients)
            after = (model.trainable_parameters(), optimizer.state)
            model.update(_chosen(good, after[0], before[0]))
            _fill(optimizer.state, _chosen(good, after[1], before[1]))
            return norm

        self.shapes: set[Any] = set()
        """Of the batches seen: where steps are compiled, each has cost a compilation."""
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._group = group
        self._add_gradients, self._update = add_gradients, update

    def step(self, batches: list[Batch], rate: float, limit: float = math.inf) -> Step:
        """Take one step.

        A step whose loss or gradient is not finite, or whose mean loss is beyond `limit`, changes
        neither the model nor the optimizer.
        """
        self._optimizer.learning_rate = mx.array(rate)
        weight = sum(batch.weight for batch in batches)
        tokens = sum(batch.tokens for batch in batches)
        sums, parts, total = None, [], mx.array(0.0)
        shared = self._objective.shared(self._model, batches, self._group)
        for batch in batches:
            arrays = [*self._objective.arrays(batch), *shared]
            self.shapes.add((sums is None, *(array.shape for array in arrays)))
            loss, metrics, sums = self._add_gradients(arrays, sums)
            parts.append(metrics)
            total = total + loss
            mx.async_eval(metrics, sums)
        if self._group.size > 1:
            if sums is None:
                sums = tree_map(mx.zeros_like, self._model.trainable_parameters())
            zero = mx.array(0.0)
            own = {key: sum((part[key] for part in parts), zero) for key in self._objective.metrics}
            whole = self._group.total([sums, total, weight, tokens, own])
            sums, total, parts = whole[0], whole[1], [whole[4]]
            weight, tokens = int(whole[2]), int(whole[3])
        loss = total / weight
        norm = self._update(sums, mx.array(float(weight)), loss, mx.array(limit))
        mx.eval(self._model.trainable_parameters(), self._optimizer.state, norm, loss, parts)
        if mx.get_cache_memory() > CACHED:
            mx.clear_cache()
        means = {key: sum(float(part[key]) for part in parts) / weight for key in parts[0]}
        return Step(means, float(loss), float(norm), tokens)


def _chosen(good: mx.array, after: Any, before: Any) -> Any:
    return tree_map(lambda new, old: mx.where(good, new, old), after, before)


def _fill(tree: Any, values: Any) -> None:
    """Replace a tree's arrays in place: a compiled step knows the tree by its containers."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        if isinstance(tree[key], mx.array):
            tree[key] = values[key]
        else:
            _fill(tree[key], values[key])


def evaluate(model: nn.Module, objective: BatchedLoss, group: Group = ALONE) -> dict[str, float]:
    """Metrics over all rows of an objective, without dropout and without learning."""
    model.eval()
    sums = dict.fromkeys(objective.metrics, 0.0)
    weight = 0
    own = group.share(range(len(objective.lengths)))
    shared = objective.shared(model, micro_batches(objective, own), group)
    for batch in micro_batches(objective, own):
        metrics = objective.loss(model, [*objective.arrays(batch), *shared]).metrics
        mx.eval(metrics)
        for key, value in metrics.items():
            sums[key] += float(value)
        weight += batch.weight
    sums, weight = group.total((sums, weight))
    return {key: float(value) / int(weight) for key, value in sums.items()}


class ReplyCheck(NamedTuple):
    """What a model replied to a phase's prompts, in figures."""

    metrics: dict[str, float]
    faults: list[str]
    """What is wrong with the replies, whatever was asked."""


@dataclass(kw_only=True)
class Training:
    """A phase to be run to its end, from its last checkpoint if `work` holds one."""

    model: nn.Module
    """With adapter layers attached; what is trainable is trained, in place."""
    objective: BatchedLoss
    phase: Phase
    name: str
    """Of the phase, for records and progress."""
    seed: int
    """Of batches and dropout."""
    adapter: Adapter
    work: Path
    """For checkpoints; the caller deletes it when the phase is safely stored."""
    valid: BatchedLoss | None = None
    """What to evaluate, with its own rows."""
    ask: Callable[[], ReplyCheck] | None = None
    """Has the model reply to prompts, at each evaluation."""
    log: Callable[[Mapping[str, Any]], None] = lambda record: None
    """Takes one record per step, evaluation and warning."""
    rewind: Callable[[int], None] = lambda step: None
    """Told the step that a phase goes on from (-1: anew), so that records beyond can go."""
    group: Group = ALONE
    """The processes that train this phase together, each with a model and `work` of its own."""
    progress: Progress = silent

    def run(self) -> Trained:
        """Train.

        Raises:
            TrainingError: a red line ends the phase. The steps before it are saved.
            RunError: the checkpoints are damaged.
            Interrupted: SIGINT or SIGTERM came. The step under way was finished and saved.
            PeerLost: another process of the group was lost. The steps before are saved.
        """
        checkpoint_gradients(self.model, self.phase.grad_checkpoint)
        mx.reset_peak_memory()
        self._order = order_of(
            self.phase, self.objective.lengths, self.objective.weights, self.seed
        )
        self.steps = total_steps(self.phase, self._order)
        back: _Back | None = None
        try:
            with _stop_asked() as asked:
                while True:
                    try:
                        return self._attempt(asked, back)
                    except _Back as again:
                        back = again
        finally:
            checkpoint_gradients(self.model, False)
            self.model.eval()

    def _attempt(self, asked: Sequence[signal.Signals], back: _Back | None) -> Trained:
        """From the last checkpoint to the end, unless a red line sends the phase back to it."""
        phase, objective = self.phase, self.objective
        optimizer = make_optimizer(phase)
        self._keeper = Keeper(self.model, optimizer, self.adapter, self.work)
        saved, wrong = self._keeper.resume()
        self._state = state = saved or State()
        # -1: the evaluation at step 0 comes again, too
        self.rewind(state.step if saved is not None else -1)
        went = f"went back to the checkpoint of step {state.step}"
        if wrong:
            self._warn(state.step, f"{'; '.join(wrong)}: {went}")
        if back is not None:
            state.watch.rollbacks = back.rollbacks + 1
            self._warn(state.step + 1, f"{back}: {went}, now at {1 / 2**state.watch.rollbacks} lr")
        stepper = Stepper(self.model, optimizer, objective, phase, self.group)
        if saved is None:
            self._evaluate()
            if "back" in dataclasses.asdict(phase.red_lines).values():
                self._keeper.save(state)
        while not (stop := self._stop(asked)) and state.step < self.steps and not self._reached():
            self._step(stepper)
            if due(phase.eval_every_steps, state.step, self.steps):
                self._evaluate()
            if due(phase.save_every_steps, state.step, self.steps):
                self._keeper.save(state)
        if stop:
            self._keeper.save(state)
            name = signal.Signals(stop).name
            raise Interrupted(
                f"{self.name}: stopped by {name} after step {state.step} of {self.steps}, "
                f"which is saved in {self.work}; go on with --resume",
                stop,
            )
        if state.best is not None:
            self._keeper.take(state.best)
            return Trained(state.step, state.metrics, state.best["valid"], state.best["step"])
        return Trained(state.step, state.metrics, state.valid, state.step)

    def _stop(self, asked: Sequence[signal.Signals]) -> int:
        """The signal that asked this process, or another of the group, to stop; or 0."""
        with self._saved_if_lost():
            return self.group.most(max(asked, default=0))

    @contextlib.contextmanager
    def _saved_if_lost(self) -> Iterator[None]:
        """Between steps and within them: if the group falls apart, what was done is saved."""
        try:
            yield
        except PeerLost as lost:
            if self.group.first:
                self._keeper.save(self._state)
            at = f"{self.name}, after step {self._state.step} of {self.steps}"
            raise PeerLost(f"{at}: {lost}") from lost

    def _step(self, stepper: Stepper) -> None:
        """Take the next step, or leave it out."""
        phase, state, watch = self.phase, self._state, self._state.watch
        step = state.step + 1
        mx.random.seed((self.group.rank << 56) + (self.seed << 20) + step)
        first = (step - 1) * phase.accumulate
        rows = [self._order.batch(index) for index in range(first, first + phase.accumulate)]
        parts = [
            batch
            for turn, some in enumerate(rows)
            for batch in micro_batches(self.objective, self.group.share(some, turn))
        ]
        rate = learning_rate(phase, step, self.steps) / 2**watch.rollbacks
        # A spike that is only told of is taken.
        leap = watch.limit(self.phase.spike_threshold)
        limit = math.inf if phase.red_lines.spike == "warn" else leap
        self.model.train()
        started = time.perf_counter()
        with self._saved_if_lost():
            metrics, loss, norm, tokens = stepper.step(parts, rate, limit)
        seconds = time.perf_counter() - started
        red = watch.step(loss, norm, leap)
        if red is not None and not (red.line == "spike" and limit == math.inf):
            self._cross(red, step, rows)
            if watch.left_out():
                self._end(f"{red.what}, and {IDLE} steps in a row are left out")
            state.step = step
            return
        speed = tokens / seconds
        self.log(
            {
                "phase": self.name,
                "step": step,
                **metrics,
                "lr": rate,
                "grad_norm": norm,
                "tokens_per_s": round(speed, 1),
                "peak_memory_gb": round(mx.get_peak_memory() / 1e9, 3),
            }
        )
        info = {"loss": f"{loss:.4f}", "tokens/s": f"{speed:.0f}"}
        if on_gpu():
            info["compiled"] = str(len(stepper.shapes))
        self.progress(self.name, step, self.steps, info)
        state.step, state.metrics = step, metrics
        stuck = watch.taken(loss, norm, uninformed_loss=self.phase.uninformed_loss)
        for found in filter(None, (red, stuck)):
            self._cross(found, step, rows)

    def _reached(self) -> bool:
        """Whether the last evaluation is what the phase is trained for."""
        goal, valid = self.phase.until, self._state.valid
        return goal is not None and bool(valid) and goal.reached(valid)

    def _evaluate(self) -> None:
        """Measure, and judge what is measured."""
        phase, state = self.phase, self._state
        self.model.eval()
        valid = evaluate(self.model, self.valid, self.group) if self.valid is not None else {}
        metrics, faults = self.ask() if self.ask is not None else ReplyCheck({}, [])
        measured = {**valid, **metrics}
        broken = [key for key, value in measured.items() if not math.isfinite(value)]
        if broken:
            what = f"validation {', '.join(broken)} is not finite"
            self._cross(Red("not_finite", what), state.step)
            return
        state.valid = measured
        if state.valid:
            told = {f"valid_{key}": value for key, value in state.valid.items()}
            self.log({"phase": self.name, "step": state.step, **told})
        if phase.best is not None:
            self._keeper.offer(state, phase.best)
        reds = state.watch.evaluation(valid["loss"]) if valid else []
        for fault in faults:
            if state.step == 0:  # the model came like that
                self._warn(0, f"{self.name}, before training: {fault}", "replies")
            else:
                reds.append(Red("replies", fault))
        for red in reds:
            self._cross(red, state.step)

    def _cross(self, red: Red, step: int, batches: Sequence[Sequence[int]] = ()) -> None:
        """Do what the recipe says of a red line, crossed on these batches of rows."""
        origins = [origin for rows in batches for origin in self.objective.batch(rows).origins]
        on = f" on rows {', '.join(origins)}" if origins else ""
        said = f"{self.name}, step {step}: {red.what}{on}"
        action = getattr(self.phase.red_lines, red.line)
        if action == "back" and self._state.watch.rollbacks < ROLLBACKS:
            raise _Back(said, self._state.watch.rollbacks)
        if action in ("stop", "back"):
            # A step that was left out comes again, and stops again.
            past = "--resume goes on all the same; " if step == self._state.step else ""
            self._end(said, past)
        self._warn(step, said, red.line)

    def _end(self, said: str, past: str = "") -> NoReturn:
        self._keeper.save(self._state)
        raise TrainingError(
            f"{said}; step {self._state.step} is saved in {self.work}; {past}in another --run-dir, "
            f"lower phases.{self.name}.lr, or say in phases.{self.name}.red_lines what to do"
        )

    def _warn(self, step: int, said: str, line: str = "checkpoint") -> None:
        self.log({"phase": self.name, "step": step, "red_line": line, "warning": said})
        self.progress(self.name, self._state.step, self.steps, {"warning": said})


class _Back(Exception):
    """The recipe has the phase go on from its last checkpoint, at half the rate."""

    def __init__(self, said: str, rollbacks: int) -> None:
        super().__init__(said)
        self.rollbacks = rollbacks  # before this one; the checkpoint may know of fewer


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
