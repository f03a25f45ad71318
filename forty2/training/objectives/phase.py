"""The keys that every phase of a recipe has, and what an objective states about itself.

An objective is a subclass of `Phase` in a file of this folder. Its fields are the keys that a
recipe may give, its class attributes tell the rest of the package how to train it, its methods call
the equations in `training.losses`. Reading a recipe must not import mlx, so methods import the
equations when they are called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from forty2.text.encoder import Encoder
from forty2.text.row_kinds import PAIRS, RowKind
from forty2.text.rows import AnyPair, Row

if TYPE_CHECKING:
    from forty2.training.objectives.kl_term import KlTerm

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
"""Configuration of every section: unknown keys, other types, NaN and infinities are errors.

A rule between fields is a validator of the last of them, so that it is reported together with the
problems of the others. Defaults are validated because a rule can concern a key that was left out.
"""
Positive = Annotated[int, Field(gt=0, lt=2**31)]
ReplyMetric = Literal["spiral_score", "subtlety", "distinct_1", "distinct_2", "reply_length"]
"""A metric of replies to the prompts of the validation rows; `benchmark.reply_style` defines each."""
Metric = Literal["loss", "accuracy", "margin", "passed", "perplexity", ReplyMetric]
"""A metric of an evaluation; `passed` is the share of eval prompts answered as expected, `perplexity`
that of neutral text."""
REPLY_METRICS: tuple[str, ...] = get_args(ReplyMetric)
Direction = Literal["min", "max"]
Trains = Literal["lora", "dora", "embeddings", "full"]
"""What a phase trains."""
REFERENCE_MARGIN = "reference_margin"
"""Measure of difficulty that the reference gives, in place of a row key."""
SPIKE_THRESHOLD = 1.0
"""Smallest rise over the recent mean loss that counts as a spike, in nats."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Best:
    """Keep the adapter of the evaluation at which a validation metric was best.

    Of equally good evaluations, the one with the lower validation loss is kept, then the later one. The
    evaluation before the first step counts, too; a run warns if it is the best.
    """

    metric: Metric
    """Metric to compare: loss, accuracy or margin of the validation rows (an evaluation that crosses the
    red line `validation` does not count for loss); passed, the share of
    eval_prompts answered as expected; perplexity of neutral text; or, of replies to the prompts of up to
    32 validation rows, spiral_score, subtlety, distinct_1, distinct_2 or reply_length. The last five
    come with an interval and move by chance: the best of many evaluations is partly luck."""
    direction: Literal["min", "max"]
    """min: the smallest value is best; max: the largest. No default."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Goal:
    """End a phase at the evaluation whose metric reaches a value."""

    metric: Metric
    """Metric to compare, one of those of `best`."""
    at_least: float | None = None
    """End the phase at this value or above; null: at_most is given instead."""
    at_most: float | None = None
    """End the phase at this value or below; null: at_least is given instead."""

    @field_validator("at_most")
    @classmethod
    def _one_side(cls, at_most: float | None, info: ValidationInfo) -> float | None:
        if "at_least" in info.data and (info.data["at_least"] is None) == (at_most is None):
            raise ValueError("at_least: give at_least or at_most, one of the two")
        return at_most

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """Return whether these metrics are good enough."""
        value = metrics.get(self.metric)
        if value is None:  # no reply counts for it
            return False
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


Share = Annotated[float, Field(gt=0, le=1)]
Value = str | int | float | bool
"""A value of a row's key."""
Values = Annotated[list[Value], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Curriculum:
    """Order the training rows of a phase from easy to hard, or leave out the hardest."""

    by: str
    """Row key that says how hard a row is: a number, larger for harder ones, or a word of easy,
    medium, hard; simple, moderate, nuanced; explicit, mixed, implicit. Or, for pairs,
    reference_margin: the mean log-probability of a token of the chosen response less that of the
    rejected one, by the model as the phase begins; a pair with a small or negative one is hard."""
    order: Literal["easy_first", "shuffled"] = "easy_first"
    """easy_first: by `stages`, or without them from easy to hard in every pass; shuffled: no order, for
    `drop_hardest` alone."""
    stages: Annotated[list[Share], Field(min_length=1)] | None = None
    """Shares of the rows, the easiest first, that the passes use in turn, e.g. [0.3, 0.6, 1.0]: one pass
    over the easiest 30%, one over 60%, and all further ones over all. A share that stands twice is
    used for two passes. Within a pass the order is random. null: every pass uses all rows."""
    drop_hardest: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the rows, the hardest, that is never used. Preferences beyond a small model's capacity
    make it worse whenever they come, so leaving them out helps more than ordering them: Gao et al.
    2025 (arXiv:2502.09650), who gained 9 to 16% of win rate."""

    @field_validator("stages")
    @classmethod
    def _grow(cls, stages: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if stages is None:
            return None
        if info.data.get("order") == "shuffled":
            raise ValueError("stages: they go from easy to hard; set order: easy_first")
        if sorted(stages) != stages:
            raise ValueError(
                "stages: shares are cumulative, so none is smaller than the one before"
            )
        if stages[-1] != 1:
            raise ValueError(
                "stages: the last share should be 1, all rows; drop_hardest leaves rows out"
            )
        return stages

    @field_validator("drop_hardest")
    @classmethod
    def _does_something(cls, share: float, info: ValidationInfo) -> float:
        if not share and info.data.get("order") == "shuffled":
            raise ValueError(
                "order: shuffled without drop_hardest changes nothing; give one of them"
            )
        return share

    @property
    def sorts_passes(self) -> bool:
        """Whether every pass runs from easy to hard."""
        return self.order == "easy_first" and self.stages is None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Replay:
    """Rows of earlier training data among a phase's own rows, so that it does not forget them."""

    source: Annotated[str, Field(alias="from")]
    """An earlier phase, for its own training rows (not those that it holds out or replays itself); or
    a file, a folder, hub:OWNER/NAME or builtin:NAME. Its rows must be of the phase's kind."""
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the phase's rows, or of their tokens, that these rows make up. All own rows stay; the
    others are drawn at random, again from the start where there are too few."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RedLines:
    """Actions to take when training goes wrong.

    warn: report it and go on. stop: end the phase; the steps before are saved. skip: do not take
    the step. back: go on from the last checkpoint at half the learning rate, three times at most.
    """

    not_finite: Literal["stop", "skip", "back"] = "stop"
    """Action when the loss or the gradient is not a finite number."""
    spike: Literal["warn", "stop", "skip", "back"] = "warn"
    """Action when the loss jumps far above its recent mean."""
    stuck: Literal["warn", "stop"] = "warn"
    """Action when for many steps the gradient is zero, or the loss is no better than a guess."""
    validation: Literal["warn", "stop", "back"] = "warn"
    """Action when the validation loss rises twice in a row, or is five times the training loss."""
    replies: Literal["warn", "stop", "back"] = "warn"
    """Action when different prompts get the same reply, or, in the second half of a phase, under a tenth
    of the replies to eval_prompts has anything of what is expected."""
    tags: Literal["warn", "stop", "back"] = "warn"
    """Action when replies hold broken tags (half a pair, not closed, wrongly nested, a control token that
    does not belong there), or a tag or end token is in none of several replies that should hold it."""
    drift: Literal["warn", "stop", "back"] = "warn"
    """Action when neutral text shows that the model is far from its base: a KL above 0.5 nats a token,
    or 1.3 times its perplexity."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Phase:
    """A phase with any objective."""

    row_kind: ClassVar[RowKind]
    """Kind of rows in its data files."""
    needs_reference: ClassVar[bool]
    """Whether its loss reads the log-probabilities of the policy at the start of the phase."""
    sorts_batches: ClassVar[bool]
    """Whether batches are formed from rows of similar length (less padding) or at random."""
    metrics: ClassVar[Mapping[str, Direction | None]]
    """Metrics of a step, each with the direction in which it is better; None: neither is better."""
    uninformed_loss: ClassVar[float] = math.inf
    """Mean loss of a model that knows nothing, in nats; staying above it is a red line."""

    objective: str
    """Name of the objective that the phase optimizes."""
    data: str
    """Training rows: a file, a folder with train.jsonl (and valid.jsonl), hub:OWNER/NAME or
    builtin:NAME."""
    valid: str | None = None
    """File of validation rows; null: the data folder's valid.jsonl, if it has one."""
    replay: Annotated[list[Replay], Field(min_length=1)] | None = None
    """Earlier training data to mix in, e.g. [{from: sft, share: 0.15}]; null: none."""
    replay_by: Literal["rows", "tokens"] = "rows"
    """Unit of the shares of `replay`."""
    lint: bool = True
    """Refuse data in which `forty2 data lint` finds errors."""
    train: Trains | None = None
    """What the phase trains: lora or dora, an adapter; embeddings, the table of embeddings and the head
    (of a recipe with tags, the tags' rows alone); full, all weights of the model. What earlier phases
    trained stays as it is. null: the adapter, of `adapter.type`."""
    steps: Positive | None = None
    """Number of optimizer steps; null: epochs is given instead."""
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Number of whole passes over the training rows: each row is used this often, or weight times as
    often. One batch of a pass, and the last step, may be smaller than the others. Of a part of a pass,
    as in 1.5, that share of the rows is used. null: steps is given instead."""
    batch_size: Positive = 4
    """Rows (for preferences: pairs) in a batch. To save memory, a batch may be computed in parts; the
    result is the same."""
    batch_tokens: Positive | None = None
    """Approximate number of tokens in a batch, in place of batch_size; null: batch_size counts."""
    accumulate: Positive = 1
    """Batches in one optimizer step, with the result of one batch of all their rows."""
    curriculum: Curriculum | None = None
    """Order of the rows from easy to hard, and the share of the hardest that is left out; null: random
    order, all rows."""
    stratify: Annotated[list[str], Field(min_length=1)] | None = None
    """Row keys, e.g. [domain, complexity]: every batch holds their values, and the combinations of
    them, as evenly as their numbers of rows allow. Each row is used as often as without. null: batches
    are drawn at random."""
    hold_out: Annotated[dict[str, Value | Values], Field(min_length=1)] | None = None
    """Rows that are never trained on but validated apart, by the values of row keys, e.g. {domain: arts}
    or {domain: [arts, law]}; with several keys, rows that match them all. null: none."""
    lr: Annotated[float, Field(gt=0, lt=1)]
    """Learning rate after warm-up. No default."""
    tags_lr: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Learning rate of the embeddings of the recipe's `tags`, with the same warm-up and schedule; null:
    lr."""
    optimizer: Literal["adamw", "adam", "lion", "sgd", "adafactor"] = "adamw"
    """Optimizer, as mlx implements it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay, as the optimizer applies it; adam has none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up: constant, or falling to zero after the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly from zero to lr."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global norm of the gradient; a larger gradient is scaled down to it; null: no limit."""
    grad_checkpoint: bool | Positive = False
    """Save memory by computing blocks again in the backward pass: true for all trained blocks, or a
    number of them, counted from the lowest."""
    replay_gb: Annotated[float, Field(ge=0)] = 4.0
    """Largest disk space, in GB, for the outputs of frozen blocks, which are computed once for each row
    and read back later. If they need more, or with 0, they are computed every time."""
    eval_every_steps: Positive | None = None
    """Steps between evaluations; one always precedes the first step and one follows the last; null: a
    fifth of all steps."""
    save_every_steps: Positive | None = None
    """Steps between checkpoints; one always follows the last step; null: a fifth of all steps."""
    eval_prompts: str | None = None
    """JSON file of prompts with expected replies, answered and scored at each evaluation, or those of a
    built-in set of MyPT's stages, as builtin:mypt-alpha; null: none."""
    best: Best | None = None
    """Adapter that the phase hands on: that of the best evaluation; null: that of the last step."""
    carry_optimizer: bool = False
    """Hand on the optimizer's moments with the adapter: the next phase, which must train the same with the
    same optimizer, goes on with them. false: it begins with a new optimizer."""
    until: Goal | None = None
    """Goal that ends the phase early, once an evaluation reaches it; null: train every step."""
    gate: Annotated[dict[str, Share], Field(min_length=1)] | None = None
    """Smallest shares of eval_prompts that must pass at the end of the phase, by bucket, e.g. {say: 0.95,
    all: 0.75}. The bucket of a prompt is its id before the last "_"; all is every prompt. May differ when
    a run goes on. null: none."""
    on_fail: Literal["stop", "repeat", "continue"] = "stop"
    """What to do when a share is below its gate. stop: end the run there; everything is kept. repeat:
    train for as many steps again, from where the phase ended, three times at most, then stop; needs
    schedule: constant. continue: warn, and go on."""
    red_lines: RedLines = Field(default_factory=RedLines)
    """Actions to take when training goes wrong."""

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        if "steps" in info.data and (info.data["steps"] is None) == (epochs is None):
            raise ValueError("steps: give steps or epochs, one of the two")
        return epochs

    @field_validator("replay")
    @classmethod
    def _leaves_room(cls, replay: list[Replay] | None) -> list[Replay] | None:
        names = [entry.source for entry in replay or ()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"replay: {twice} stands there twice; remove one")
        if sum(entry.share for entry in replay or ()) >= 1:
            raise ValueError("replay: the shares leave none for the phase's own rows; lower them")
        return replay

    @field_validator("replay_by")
    @classmethod
    def _measures_something(cls, unit: str, info: ValidationInfo) -> str:
        if unit != "rows" and info.data.get("replay", "") is None:
            raise ValueError("replay_by: there is no replay; give one, or leave replay_by out")
        return unit

    @field_validator("curriculum")
    @classmethod
    def _has_margins(cls, curriculum: Curriculum | None) -> Curriculum | None:
        if curriculum and curriculum.by == REFERENCE_MARGIN and cls.row_kind is not PAIRS:
            raise ValueError(
                f"curriculum: only pairs have a {REFERENCE_MARGIN}; name a row key in curriculum.by"
            )
        return curriculum

    @field_validator("stratify")
    @classmethod
    def _once_each(cls, keys: list[str] | None, info: ValidationInfo) -> list[str] | None:
        curriculum = info.data.get("curriculum")
        if keys and curriculum is not None and curriculum.sorts_passes:
            raise ValueError(
                "stratify: a pass from easy to hard cannot be even over strata as well; give "
                "curriculum.stages, within which the order is free"
            )
        if keys and len(set(keys)) < len(keys):
            raise ValueError("stratify: a key stands there twice; remove one")
        return keys

    @field_validator("gate")
    @classmethod
    def _has_prompts(
        cls, gate: dict[str, float] | None, info: ValidationInfo
    ) -> dict[str, float] | None:
        if gate is not None and info.data.get("eval_prompts", "") is None:
            raise ValueError("gate: is over eval_prompts, and there are none")
        return gate

    @field_validator("on_fail")
    @classmethod
    def _can_repeat(cls, on_fail: str, info: ValidationInfo) -> str:
        if on_fail != "stop" and info.data.get("gate", "") is None:
            raise ValueError(
                f"on_fail: {on_fail}: there is no gate; give one, or leave on_fail out"
            )
        if on_fail == "repeat" and info.data.get("schedule", "constant") != "constant":
            raise ValueError(
                "on_fail: repeat goes on with the learning rate of the last step, which the schedule "
                "lowers to zero; set schedule: constant"
            )
        if on_fail == "repeat" and info.data.get("until") is not None:
            raise ValueError(
                "on_fail: repeat goes on after the last step, but until ends before it; "
                "remove one of the two"
            )
        return on_fail

    @field_validator("carry_optimizer")
    @classmethod
    def _hands_on_last_step(cls, carried: bool, info: ValidationInfo) -> bool:
        if carried and info.data.get("best") is not None:
            raise ValueError(
                "carry_optimizer: the moments are those of the last step, but best hands on the adapter "
                "of another; remove one of the two"
            )
        return carried

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
    def kl_term(self) -> KlTerm | None:
        """The term λ·KL of its loss; None: it has none."""
        return None

    @property
    def supervision_weights(self) -> Mapping[str, float]:
        """Weights of supervised tokens that are not 1, by token."""
        return {}

    @property
    def course_depends_on_length(self) -> bool:
        """Whether the first steps of a phase would be others if it had more of them."""
        weight = self.kl_term
        return self.schedule != "constant" or (weight is not None and weight.to is not None)

    @property
    def chosen_by(self) -> set[str]:
        """Metrics that `best` and `until` compare."""
        return {wish.metric for wish in (self.best, self.until) if wish is not None}

    @property
    def spike_threshold(self) -> float:
        """Smallest rise over the recent mean loss that counts as a spike, in nats."""
        return SPIKE_THRESHOLD

    @property
    def row_keys(self) -> frozenset[str]:
        """Keys of the rows that order, divide or hold out rows."""
        by = {self.curriculum.by} - {REFERENCE_MARGIN} if self.curriculum is not None else set()
        return frozenset({*by, *(self.stratify or ()), *(self.hold_out or ())})

    def encoder(self, encoder: Encoder) -> Encoder:
        """Return the encoder for the phase's rows, made from one that learns all turns."""
        return encoder

    def data_warnings(self, rows: Sequence[Row] | Sequence[AnyPair]) -> list[str]:
        """List properties of the training rows that do not suit the objective, for `forty2 plan`."""
        return []

    @field_validator("best", "until")
    @classmethod
    def _measured(cls, wish: Best | Goal | None, info: ValidationInfo) -> Best | Goal | None:
        known = [name for name, direction in cls.metrics.items() if direction is not None]
        known += ["passed", "perplexity", *REPLY_METRICS]
        if wish is not None and wish.metric not in known:
            raise ValueError(
                f"{info.field_name}: a phase of this objective does not measure {wish.metric}; it "
                f"has {', '.join(known[:-1])} and {known[-1]}"
            )
        prompts = info.data.get("eval_prompts", "")  # missing here: given, but not valid
        if wish is not None and wish.metric == "passed" and prompts is None:
            raise ValueError(
                f"{info.field_name}: passed is the share of eval_prompts, and there are none"
            )
        return wish
