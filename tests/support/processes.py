"""Python processes of their own (one that computed with mlx cannot fork), and one of two that train."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from forty2.training.processes import Group

TESTS = Path(__file__).parents[1]


def run_python(*arguments: str) -> str:
    """Run Python in the tests' folder, and return what it prints."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_function(function: Callable[..., object], *arguments: str | int | Path) -> str:
    """Call a function of a test module in a process of its own, and return what it prints."""
    module = Path(inspect.getfile(function)).relative_to(TESTS).with_suffix("")
    values = ", ".join(repr(a if isinstance(a, int) else str(a)) for a in arguments)
    name = ".".join(module.parts)
    return run_python("-c", f"import {name} as module; module.{function.__name__}({values})")


class OneOfTwo(Group):
    """One of two processes, which receives what the other one sent."""

    def __init__(self, rank: int = 0, received: Any = None) -> None:
        super().__init__(rank, size=2)
        self.sent: Any = None
        self._received = received

    def all_sum(self, tree: Any) -> Any:
        self.sent = tree
        if self._received is None:
            return tree
        return tree_map(lambda one, other: mx.array(one) + other, tree, self._received)

    def all_max(self, value: int) -> int:
        return value
