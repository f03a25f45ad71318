"""A phase's rows: read or built, linted, tokenized, and recognized by their hashes on resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from forty2.data.build import build, write_built
from forty2.data.checks.contamination import ContaminationFinder, Hit
from forty2.data.checks.findings import Finding
from forty2.data.checks.lint import Linter
from forty2.data.row_values import KeyUse, RowValues
from forty2.data.sources import BUILTIN, valid_beside
from forty2.data.strata import Cell
from forty2.errors import DataError, RecipeError
from forty2.recipe.schema import Recipe
from forty2.text.encoder import Encoder
from forty2.text.phase_rows import read_phase_rows
from forty2.text.prepared import (
    Prepared,
    is_prepared,
    open_prepared,
    tokenizer_key,
)
from forty2.text.replaying import Replay, Replayed, ReplaySource
from forty2.text.row_kinds import CONVERSATIONS
from forty2.text.rows import FittedRows, Row, first_prompts, rows_sha256
from forty2.text.token_weights import NO_WEIGHTS, TokenWeights, weights_by_id
from forty2.training.batches import lengths_of, weights_of
from forty2.training.objectives.phase import REFERENCE_MARGIN, Phase
from forty2.training.schedule import PhasePlan, phase_seed, plan_phase

STYLE_PROMPTS = 32
"""Most prompts of validation rows that are answered at an evaluation, to measure the style of replies."""


class PhaseData(NamedTuple):
    """A phase's rows, tokenized."""

    train: FittedRows
    valid: FittedRows | None
    source: str | None
    """Path of the training rows' texts; None for a prepared folder, which holds ids alone."""
    hits: list[Hit]
    """Benchmark items in the training rows, if they were searched for."""
    ignored: str = ""
    """Keys of the training rows that nothing reads, with the number of their rows. Built-in sets hold
    such keys on purpose, so theirs are not listed."""
    valid_source: str | None = None
    """Path of the validation rows' texts; None: there are none, or they are prepared."""
    system: str = ""
    """System prompt of more than half of the training rows; "": there is none."""
    lint_warnings: Sequence[Finding] = ()
    """Warnings of the lint; empty if the phase is not linted."""
    hold_out: FittedRows | None = None
    """Rows that the phase holds out by their keys; None: it holds none out."""
    difficulty: Sequence[float] | None = None
    """How hard each training row is, larger for harder ones; None: no key of the rows says it."""
    strata: Sequence[Cell] | None = None
    """Stratum of each training row; None: they are not divided."""
    replayed: tuple[Replayed, ...] = ()
    """Rows of earlier data at the end of the training rows, by their source."""
    token_weights: TokenWeights = NO_WEIGHTS
    """Weights of supervised tokens that are not 1."""

    def unused_weights(self) -> list[int]:
        """Return the ids of weighted tokens that are supervised in no training row."""
        left = set(self.token_weights)
        for row in self.train.rows:
            if not left:
                break
            left.difference_update(compress(row.ids, row.mask))
        return sorted(left)

    def hashes(self) -> dict[str, str | None]:
        """Hash the rows of each part, without their origins; None for a part that is missing.

        The keys that order or divide the training rows are hashed with them.
        """
        train = _digest(self.train)
        if self.difficulty is not None or self.strata is not None:
            values = json.dumps([train, self.difficulty, self.strata])
            train = hashlib.sha256(values.encode()).hexdigest()
        parts: dict[str, str | None] = {"train": train, "valid": self.valid and _digest(self.valid)}
        if self.hold_out is not None:
            parts["hold_out"] = _digest(self.hold_out)
        return parts


def phase_data(
    name: str,
    recipe: Recipe,
    encoder: Encoder,
    folder: Path,
    contamination: ContaminationFinder | None = None,
) -> PhaseData:
    """Read, check and tokenize a phase's rows; a built-in set is written to `folder` first.

    Raises:
        DataError: a row is bad, the lint finds errors, or no row fits.
        RecipeError: what the phase weighs is no token.
    """
    phase = recipe.phases[name]
    source = _built(phase.data, recipe, folder)
    encoder = phase.encoder(encoder)
    where = f"phases.{name}.token_weights"
    weights = weights_by_id(encoder.tokenizer, phase.supervision_weights, where)
    if is_prepared(source):
        if phase.row_kind is not CONVERSATIONS:
            raise DataError(
                f"{source}: holds prepared conversations; a {phase.objective} phase needs "
                f"{phase.row_kind.name}"
            )
        if phase.row_keys:
            raise DataError(
                f"{source}: holds prepared conversations, which have no {min(phase.row_keys)!r}; name "
                "the file that they were prepared from"
            )
        if phase.replay:
            raise _cannot_mix(source)
        key = tokenizer_key(encoder.tokenizer)
        splits = open_prepared(source, key, recipe.max_length, encoder.train_on)
        fitted = {name: FittedRows(rows, [], []) for name, rows in splits.items()}
        return PhaseData(fitted["train"], fitted.get("valid"), None, [], token_weights=weights)
    valid_source = phase.valid or valid_beside(source)
    try:
        found = read_phase_rows(
            phase.row_kind,
            source,
            valid_source,
            encoder,
            recipe.max_length,
            linter=Linter(specials=encoder.specials) if phase.lint else None,
            contamination=contamination,
            use=_key_use(phase),
            replay=_replay(phase, recipe, folder),
        )
    except DataError as error:
        if source == phase.data:
            raise
        raise DataError(str(error).replace(source, phase.data)) from error
    ignored = "" if phase.data.startswith(BUILTIN) else found.ignored
    return PhaseData(
        found.train,
        found.valid,
        source,
        found.hits,
        ignored,
        valid_source=valid_source,
        system=found.system,
        lint_warnings=found.lint_warnings,
        hold_out=found.hold_out,
        difficulty=found.difficulty,
        strata=found.strata,
        replayed=found.replayed,
        token_weights=weights,
    )


def _built(source: str, recipe: Recipe, folder: Path) -> str:
    """Return the path of data; a built-in set is written to `folder` first, unless it is there."""
    if not source.startswith(BUILTIN):
        return source
    name = source.removeprefix(BUILTIN)
    if not (folder / name / "manifest.json").exists():
        write_built(build(name, seed=recipe.seed), folder / name)
    return str(folder / name)


def _replay(phase: Phase, recipe: Recipe, folder: Path) -> Replay:
    """Say what a phase replays, and from where."""
    sources = []
    for entry in phase.replay or ():
        earlier = recipe.phases.get(entry.source)
        source = _built(entry.source if earlier is None else earlier.data, recipe, folder)
        if is_prepared(source):
            raise _cannot_mix(source)
        held_out = RowValues(_key_use(earlier) if earlier is not None else KeyUse()).is_held_out
        sources.append(ReplaySource(entry.source, source, entry.share, held_out))
    return Replay(tuple(sources), phase.replay_by, recipe.seed)


def _cannot_mix(source: str) -> DataError:
    return DataError(
        f"{source}: holds prepared conversations, which are not mixed any more; to replay rows, name "
        "the file that they were prepared from"
    )


def _key_use(phase: Phase) -> KeyUse:
    """Say what a phase does with the keys of its rows."""
    by = phase.curriculum.by if phase.curriculum is not None else REFERENCE_MARGIN
    hold_out = {
        key: tuple(values) if isinstance(values, list) else (values,)
        for key, values in (phase.hold_out or {}).items()
    }
    return KeyUse(None if by == REFERENCE_MARGIN else by, tuple(phase.stratify or ()), hold_out)


def names_held_out_rows(phase: Phase) -> bool:
    """Return whether a phase has validation rows, without reading them."""
    if phase.valid is not None or phase.hold_out or phase.data.startswith(BUILTIN):
        return True
    if is_prepared(phase.data):
        return (Path(phase.data) / "valid" / "rows.idx").is_file()
    return valid_beside(phase.data) is not None


def course_of(
    name: str,
    recipe: Recipe,
    data: PhaseData,
    *,
    settings: Phase | None = None,
    difficulty: Sequence[float] | None = None,
    whole_epochs: bool = True,
) -> PhasePlan:
    """Plan a phase over its rows.

    Args:
        settings: keys of the phase; None: those in the recipe.
        difficulty: how hard each training row is; None: as a key of the rows says, if one is named.
        whole_epochs: see `plan_phase`.

    Raises:
        RecipeError: its curriculum cannot be followed with these rows, or in its steps.
    """
    rows = data.train.rows
    try:
        return plan_phase(
            settings or recipe.phases[name],
            lengths_of(rows),
            weights_of(rows),
            phase_seed(recipe.seed, [*recipe.phases].index(name) + 1),
            difficulty=data.difficulty if difficulty is None else difficulty,
            strata=data.strata,
            whole_epochs=whole_epochs,
        )
    except RecipeError as error:
        raise RecipeError(f"phases.{name}.{error}") from error


def style_prompts(valid: FittedRows) -> list[list[int]]:
    """Return the ids of the first different prompts of validation rows, to measure the style of replies."""
    rows = [row for row in valid.rows if not (isinstance(row, Row) and row.is_text)]
    return first_prompts(rows, STYLE_PROMPTS)


def _digest(fitted: FittedRows) -> str:
    if isinstance(fitted.rows, Prepared):
        return fitted.rows.sha256()
    return rows_sha256(fitted.rows)
