"""What a recipe would do, worked out before anything runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlx.utils import tree_flatten

from forty2 import machine
from forty2.benchmark.tasks.eval_prompts import Asked, load_eval_prompts
from forty2.inference.logprobs import head_elements
from forty2.inference.padding import batch_tokens
from forty2.model.adapter import adapter_weights, attach_adapter
from forty2.model.loading import LoadedModel, load, parameter_count
from forty2.recipe.schema import AnyPhase, Recipe
from forty2.runs.phase_data import check_measured, phase_data
from forty2.text.encoder import Encoder
from forty2.text.rows import AnyPair
from forty2.training.batches import lengths_of, weights_of
from forty2.training.frozen_states import WORTH, frozen_states_size
from forty2.training.schedule import plan_phase


class PhasePlan(NamedTuple):
    """What one phase would do."""

    name: str
    objective: str
    rows: int
    valid_rows: int
    dropped: int
    shortened: int
    median_tokens: int
    longest_tokens: int
    """What max_length limits: of a pair, its prompt and the longer response."""
    steps: int
    exposures: float
    """How often each row is seen: the epochs."""
    evaluations: int
    saves: int
    peak_memory_gb: float
    """Estimated."""
    replayed_gb: float
    """On disk while the phase runs: what frozen blocks make of its training rows."""
    data_warnings: tuple[str, ...]
    """What in its rows does not suit its objective."""


class Plan(NamedTuple):
    """What a run would do."""

    name: str
    model: str
    parameters: int
    trainable: int
    phases: tuple[PhasePlan, ...]
    peak_memory_gb: float
    machine_memory_gb: float
    warnings: tuple[str, ...]


def plan(recipe: Recipe, *, trust_remote_code: bool = False) -> Plan:
    """Count what a recipe would do. Reads and tokenises the data; weights stay on disk."""
    loaded = load(recipe.model, trust_remote_code=trust_remote_code, lazy=True)
    weight_bytes = sum(v.nbytes for _, v in tree_flatten(loaded.model.parameters()))
    total = parameter_count(loaded.model)
    attach_adapter(loaded.model, recipe.adapter, seed=0)
    trainable = sum(v.size for v in adapter_weights(loaded.model).values())
    encoder = Encoder(loaded.tokenizer)
    phases, warnings = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name, phase in recipe.phases.items():
            one = _phase(
                name, phase, recipe, loaded, encoder, Path(scratch), weight_bytes, trainable
            )
            phases.append(one)
            if one.exposures < 1:
                warnings.append(f"{name}: {1 - one.exposures:.0%} of the rows are never seen")
            if one.exposures > 10:
                warnings.append(
                    f"{name}: each row is seen {one.exposures:.0f} times; expect it to be memorised"
                )
            warnings += [f"{name}: {warning}" for warning in one.data_warnings]
            if one.dropped:
                warnings.append(f"{name}: {one.dropped} rows are dropped, longer than max_length")
            if one.shortened:
                warnings.append(
                    f"{name}: {one.shortened} prompts lose their beginning to max_length"
                )
    peak = max(one.peak_memory_gb for one in phases)
    memory = machine.memory_bytes() / 1e9
    if peak > 0.75 * memory:
        warnings.append("memory: set grad_checkpoint, or lower max_length")
    return Plan(
        recipe.name, recipe.model, total, trainable, tuple(phases), peak, memory, tuple(warnings)
    )


def _phase(
    name: str,
    phase: AnyPhase,
    recipe: Recipe,
    loaded: LoadedModel,
    encoder: Encoder,
    scratch: Path,
    weight_bytes: int,
    trainable: int,
) -> PhasePlan:
    data = phase_data(phase, recipe, encoder, scratch)
    check_measured(name, phase, data)
    if phase.eval_prompts is not None:
        Asked(loaded, load_eval_prompts(phase.eval_prompts))
    valid_rows = len(data.valid.rows) if data.valid is not None else 0
    lengths = lengths_of(data.train.rows)
    course = plan_phase(phase, lengths, weights_of(data.train.rows), recipe.seed)
    memory = (
        weight_bytes
        + 4 * 4 * trainable  # weight, gradient, two moments
        + _activation_bytes(
            loaded, recipe.adapter.layers, max(batch_tokens(), max(lengths)), phase.grad_checkpoint
        )
    )
    exposures = course.exposures(course.steps)
    # Rows that are seen at all; the reference pass of a preference phase is one more time.
    size = frozen_states_size(loaded.model, data.train.rows, range(len(lengths)))
    stored = size.bytes / 1e9 * min(1.0, exposures)
    replayed = max(1.0, exposures) + phase.needs_reference >= WORTH and stored <= phase.replay_gb
    return PhasePlan(
        name,
        phase.objective,
        len(lengths),
        valid_rows,
        len(data.train.dropped),
        len(data.train.shortened),
        int(np.median(lengths)),
        _longest(data.train.rows, lengths),
        course.steps,
        exposures,
        course.evaluations,
        course.saves,
        memory / 1e9,
        stored if replayed else 0.0,
        tuple(phase.data_warnings(data.train.rows)),
    )


def _longest(rows: Sequence[Any], lengths: Sequence[int]) -> int:
    """Tokens of the longest sequence: each response of a pair follows the prompt by itself."""
    if isinstance(rows[0], AnyPair):
        return max(len(row.prompt) + max(map(len, row.responses)) for row in rows)
    return max(lengths)


def _activation_bytes(
    loaded: LoadedModel, layers: int | None, tokens: int, checkpointed: bool | int
) -> int:
    """What a forward and backward pass over `tokens` keeps: each adapted block's values, and logits.

    A block keeps about ten vectors of the hidden size and four of the feed-forward size a token
    (inputs of each product and non-linearity); checkpointed, only its input. Logits exist for a
    chunk at a time, about five times over (themselves, their softmax, what pulls them). All in fp32,
    as LoRA's own weights are, whatever the base's.
    """
    config: dict[str, Any] = loaded.config
    hidden = int(config.get("hidden_size", 0))
    wide = int(config.get("intermediate_size", 4 * hidden))
    vocabulary = int(config.get("vocab_size", 0))
    blocks = len(loaded.model.layers)
    adapted = min(layers or blocks, blocks)
    recomputed = adapted if checkpointed is True else min(int(checkpointed), adapted)
    kept = recomputed * hidden + (adapted - recomputed) * (10 * hidden + 4 * wide)
    return tokens * kept * 4 + 5 * 4 * min(tokens * vocabulary, head_elements())


def format_plan(plan: Plan) -> str:
    """A plan as text."""
    share = plan.trainable / plan.parameters
    lines = [
        f"{plan.name} on {plan.model}: {plan.parameters:,} parameters, "
        f"{plan.trainable:,} trained ({share:.2%})",
        "",
        f"{'phase':<9}{'kind':<5}{'rows':>7}{'valid':>6}{'tokens':>7}{'longest':>8}{'steps':>6}"
        f"{'seen':>7}{'evals':>6}{'saves':>6}{'memory':>7}{'disk':>6}",
    ]
    for one in plan.phases:
        lines.append(
            f"{one.name:<9}{one.objective:<5}{one.rows:>7}{one.valid_rows:>6}{one.median_tokens:>7}"
            f"{one.longest_tokens:>8}{one.steps:>6}{one.exposures:>6.2f}x{one.evaluations:>6}"
            f"{one.saves:>6}{one.peak_memory_gb:>7.2f}{one.replayed_gb:>6.2f}"
        )
    lines += [
        "",
        f"in GB; memory: about {plan.peak_memory_gb:.2f} of {plan.machine_memory_gb:.1f}",
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in plan.warnings)])
