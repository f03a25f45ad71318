"""Measuring a phase between its steps: the loss on validation rows, and the model's replies."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from forty2.model.phase_attention import order_metric
from forty2.progress import Progress, silent
from forty2.training.batched_loss import BatchedLoss, micro_batches
from forty2.training.processes import ALONE, Group


class ReplyCheck(NamedTuple):
    """The model's replies to a phase's prompts, checked."""

    metrics: dict[str, float]
    """Shares of the prompts; empty where no reply is expected."""
    faults: list[str]
    """Defects that would be wrong in a reply to any prompt, each in a few words."""
    garbage: str = ""
    """Sentence about replies that have nothing of what is expected: a defect late in a phase; "": none."""
    broken_tags: Sequence[str] = ()
    """Sentences about replies whose tags are broken."""
    missing_tags: Sequence[str] = ()
    """Sentences about tags that no reply holds that should: a defect once something was trained."""


class Drift(NamedTuple):
    """How far a model has moved from its base on neutral text."""

    kl: float
    """Mean KL from the base, nats a token."""
    perplexity: float
    """Perplexity as a ratio to the base's."""
    neutral_perplexity: float = math.nan
    """Perplexity itself; NaN: not measured."""


class Evaluation(NamedTuple):
    """The figures of one evaluation."""

    valid: dict[str, float]
    """Metrics of the validation rows."""
    replies: ReplyCheck
    drift: Drift | None
    hold_out: dict[str, float]
    """Metrics of the rows that are held out by their keys."""


class Evaluator(NamedTuple):
    """The validation rows and the prompts that an evaluation uses."""

    valid_loss: BatchedLoss | None = None
    """The loss over the validation rows; None: there are none."""
    check_replies: Callable[[Progress], ReplyCheck] | None = None
    """Function that has the model reply to prompts, in the first process of a group; None: never."""
    measure_drift: Callable[[], Drift] | None = None
    """Function that measures the drift from the base, in the first process of a group; None: never."""
    hold_out_loss: BatchedLoss | None = None
    """The loss over the rows that are held out by their keys; None: there are none."""

    def evaluate(self, model: nn.Module, group: Group, progress: Progress = silent) -> Evaluation:
        """Measure validation rows, replies and drift; leave the model in eval."""
        model.eval()
        valid, hold_out = (
            evaluate(model, loss, group, progress) if loss is not None else {}
            for loss in (self.valid_loss, self.hold_out_loss)
        )
        replies, drift = ReplyCheck({}, []), None
        if self.check_replies is not None:
            check = functools.partial(self.check_replies, progress)
            replies = ReplyCheck(*group.broadcast(check))
        if self.measure_drift is not None:
            progress("drift from the base", 0, 1, {})
            drift = Drift(*group.broadcast(self.measure_drift))
        return Evaluation(valid, replies, drift, hold_out)


def evaluate(
    model: nn.Module,
    loss: BatchedLoss,
    group: Group = ALONE,
    progress: Progress = silent,
    *,
    which: Sequence[int] | None = None,
) -> dict[str, float]:
    """Compute a loss's mean metrics over its rows, without dropout; leave the model in eval.

    Args:
        which: indices of the rows; None: all.
    """
    model.eval()
    sums = dict.fromkeys(loss.metrics + order_metric(model), 0.0)
    weight, done = 0.0, 0
    own = group.shard(range(len(loss.lengths)) if which is None else which)
    step_arrays = loss.step_arrays(model, micro_batches(loss, own), group)
    for batch in micro_batches(loss, own):
        metrics = loss.loss(model, [*loss.arrays(batch), *step_arrays]).metrics
        mx.eval(metrics)
        for key, value in metrics.items():
            sums[key] += float(value)
        weight += batch.weight
        done += len(batch.rows)
        progress("validation rows", done, len(own), {})
    sums, weight = group.all_sum((sums, weight))
    return {key: float(value) / float(weight) for key, value in sums.items()}
