"""The benchmarks, each in a file of its own; adding a file adds one.

A file's name is the benchmark's name, and it defines one subclass of `Task`. Names are found by
looking into this folder; a file is imported when its benchmark is first used.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from forty2.errors import BenchmarkError

if TYPE_CHECKING:
    from forty2.benchmark.task import Task


@functools.cache
def task_names() -> tuple[str, ...]:
    """List the names of all benchmarks."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@functools.cache
def task_class(name: str) -> type[Task[Any]]:
    """Import the task of a benchmark.

    Raises:
        BenchmarkError: there is no such benchmark.
    """
    from forty2.benchmark.task import Task

    if name not in task_names():
        raise BenchmarkError(f"no benchmark {name!r}; there are {', '.join(task_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Task) and kind.__module__ == module.__name__
    )
    return found
