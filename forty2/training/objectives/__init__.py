"""The objectives that a phase can have, each in a file of its own; adding a file adds one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import get_args, get_type_hints

from forty2.training.objectives.phase import Phase


def _find_objectives() -> Iterator[tuple[str, type[Phase]]]:
    """Yield name and class of every objective in this folder: each class that names an `objective`."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for kind in vars(importlib.import_module(f"{__name__}.{module}")).values():
            if isinstance(kind, type) and issubclass(kind, Phase):
                for name in get_args(get_type_hints(kind)["objective"]):  # none: a base class
                    yield name, kind


OBJECTIVES: dict[str, type[Phase]] = dict(_find_objectives())
"""Class of the phases with each objective, by the objective's name in a recipe."""
