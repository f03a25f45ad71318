"""How long work tells of itself: a callable that the caller provides. Nothing here prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Called as work goes on; `done` equal to `total` ends a stage."""

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        """`stage` names what is going on; `info` holds figures to show, such as loss."""


def silent(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
    """Tell nobody."""
