"""Python processes of their own: one that computed with mlx cannot fork."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
