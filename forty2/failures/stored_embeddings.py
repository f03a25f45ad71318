"""Embeddings of a failure loop's items, kept in its folder and made again when items or model change.

embeddings.npy    (N, D) in fp32, one row an item
embeddings.json   the items' ids in the order of the rows, the model, and hashes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.errors import RunError
from forty2.failures.scored import ScoredItem
from forty2.files import atomic_write, file_sha256, read_json, write_json
from forty2.inference.embedding import MINILM, load_embedder
from forty2.progress import Progress, silent

ARRAY, ABOUT = "embeddings.npy", "embeddings.json"


class Embeddings(NamedTuple):
    """One vector an item."""

    vectors: npt.NDArray[np.float32]
    """(N, D), in the order of the items."""
    model: str
    model_sha256: str


def embed_items(
    folder: Path, items: Sequence[ScoredItem], model: str = MINILM, progress: Progress = silent
) -> Embeddings:
    """Return the items' embeddings: those in the folder, if they are of these texts and this model.

    Raises:
        ModelError: the model cannot be loaded.
        RunError: a file cannot be written.
    """
    embedder = load_embedder(model)
    about = {
        "model": model,
        "model_sha256": embedder.sha256,
        "max_tokens": embedder.max_tokens,
        "items_sha256": _sha256(items),
        "ids": [item.id for item in items],
    }
    stored = _read(folder, about)
    if stored is None:
        stored = embedder.embed([item.text for item in items], progress)
        with atomic_write(folder / ARRAY) as file:
            np.save(file, stored, allow_pickle=False)
        write_json(folder / ABOUT, {**about, "array_sha256": file_sha256(folder / ARRAY)})
    return Embeddings(stored, model, embedder.sha256)


def read_vectors(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read the stored embeddings by the ids of their items.

    Raises:
        RunError: there are none, or the two files do not belong together.
    """
    about = read_json(folder / ABOUT)
    vectors = _read(folder, {key: about[key] for key in ("ids",)} if "ids" in about else {})
    if vectors is None:
        raise RunError(f"{folder / ARRAY}: damaged; run forty2 failures cluster {folder} again")
    return dict(zip(about["ids"], vectors, strict=True))


def _read(folder: Path, wanted: dict[str, object]) -> npt.NDArray[np.float32] | None:
    """Read the stored array, if it is whole and what is recorded of it holds all that is wanted."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        if not wanted or any(about.get(key) != value for key, value in wanted.items()):
            return None
        if about["array_sha256"] != file_sha256(folder / ARRAY):
            return None
        vectors: npt.NDArray[np.float32] = np.load(folder / ARRAY, allow_pickle=False)
        return vectors if len(vectors) == len(about["ids"]) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _sha256(items: Sequence[ScoredItem]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.text]).encode())
    return digest.hexdigest()
