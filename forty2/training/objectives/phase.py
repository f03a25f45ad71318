"""The keys that every phase of a recipe has, and what an objective states about itself.

An objective is a subclass of `Phase` in a file of this folder. Its fields are the keys that a
recipe may give, its class attributes tell the rest of the package how to train it, its methods call
the equations in `training.losses`. Reading a recipe must not import mlx, so methods import the
equations when they are called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from forty2.text.row_kinds import RowKind
from forty2.text.rows import AnyPair, Row

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
"""A rule between fields is a validator of the last of them, so that it is reported along with errors
in the others; defaults are validated because a rule can be about a key that is missing."""
Positive = Annotated[int, Field(gt=0, lt=2**31)]
Metric = Literal["loss", "accuracy", "margin", "passed"]
"""A metric of an evaluation; `passed` is the share of eval prompts answered as expected."""
Direction = Literal["min", "max"]
SPIKE_THRESHOLD = 1.0
"""Smallest rise over the recent mean loss that counts as a spike, in nats."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Best:
    """Keep the adapter of the evaluation at which a validation metric was best."""

    metric: Metric
    """Metric to compare: loss, accuracy and margin on the validation rows, passed on eval_prompts."""
    direction: Literal["min", "max"]
    """Whether the smallest or the largest value is best."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Goal:
    """End a phase at the evaluation whose metric reaches a value."""

    metric: Metric
    """Metric to watch: loss, accuracy and margin on the validation rows, passed on eval_prompts."""
    at_least: float | None = None
    """Reached at this value or above. Give at_least or at_most."""
    at_most: float | None = None
    """Reached at this value or below. Give at_least or at_most."""

    @field_validator("at_most")
    @classmethod
    def _one_side(cls, at_most: float | None, info: ValidationInfo) -> float | None:
        if "at_least" in info.data and (info.data["at_least"] is None) == (at_most is None):
            raise ValueError("at_least: give at_least or at_most, one of the two")
        return at_most

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """Return whether these metrics are good enough."""
        value = metrics[self.metric]
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RedLines:
    """Actions to take when training goes wrong (`training.red_lines` says when it does).

    warn: report it and go on. stop: end the phase; the steps before are saved. skip: do not take
    the step. back: go on from the last checkpoint at half the rate, three times at most.
    """

    not_finite: Literal["stop", "skip", "back"] = "stop"
    """The loss or the gradient is not a number."""
    spike: Literal["warn", "stop", "skip", "back"] = "warn"
    """The loss jumps far above the recent steps'."""
    stuck: Literal["warn", "stop"] = "warn"
    """For many steps there is no gradient, or the loss is that of a model that knows nothing."""
    validation: Literal["warn", "stop", "back"] = "warn"
    """Validation loss rises twice in a row, or is five times the training loss."""
    replies: Literal["warn", "stop", "back"] = "warn"
    """The same reply to different prompts, or control tokens within replies."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Phase:
    """A phase, whatever its objective."""

    row_kind: ClassVar[RowKind]
    """Kind of rows in its data files."""
    needs_reference: ClassVar[bool]
    """Whether its loss reads the log-probabilities of the policy as the phase begins."""
    sorts_batches: ClassVar[bool]
    """Whether batches are formed from rows of similar length (less padding) or at random."""
    metrics: ClassVar[Mapping[str, Direction | None]]
    """Metrics of a step, each with the direction that is better; None: neither is."""
    uninformed_loss: ClassVar[float] = math.inf
    """Mean loss of a model that knows nothing, in nats; staying above it is a red line."""

    objective: str
    """Name of the objective that the phase optimizes."""
    data: str
    """A data file, a folder with train.jsonl (and valid.jsonl), hub:OWNER/NAME or builtin:NAME."""
    valid: str | None = None
    """Validation rows; absent: the data folder's valid.jsonl, if it has one."""
    lint: bool = True
    """Refuse data in which `forty2 data lint` finds errors."""
    steps: Positive | None = None
    """Optimizer steps. Give steps or epochs."""
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Passes over the training rows. Give steps or epochs."""
    batch_size: Positive = 4
    """Rows (for preferences: pairs) in a batch; how many are computed at once is the machine's."""
    batch_tokens: Positive | None = None
    """In place of `batch_size`: about so many tokens in a batch."""
    accumulate: Positive = 1
    """Batches to one optimizer step; equals one batch of all their rows."""
    lr: Annotated[float, Field(gt=0, lt=1)]
    """Learning rate after warm-up. No default."""
    optimizer: Literal["adamw", "adam", "lion", "sgd", "adafactor"] = "adamw"
    """Optimizer, as mlx implements it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay, as the optimizer applies it; adam has none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the rate after warm-up: constant, or falling to reach zero after the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the rate rises from zero to lr."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; null: never."""
    grad_checkpoint: bool | Positive = False
    """Recompute blocks in the backward pass: all trained ones, or so many from the lowest."""
    replay_gb: Annotated[float, Field(ge=0)] = 4.0
    """Disk for what frozen blocks make of each row, computed once and replayed; 0: never."""
    eval_every_steps: Positive | None = None
    """Validate every so many steps, and always at the first and last; absent: a fifth."""
    save_every_steps: Positive | None = None
    """Checkpoint every so many steps, and always at the last; absent: a fifth."""
    eval_prompts: str | None = None
    """Prompts with expected replies, answered and scored at each evaluation: a JSON file."""
    best: Best | None = None
    """Carry forward the best adapter rather than the last."""
    until: Goal | None = None
    """End before the last step, when an evaluation is good enough."""
    red_lines: RedLines = Field(default_factory=RedLines)
    """Actions when training goes wrong."""

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        if "steps" in info.data and (info.data["steps"] is None) == (epochs is None):
            raise ValueError("steps: give steps or epochs, one of the two")
        return epochs

    @field_validator("warmup_steps", "eval_every_steps", "save_every_steps")
    @classmethod
    def _reached(cls, every: int | None, info: ValidationInfo) -> int | None:
        steps = info.data.get("steps")
        if every is not None and steps is not None and every > steps:
            raise ValueError(
                f"{info.field_name}: {every} is beyond the last step ({steps}): never reached"
            )
        return every

    @property
    def spike_threshold(self) -> float:
        """Smallest rise over the recent mean loss that counts as a spike, in nats."""
        return SPIKE_THRESHOLD

    def data_warnings(self, rows: Sequence[Row] | Sequence[AnyPair]) -> list[str]:
        """List properties of the training rows that do not suit the objective, for `forty2 plan`."""
        return []

    @field_validator("best", "until")
    @classmethod
    def _measured(cls, wish: Best | Goal | None, info: ValidationInfo) -> Best | Goal | None:
        known = [name for name, direction in cls.metrics.items() if direction is not None]
        if wish is not None and wish.metric not in (*known, "passed"):
            raise ValueError(
                f"{info.field_name}: a phase of this objective does not measure {wish.metric}; it "
                f"has {', '.join(known)} and passed"
            )
        prompts = info.data.get("eval_prompts", "")  # missing here: given, but not valid
        if wish is not None and wish.metric == "passed" and prompts is None:
            raise ValueError(
                f"{info.field_name}: passed is the share of eval_prompts, and there are none"
            )
        return wish
