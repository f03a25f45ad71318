"""The objectives that a phase can have, each in a file of its own; adding a file adds one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import get_args, get_type_hints

from forty2.training.objectives.phase import Phase


def _found() -> Iterator[tuple[str, type[Phase]]]:
    """Name and class of every objective in this folder: those that say which `objective` they are."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for kind in vars(importlib.import_module(f"{__name__}.{module}")).values():
            if isinstance(kind, type) and issubclass(kind, Phase):
                for name in get_args(get_type_hints(kind)["objective"]):  # none: a base class
                    yield name, kind


OBJECTIVES: dict[str, type[Phase]] = dict(_found())
"""By name, as in a recipe's `objective`, the class of phases that have it."""
