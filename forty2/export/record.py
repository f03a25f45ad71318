"""The record in a fused model's folder: from which adapter it was made. No mlx."""

from __future__ import annotations

from pathlib import Path

from forty2.files import read_json

RECORD = "fused.json"
"""Name of the record in a fused folder; only a folder with one may be replaced."""


def adapter_of(folder: Path) -> str | None:
    """Return the adapter folder that a fused model, or its quantized copy, was made from.

    Copies of earlier releases name the fused model, whose record then names the adapter.

    Returns:
        The path as it was recorded; None: it is not recorded, or the folder holds no fused model.

    Raises:
        RunError: the record is damaged.
    """
    file = folder / RECORD
    record = read_json(file) if file.exists() else {}
    if not isinstance(record, dict):
        return None
    if "adapter" in record:
        return str(record["adapter"])
    source = Path(str(record.get("fused") or folder))
    for place in (source, folder.parent / source.name):  # the second if both were moved
        if place != folder and (place / RECORD).exists():
            return adapter_of(place)
    return None
