"""The rows of all phases: read, and checked against the model and each other, before anything is trained.

`run` and `plan` read the same rows, refuse the same, and warn of the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from forty2.data.checks.contamination import ContaminationFinder
from forty2.errors import ModelError, RecipeError
from forty2.model.configuration import RowLimit
from forty2.model.kv_cache import can_pack
from forty2.model.loading import LoadedModel
from forty2.recipe.schema import Recipe
from forty2.runs.coverage import coverage_of, coverage_warnings
from forty2.runs.gates import check_gate
from forty2.runs.phase_data import PhaseData, course_of, phase_data, style_prompts
from forty2.runs.tags import unused_tags
from forty2.text.encoder import Encoder
from forty2.text.prepared import is_packed
from forty2.text.rows import Row, turn_ends
from forty2.text.spelling import spelling_warning
from forty2.text.tokenizer import Tokenizer
from forty2.training.objectives.phase import REPLY_METRICS, Phase
from forty2.training.schedule import PhasePlan


class CheckedPhase(NamedTuple):
    """A phase's course over its rows, and what is wrong with them."""

    course: PhasePlan
    coverage: Mapping[str, float]
    """Passes over the supervised tokens, of its own rows and of each source that it replays."""
    warnings: tuple[str, ...]
    """What a user should look at before the phase is trained."""


class CheckedData(NamedTuple):
    """The courses of all phases, and what is wrong with their rows."""

    phases: dict[str, CheckedPhase]
    stop_tokens: dict[int, str]
    """Tokens that end turns in the rows and at which the model alone does not stop, by id."""
    warnings: tuple[str, ...]
    """Warnings about tokens."""
    unused_tags: str | None


def read_all_phase_data(
    recipe: Recipe,
    loaded: LoadedModel,
    folder: Path,
    contamination: ContaminationFinder | None = None,
) -> dict[str, PhaseData]:
    """Read and tokenize the rows of all phases; built-in sets are written to `folder` first.

    Raises:
        DataError: a row is bad, the lint finds errors, or no row fits.
        ModelError: a row is longer than the model's context, or the model cannot take packed rows.
        RecipeError: what a phase weighs is no token.
    """
    encoder = Encoder(loaded.tokenizer)
    data = {
        name: phase_data(name, recipe, encoder, folder, contamination) for name in recipe.phases
    }
    if any(is_packed(part.train.rows) for part in data.values()) and not can_pack(loaded.model):
        raise ModelError(
            f"{recipe.model}: cannot keep packed rows apart; prepare the data anew, not with `pack`"
        )
    if recipe.max_length > loaded.row_limit.tokens:
        for name, part in data.items():
            _check_lengths(name, part, loaded.row_limit)
    return data


def check_all_phase_data(
    recipe: Recipe, data: Mapping[str, PhaseData], loaded: LoadedModel, *, gates: bool = True
) -> CheckedData:
    """Plan all phases over their rows, and look for what is wrong with them.

    Args:
        gates: check the gates of the phases, too; it needs their files of eval prompts.

    Raises:
        RecipeError: a phase cannot be trained, judged or chosen from with these rows.
        BenchmarkError: a file of eval prompts is unusable.
    """
    phases = {}
    for name, part in data.items():
        phase = recipe.phases[name]
        _check_metrics(name, phase, part)
        if gates:
            check_gate(name, phase)
        course = course_of(name, recipe, part)
        coverage = coverage_of(course, part)
        rows = part.train.rows
        spelled = spelling_warning(rows, loaded.tokenizer)
        warnings = [*coverage_warnings(phase, coverage), *phase.data_warnings(rows)]
        phases[name] = CheckedPhase(course, coverage, (*warnings, *filter(None, [spelled])))
    stops = _new_stop_tokens(data.values(), loaded.tokenizer)
    about_tokens = [_stop_warning(stops, recipe.model) if stops else None]
    about_tokens += [_weights_warning(name, part, loaded.tokenizer) for name, part in data.items()]
    unused = unused_tags(loaded.tags, data.values()) if loaded.tags is not None else None
    return CheckedData(phases, stops, tuple(filter(None, about_tokens)), unused)


def _check_lengths(name: str, data: PhaseData, limit: RowLimit) -> None:
    """Refuse rows that are longer than the model's context.

    Raises:
        ModelError: there is one.
    """
    for part in (data.train, data.valid, data.hold_out):
        # packed rows hold many short ones, which do not see each other
        for row in () if part is None or is_packed(part.rows) else part.rows:
            tokens = (
                len(row.ids)
                if isinstance(row, Row)
                else len(row.prompt) + max(map(len, row.responses))
            )
            if tokens > limit.tokens:
                raise ModelError(
                    f"phases.{name}: {row.origin}: {tokens:,} tokens are more than {limit.tokens:,}, "
                    f"{limit.reason}; set max_length to {limit.tokens} or less"
                )


def _check_metrics(name: str, phase: Phase, data: PhaseData) -> None:
    """Refuse to choose by a metric that nothing measures."""
    for key in ("best", "until"):
        wish = getattr(phase, key)
        if wish is None or wish.metric in ("passed", "perplexity"):
            continue
        if data.valid is None:
            raise RecipeError(
                f"phases.{name}.{key}: {wish.metric} is measured on validation rows, and there are "
                f"none; give phases.{name}.valid, or a data folder with valid.jsonl"
            )
        if wish.metric in REPLY_METRICS and not style_prompts(data.valid):
            raise RecipeError(
                f"phases.{name}.{key}: {wish.metric} is measured on replies to the prompts of the "
                "validation rows, and they have none; give rows with prompts, or another metric"
            )


def _new_stop_tokens(data: Iterable[PhaseData], tokenizer: Tokenizer) -> dict[int, str]:
    """Return the tokens that end turns in the rows and at which generation does not stop, by id.

    A base model may stop at its end-of-text token only, while its chat template ends turns with
    another.
    """
    ends = set[int]().union(*(turn_ends(part.train.rows) for part in data))
    new = sorted(ends - set(tokenizer.eos_token_ids))
    return {i: tokenizer.decode([i]) for i in new}


def _stop_warning(stops: Mapping[int, str], model: str) -> str:
    """Say that the run's models stop at tokens at which the base does not."""
    listed = ", ".join(stops.values())
    return (
        f"the chat template ends turns with {listed}, at which generation from {model} does not stop; "
        f"this run's adapters and fused model stop there, too"
    )


def _weights_warning(name: str, data: PhaseData, tokenizer: Tokenizer) -> str | None:
    """Say which weights of tokens have no effect; None: all have one."""
    unused = [tokenizer.decode([i]) for i in data.unused_weights()]
    if not unused:
        return None
    return (
        f"phases.{name}.token_weights: no training row has {', '.join(unused)} among its supervised "
        "tokens, so the weight has no effect"
    )
