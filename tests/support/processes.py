"""Runs test tools in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def alone(*command: str) -> str:
    """What a Python process of its own prints: a process that computed with mlx cannot fork."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
