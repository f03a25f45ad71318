"""The tags of a run: whether its rows hold them, and whether training left all other tokens alone."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import mlx.nn as nn

from forty2.errors import DataError, TrainingError, first_names
from forty2.model.loading import LoadedModel, load
from forty2.model.replaced import replaced_names
from forty2.model.tags import find_tables
from forty2.recipe.tags import AddedTags
from forty2.runs.phase_data import PhaseData
from forty2.text.rows import AnyRow, Row

_MOST_NAMES = 4
"""Most tags that a message lists."""


def unused_tags(tags: AddedTags, data: Iterable[PhaseData]) -> str | None:
    """Say which tags no training row of any phase holds; None: all are used.

    Raises:
        DataError: no row holds any.
    """
    left = set(range(tags.first, tags.end))
    for part in data:
        for row in part.train.rows:
            if not left:
                return None
            left.difference_update(*_parts(row))
    if not left:
        return None
    names = [tag for i, tag in enumerate(tags.tokens, tags.first) if i in left]
    if len(names) == len(tags.tokens):
        raise DataError(
            "tags: no training row holds any, so nothing teaches their use: check that chat_template "
            "or the data writes them, or remove tags"
        )
    return f"tags: no training row holds {first_names(names, _MOST_NAMES)}, so nothing teaches their use"


def _parts(row: AnyRow) -> list[list[int]]:
    return [row.ids] if isinstance(row, Row) else [row.prompt, row.responses[0], row.responses[1]]


def tables_replaced(model: nn.Module) -> bool:
    """Return whether a phase has trained the tables whole, so that other rows have changed, too."""
    tables = {id(table) for table in find_tables(model)}
    names = {f"{n}.weight" for n, module in model.named_modules() if id(module) in tables}
    return bool(names & replaced_names(model))


def check_other_rows(loaded: LoadedModel, *, trust_remote_code: bool) -> None:
    """Compare the rows of all other tokens with those in the model's files, bit for bit.

    Raises:
        TrainingError: one has changed.
    """
    assert loaded.tags is not None
    base = load(loaded.name, trust_remote_code=trust_remote_code, lazy=True)
    for before, now in zip(find_tables(base.model), find_tables(loaded.model), strict=True):
        old, new = before.weight, now.weight[: before.weight.shape[0]]
        for part in (slice(loaded.tags.first), slice(loaded.tags.end, None)):
            if not mx.array_equal(old[part], new[part]).item():
                raise TrainingError(
                    "the embeddings of tokens other than the tags have changed in training, which they "
                    "never should: nothing was stored; report this with the run's recipe.yaml"
                )
