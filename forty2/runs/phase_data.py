"""A phase's rows: read or built, linted, tokenised, and known again by their hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from forty2.data.build import build, write_built
from forty2.data.checks.lint import refuse_faults
from forty2.data.formats import read_chats, read_pairs, read_rated
from forty2.data.sources import BUILTIN, valid_beside
from forty2.errors import DataError, RecipeError
from forty2.recipe.schema import AnyPhase, Recipe
from forty2.text.encoder import Encoder, FittedRows, add_mismatched_responses, fit_rows
from forty2.text.prepared import Prepared, is_prepared, open_prepared, tokenizer_key
from forty2.text.row_kinds import CONVERSATIONS, PAIRS, RATED


class PhaseData(NamedTuple):
    """A phase's rows, tokenised."""

    train: FittedRows
    valid: FittedRows | None
    source: str | None
    """Where the training rows' texts are; None for a prepared folder, which holds ids alone."""

    def hashes(self) -> dict[str, str | None]:
        """By part, a hash of all that its rows are but for where they are from."""
        return {"train": _digest(self.train), "valid": self.valid and _digest(self.valid)}


def phase_data(phase: AnyPhase, recipe: Recipe, encoder: Encoder, folder: Path) -> PhaseData:
    """A phase's rows, read, checked and tokenised; a built-in set is written to `folder` first.

    Raises:
        DataError: a row is bad, the lint finds errors, or no row fits.
    """
    if phase.data.startswith(BUILTIN):
        name = phase.data.removeprefix(BUILTIN)
        source = str(folder / name)
        if not Path(source, "manifest.json").exists():
            write_built(build(name, seed=recipe.seed), Path(source))
    else:
        source = phase.data
    if is_prepared(source):
        if phase.row_kind is not CONVERSATIONS:
            raise DataError(
                f"{source}: holds prepared conversations; a {phase.objective} phase needs "
                f"{phase.row_kind.name}"
            )
        splits = open_prepared(source, tokenizer_key(encoder.tokenizer), recipe.max_length)
        fitted = {name: FittedRows(rows, [], []) for name, rows in splits.items()}
        return PhaseData(fitted["train"], fitted.get("valid"), None)
    valid = phase.valid or valid_beside(source)
    if phase.lint:
        refuse_faults(source, valid, encoder.specials)
    train, held = (
        _tokenise(phase, rows, encoder, recipe.max_length) if rows is not None else None
        for rows in (source, valid)
    )
    assert train is not None
    return PhaseData(train, held, source)


def _tokenise(phase: AnyPhase, source: str, encoder: Encoder, max_length: int) -> FittedRows:
    if phase.row_kind is PAIRS:
        fitted = fit_rows([encoder.encode_pair(pair) for pair in read_pairs(source)], max_length)
    elif phase.row_kind is RATED:
        fitted = fit_rows([encoder.encode_rated(rated) for rated in read_rated(source)], max_length)
        if fitted.rows:
            fitted = fitted._replace(rows=add_mismatched_responses(fitted.rows, max_length))
    else:
        fitted = fit_rows(encoder.encode_sft(read_chats(source)), max_length)
    if not fitted.rows:
        raise DataError(f"{source}: no row's response fits into max_length {max_length}")
    return fitted


def check_measured(name: str, phase: AnyPhase, data: PhaseData) -> None:
    """Refuse to choose by a metric that nothing measures."""
    for key in ("best", "until"):
        wish = getattr(phase, key)
        if wish is not None and wish.metric != "passed" and data.valid is None:
            raise RecipeError(
                f"phases.{name}.{key}: {wish.metric} is measured on validation rows, and there are "
                f"none; give phases.{name}.valid, or a data folder with valid.jsonl"
            )


def _digest(fitted: FittedRows) -> str:
    if isinstance(fitted.rows, Prepared):
        return fitted.rows.sha256()
    digest = hashlib.sha256()
    for row in fitted.rows:
        what = {key: value for key, value in row._asdict().items() if key != "origin"}
        digest.update(json.dumps(what).encode())
    return digest.hexdigest()
