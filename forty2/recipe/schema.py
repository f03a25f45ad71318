"""Every key of a recipe, as frozen dataclasses. The keys of a phase are in `training.objectives`."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_type_hints

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.training.objectives import OBJECTIVES
from forty2.training.objectives.phase import STRICT, Phase, Positive

Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A name that is safe as a file name."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Adapter:
    """Shape of the LoRA adapter, shared by all phases."""

    rank: Positive = 8
    """Rank of the two low-rank factors; a higher rank has more parameters to train."""
    scale: Annotated[float, Field(gt=0)] = 10.0
    """Factor on the adapter's update; other packages write alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to zero in each training step."""
    layers: Positive | None = None
    """Number of blocks that get an adapter, counted from the last; null: all."""
    keys: list[str] | None = None
    """Linear layers of a block that get an adapter, e.g. [self_attn.q_proj]; null: all."""


if TYPE_CHECKING:
    AnyPhase = Phase
else:
    AnyPhase = Annotated[
        functools.reduce(operator.or_, OBJECTIVES.values()), Field(discriminator="objective")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Benchmark:
    """What to measure on the base, after each phase and on the fused model."""

    questions: str | None = None
    """TruthfulQA questions: mc_task.json or CSV; `probe`: our own; absent: the hub's, else ours."""
    n: Positive | None = None
    """At most so many questions (stratified by category), held-out prompts and neutral windows."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Largest loss of TruthfulQA that still counts as no tax, stated before the run."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fuse:
    """Merge the last phase's adapter into the base when training is done."""

    out: str | None = None
    """Folder to write; null: fused_models/NAME, where NAME is the run folder's name."""
    quantize: Literal[4, 8] | None = None
    """Bits of a quantized copy, written as a last, separate step; null: no copy."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A whole run: model, adapter, phases in order, and what is measured and written."""

    version: Literal[1]
    """Version of the recipe format."""
    name: Slug
    """Name of the run; its folder is adapters/NAME unless --run-dir names another."""
    model: str
    """Model folder, hub name, or `smollm2` for the starter model."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed of the adapter's first weights, the order of rows and all sampling."""
    max_length: Positive = 1024
    """Longest row in tokens, prompt and response together."""
    adapter: Adapter = Field(default_factory=Adapter)
    """Shape of the LoRA adapter."""
    phases: Annotated[dict[Slug, AnyPhase], Field(min_length=1)]
    """Phases by name, trained in this order, each from where the one before it ended."""
    fuse: Fuse | None = None
    """Merging of the adapter into the base; null: none."""
    benchmark: Benchmark | None = Field(default_factory=Benchmark)
    """Measurements; null: measure nothing."""


def _sections() -> dict[str, type]:
    """Find the dataclasses below `Recipe`, those nearest to it first."""
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


SECTIONS = _sections()
"""The dataclass of each section of a recipe, by name: a phase's objective, else the field's name."""
