"""Every key of a recipe, as frozen dataclasses. The keys of a phase are in `training.objectives`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args, get_type_hints

from pydantic import BeforeValidator, Field, JsonValue, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from forty2.recipe.document import Document
from forty2.recipe.tags import check_tags
from forty2.training.objectives import OBJECTIVES
from forty2.training.objectives.phase import STRICT, Phase, Positive
from forty2.training.objectives.phase import Trains as Trains

Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A name that is safe as a file name."""
Tracker = Literal["tensorboard", "wandb"]
"""A service that can receive the metrics of a run."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhaseAttention:
    """Phases of a block's tokens, coupled as Kuramoto's oscillators are, whose waves a gate that starts
    at zero adds to the block's output. Their tensors are part of the adapter; such an adapter cannot be
    fused."""

    block: Annotated[int, Field(ge=0)]
    """Number of the block, the first is 0."""
    oscillators: Positive = 32
    """Phases of each token."""
    steps: Positive = 5
    """Steps of the coupling; with more of them the phases come closer to each other."""
    dt: Annotated[float, Field(gt=0)] = 0.1
    """Size of a step."""
    coupling: Annotated[float, Field(ge=0)] = 1.0
    """Strength by which a token's phases are pulled towards those before it; 0: not at all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Adapter:
    """Kind and shape of the adapter, shared by all phases that train one."""

    type: Literal["lora", "dora"] = "lora"
    """Kind of adapter that phases without `train` train: lora, or dora, which also trains the norm of each
    row of a weight; a step of dora takes longer and more memory."""
    rank: Positive = 8
    """Rank of the two low-rank factors; a higher rank has more parameters to train."""
    scale: Annotated[float, Field(gt=0)] = 10.0
    """Factor that multiplies the adapter's update of a weight; other packages write alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to zero at random in each training step; 0: none."""
    layers: Positive | None = None
    """Number of transformer blocks that get an adapter, counted from the last; null: all."""
    keys: list[str] | None = None
    """Names of the layers that get an adapter: in a block, e.g. [self_attn.q_proj], or in the whole
    model, e.g. [lm_head, model.embed_tokens]; null: all linear layers of the blocks."""
    phase_attention: PhaseAttention | None = None
    """Coupled phases in one block, trained beside its layers, e.g. {block: 7}; null: none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TagsInit:
    """Embeddings of the recipe's tags before they are trained."""

    rows: Literal["description", "all"] = "description"
    """Rows of the table whose mean an embedding begins as: those of its description's tokens (without a
    description: of the pieces of the tag's own text), or all."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Standard deviation of random numbers that are added, as a share of that of the table's numbers."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of these numbers; another than the recipe's, so that runs with several seeds have one base."""
    pad_to: Annotated[int, Field(gt=0, le=65_536)] = 64
    """Number of which the table's rows become a multiple, for speed. The rows beyond the tags are the mean
    of all others and stay so."""


if TYPE_CHECKING:
    AnyPhase = Phase
else:
    AnyPhase = Annotated[
        functools.reduce(operator.or_, OBJECTIVES.values()), Field(discriminator="objective")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchmarkTask:
    """A benchmark to measure, with its own data and number of questions."""

    task: Slug
    """Name of the benchmark: truthfulqa, truthfulqa_binary, mmlu, gsm8k, humaneval or reply_style."""
    data: str | None = None
    """File or folder of its questions. null, for truthfulqa: the section's `questions`; for reply_style:
    open questions of the package; the others have no default."""
    n: Positive | None = None
    """Largest number of questions; null: the section's `n`."""
    run_untrusted_code: bool = False
    """Let humaneval run the programs that the model writes, in a sandbox."""


def _named(entry: object) -> object:
    """Turn a task given by its name alone into a mapping."""
    return BenchmarkTask(task=entry) if isinstance(entry, str) else entry


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cost:
    """Largest losses that still count as no cost, stated before the run.

    A loss counts as none if its whole 95% interval lies within the margin.
    """

    perplexity: Annotated[float, Field(gt=1)] = 1.05
    """Largest ratio of the perplexity of neutral text to the base model's."""
    facts: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Largest loss in the share of plain facts answered right. The 50 prompts cannot exclude a loss
    below 0.08."""
    other: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Largest loss of score of each other benchmark that the recipe names."""
    tasks: dict[Slug, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    """Largest losses of score by benchmark, in place of `other`, e.g. {mmlu: 0.02}."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Benchmark:
    """Measurements of the base model, after each phase, and of the fused model, beside those of the
    held-out rows."""

    questions: str | None = None
    """File of TruthfulQA questions, mc_task.json or CSV; `probe`: forty2's own questions; null: those
    of the Hugging Face hub, or forty2's own if the hub cannot be reached. Read for truthfulqa in
    `tasks`, which is there by default if this is given."""
    n: Positive | None = None
    """Number to draw of whatever is measured: questions of each benchmark (those of truthfulqa stratified
    by category), held-out rows of each kind, prompts of the behaviour gates, windows of neutral text.
    Plain facts are all asked. null: all, but at most 200 held-out rows of a kind."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Largest loss of what shows the benefit, in the unit of its score (of a share, 0.01 is one point
    in a hundred), that still counts as no alignment tax."""
    cost: Cost = Field(default_factory=Cost)
    """Margins by which the cost of training is judged."""
    each_phase: bool = True
    """Measure after each phase; false, to save time: the base and what the run ends with alone."""
    held_out: bool = True
    """Measure the phases' validation rows and eval prompts at every stage; false, for quick tries: only
    while training."""
    tasks: list[Annotated[BenchmarkTask, BeforeValidator(_named)]] = Field(
        default=None,
        validate_default=True,
        kw_only=True,  # else pydantic validates it before `questions`
    )
    """Benchmarks to measure, each a name or a mapping, e.g. {task: mmlu, data: DIR, n: 500}; [] or
    null: none beside the held-out rows and what they cost; of null, truthfulqa if `questions` is given.
    Where phases have validation rows, those show the benefit, and a loss in a benchmark is a cost; else
    the first benchmark shows the benefit; without either, the cost alone is measured. Each is compared
    and judged by itself, too. Training rows are searched for the questions of all."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _asked_for(cls, tasks: object, info: ValidationInfo) -> object:
        if tasks is not None:
            return tasks
        return [] if info.data.get("questions") is None else ["truthfulqa"]

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[BenchmarkTask], info: ValidationInfo) -> list[BenchmarkTask]:
        names = [entry.task for entry in tasks]
        if info.data.get("questions") is not None and "truthfulqa" not in names:
            raise ValueError(
                "tasks: nothing reads benchmark.questions without truthfulqa; add it, or remove questions"
            )
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tasks: {twice} is there twice; remove one")
        return tasks


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fuse:
    """Merge the last phase's adapter into the base when training is done."""

    out: str | None = None
    """Folder to write the fused model to; null: fused_models/NAME, where NAME is the run folder's
    name."""
    quantize: Literal[4, 8] | None = None
    """Bits per weight of a quantized copy, written as a last, separate step; null: no copy."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A whole run: model, adapter, phases in order, and what is measured and written. Paths are
    relative to the recipe's file."""

    version: Literal[1]
    """Version of the recipe format."""
    name: Slug
    """Name of the run; its folder is adapters/NAME unless another is named."""
    model: str
    """Model folder, hub name, or `smollm2` for the starter model."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed of the adapter's initial weights, the order of rows and all sampling."""
    max_length: Positive = 1024
    """Longest row in tokens, prompt and response together. Longer prompts lose their beginning; rows
    whose response does not fit are dropped."""
    chat_template: str | None = None
    """Chat template in place of the model's own: a file of Jinja, or `mypt`, which writes the tags of
    that name; null: the model's own."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables that the chat template reads, e.g. {enable_thinking: false}; for training, measuring
    and the fused model alike."""
    system_turn: Literal["keep", "fold"] = "keep"
    """`fold`: merge a system turn into the user turn after it, for chat templates that take none;
    `keep`: leave it to the template."""
    init_from: str | None = None
    """Adapter that the first phase goes on from: a run (its last finished phase), a phase of one as in
    RUN/dpo, or an adapter folder of mlx-lm or PEFT. Rank, scale, layers and keys of the adapter
    section are taken from it. null: a new adapter."""
    adapter: Adapter = Field(default_factory=Adapter)
    """Kind and shape of the adapter."""
    tags: Annotated[
        str | list[str] | dict[str, str | list[str]] | None, BeforeValidator(check_tags)
    ] = None
    """New special tokens: a list, e.g. [<note>, </note>]; a mapping of each to a description or to a list
    of tokens, from whose embeddings its own begins; or `mypt`, the 19 tags of MyPT. Their embeddings
    are trained whole, those of all other tokens stay as they are. null: none."""
    tags_init: TagsInit = Field(default_factory=TagsInit, kw_only=True)
    """Embeddings of the tags before they are trained."""
    phases: Annotated[dict[Slug, AnyPhase], Field(min_length=1)]
    """Phases by name, trained in this order; each goes on from the adapter of the one before it."""
    fuse: Fuse | None = None
    """Merging of the adapter into the base; null: do not merge."""
    report_to: list[Tracker] = Field(default_factory=list)
    """Trackers that get the numbers of metrics.jsonl while the run goes on, e.g. [tensorboard, wandb]; each
    needs a package, an extra of forty2. []: none. May differ when a run goes on."""
    project: Slug | None = None
    """Project of the trackers that have projects; null: forty2."""
    benchmark: Benchmark | None = Field(default_factory=Benchmark)
    """Benchmarks and margins of the cost. By default, validation rows and eval prompts are measured,
    with plain facts and neutral text as their cost, and no benchmark; null: the same, but nothing at all
    where there are no such rows and prompts."""
    written: ClassVar[Document | None] = None
    """The file that it was read from, for messages; None: it was made in Python."""

    @field_validator("fuse")
    @classmethod
    def _can_be_fused(cls, fuse: Fuse | None, info: ValidationInfo) -> Fuse | None:
        adapter = info.data.get("adapter")
        if fuse is not None and adapter is not None and adapter.phase_attention is not None:
            raise ValueError(
                "fuse: an adapter with phase_attention cannot be merged into the base; remove fuse, or "
                "adapter.phase_attention"
            )
        return fuse

    @field_validator("tags_init")
    @classmethod
    def _has_tags(cls, start: TagsInit, info: ValidationInfo) -> TagsInit:
        if start != TagsInit() and info.data.get("tags", "") is None:
            raise ValueError("tags_init: there are no tags; name them in tags, or remove this")
        return start

    @field_validator("phases")
    @classmethod
    def _trains_tags(cls, phases: dict[str, Phase], info: ValidationInfo) -> dict[str, Phase]:
        for name, phase in phases.items():
            if phase.tags_lr is not None and info.data.get("tags", "") is None:
                raise ValueError(
                    f"phases: {name}: tags_lr is there, but no tags; name them in tags, or remove it"
                )
        return phases

    @field_validator("phases")
    @classmethod
    def _can_train(cls, phases: dict[str, Phase], info: ValidationInfo) -> dict[str, Phase]:
        adapter = info.data.get("adapter", Adapter())
        for name, phase in phases.items():
            kind = phase.train
            if kind in ("embeddings", "full") and phase.kl_term is not None:
                raise ValueError(
                    f"phases: {name}: kl reads the reference's probabilities with the model's own head, which "
                    f"train: {kind} changes; remove one of the two"
                )
            if kind not in (None, adapter.type) and adapter.phase_attention is not None:
                raise ValueError(
                    f"phases: {name}: train: {kind} is not possible with adapter.phase_attention, which is "
                    "part of the adapter; remove one of the two"
                )
        return phases

    @field_validator("phases")
    @classmethod
    def _can_carry(cls, phases: dict[str, Phase], info: ValidationInfo) -> dict[str, Phase]:
        kind = info.data.get("adapter", Adapter()).type
        for (name, phase), (after, other) in itertools.pairwise(phases.items()):
            if not phase.carry_optimizer:
                continue
            one, two = (
                {
                    "train": each.train or kind,
                    "optimizer": each.optimizer,
                    "tags_lr": "given" if each.tags_lr is not None else "left out",
                }
                for each in (phase, other)
            )
            if differing := next((key for key in one if one[key] != two[key]), None):
                raise ValueError(
                    f"phases: {name}: carry_optimizer: {differing} is {one[differing]} here and "
                    f"{two[differing]} in {after}, so the moments do not fit; make them alike, or remove "
                    "carry_optimizer"
                )
        return phases

    def trained_in(self, phase: str) -> Trains:
        """Return what a phase trains."""
        return self.phases[phase].train or self.adapter.type

    @field_validator("report_to")
    @classmethod
    def _reported_once(cls, trackers: list[Tracker]) -> list[Tracker]:
        twice = next((name for name in trackers if trackers.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"report_to: {twice} is there twice; remove one")
        return trackers


def _sections() -> dict[str, type]:
    """Find the dataclasses that `Recipe` is made of, those nearest to it first."""
    found: dict[str, type] = {"recipe": Recipe}
    kinds: list[type] = [Recipe]
    for kind in kinds:
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            for part in _parts(hints[field.name]):
                if dataclasses.is_dataclass(part) and part not in kinds:
                    objectives = (name for name, phase in OBJECTIVES.items() if phase is part)
                    found[next(objectives, field.name)] = part
                    kinds.append(part)
    return found


def _parts(annotation: object) -> Iterator[type]:
    """Yield the plain types that an annotation is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def keys_of(kind: type) -> dict[str, str]:
    """Return the key of each field of a section: its name, unless that would be a word of Python."""
    hints = get_type_hints(kind, include_extras=True)
    keys = {}
    for field in dataclasses.fields(kind):
        notes = getattr(hints[field.name], "__metadata__", ())
        aliases = (note.alias for note in notes if isinstance(note, FieldInfo))
        keys[field.name] = next((alias for alias in aliases if alias), field.name)
    return keys


SECTIONS = _sections()
"""The dataclass of each section of a recipe, by name: a phase's objective, else the field's name."""
