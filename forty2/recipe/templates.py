"""Chat templates that come with the package, by name."""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def packaged_templates() -> dict[str, str]:
    """Return the source of each chat template that a recipe may name in place of a file."""
    folder = resources.files("forty2.recipe") / "packaged"
    files = [path for path in folder.iterdir() if path.name.endswith(".jinja")]
    return {path.name.removesuffix(".jinja"): path.read_text("utf-8") for path in files}
