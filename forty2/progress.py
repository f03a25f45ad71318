"""Progress callbacks; nothing here prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work, stage by stage."""

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        """Take note of one step.

        Args:
            stage: name of the work under way; a new name begins a new stage.
            done: steps finished; `done` equal to `total` ends the stage.
            total: steps in the stage.
            info: figures and texts to show, by name, such as `loss`. With a text under `heading`,
                `notice`, `warning` or `table`, the call passes on that message and counts no step.
        """


def silent(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
    """Ignore all progress."""
