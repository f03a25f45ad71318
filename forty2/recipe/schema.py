"""Every key of a recipe, as frozen dataclasses. The keys of a phase are in `training.objectives`."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic.dataclasses import dataclass

from forty2.training.objectives import OBJECTIVES
from forty2.training.objectives.phase import STRICT, Phase, Positive

Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Adapter:
    """Shape of the LoRA adapter, shared by all phases."""

    rank: Positive = 8
    scale: Annotated[float, Field(gt=0)] = 10.0
    """Multiplies the update itself; other packages write alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers: Positive | None = None
    """How many blocks, from the last; absent: all."""
    keys: list[str] | None = None
    """Linear layers in a block, e.g. [self_attn.q_proj]; absent: all."""


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
    """Name of the benchmark: truthfulqa, mmlu, gsm8k or humaneval."""
    data: str | None = None
    """File or folder of its questions; absent, for truthfulqa only: `questions`."""
    n: Positive | None = None
    """Largest number of questions; absent: the `n` of the section."""
    run_untrusted_code: bool = False
    """true lets humaneval run the programs that the model writes, in a sandbox."""


def _named(entry: object) -> object:
    """A task that is given by its name alone."""
    return BenchmarkTask(task=entry) if isinstance(entry, str) else entry


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Benchmark:
    """What to measure on the base, after each phase and on the fused model."""

    questions: str | None = None
    """TruthfulQA questions: mc_task.json or CSV; `probe`: our own; absent: the hub's, else ours."""
    n: Positive | None = None
    """Largest number of questions (stratified by category), held-out prompts and neutral windows."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Largest loss of TruthfulQA that still counts as no tax, stated before the run."""
    tasks: list[Annotated[BenchmarkTask, BeforeValidator(_named)]] = Field(
        default=[BenchmarkTask(task="truthfulqa")]
    )
    """Benchmarks to measure, each a name or a mapping, e.g. {task: mmlu, data: DIR, n: 500}; the
    verdict is over truthfulqa, the others are compared beside it."""

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[BenchmarkTask]) -> list[BenchmarkTask]:
        names = [entry.task for entry in tasks]
        if "truthfulqa" not in names:
            raise ValueError("tasks: truthfulqa is missing; the verdict is over it, so keep it")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tasks: {twice} is there twice; remove one")
        return tasks


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fuse:
    """Merge the last phase's adapter into the base when training is done."""

    out: str | None = None
    """Folder; absent: fused_models/NAME, NAME being the run folder's."""
    quantize: Literal[4, 8] | None = None
    """Also write a quantised copy with so many bits, as a last, separate step."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A whole run."""

    version: Literal[1]
    name: Slug
    model: str
    """Model folder, hub name, or `smollm2` for the starter model."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    max_length: Positive = 1024
    """Tokens of a row, prompt and response together."""
    adapter: Adapter = Field(default_factory=Adapter)
    phases: Annotated[dict[Slug, AnyPhase], Field(min_length=1)]
    fuse: Fuse | None = None
    benchmark: Benchmark | None = Field(default_factory=Benchmark)
    """null: measure nothing."""
