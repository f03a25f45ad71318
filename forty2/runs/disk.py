"""The space on disk that a run takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from forty2.errors import RunError
from forty2.export.fusing import quantized_path
from forty2.files import check_free_space
from forty2.model.adapter import adapter_weights, kept_weights, layer_kind
from forty2.model.adapter_files import is_layer_tensor
from forty2.model.merging import merged_weights
from forty2.model.replaced import replaced_names
from forty2.model.tag_rows import tag_weights
from forty2.recipe.schema import Fuse
from forty2.training.objectives.phase import Phase

_SCALES = 0.5
"""Bits for each quantized weight that its scales and biases take."""


class DiskForecast(NamedTuple):
    """The bytes that a run takes on disk, by folder."""

    run: Path
    kept: int
    """Bytes of the run folder when the run is finished: its adapters."""
    working: int
    """Bytes that it takes besides while it runs: checkpoints and stored states."""
    fused: dict[Path, int]
    """Bytes of the fused model and of its quantized copy, by folder; empty: nothing is fused."""

    def shortage(self) -> str | None:
        """Say which disk has too little free space; None: all have enough."""
        try:
            check_free_space({self.run: self.kept + self.working, **self.fused})
        except RunError as error:
            return str(error).partition(";")[0]
        return None


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that holds a path, or that would."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def kept_bytes(model: nn.Module, phase: Phase) -> int:
    """Count the bytes that a phase leaves: the adapter, the weights that replace the base's, and two moments
    of the optimizer, if the phase hands them on.
    """
    kept = kept_weights(model)
    files = [kept, tag_weights(model)]
    if phase.carry_optimizer:
        files += [adapter_weights(model)] * 2
    if replaced_names(model) and layer_kind(model) is not None:
        files.append(merged_weights(model, kept))  # lazy: nothing is computed
    return sum(value.nbytes for file in files for value in file.values())


def checkpoint_bytes(model: nn.Module) -> int:
    """Count the bytes of a phase's checkpoints at the moment when they are the most.

    Each holds what is trained and an optimizer with two moments; two of them stay while one is written.
    """
    return 3 * 3 * sum(value.nbytes for value in adapter_weights(model).values())


def fused_bytes(model: nn.Module, parameters: int, fuse: Fuse, out: Path) -> dict[Path, int]:
    """Estimate the bytes of a fused model, and of its quantized copy, by folder.

    Args:
        model: the base, with or without an adapter.
        parameters: its parameters, counted as before quantizing.
        out: folder of the fused model.
    """
    values = [v for name, v in tree_flatten(model.parameters()) if not is_layer_tensor(name)]
    each = max((v.dtype.size for v in values if mx.issubdtype(v.dtype, mx.floating)), default=4)
    sizes = {out: parameters * each}
    if fuse.quantize is not None:
        bits = fuse.quantize + _SCALES
        sizes[quantized_path(out, fuse.quantize)] = int(parameters * bits / 8)
    return sizes
