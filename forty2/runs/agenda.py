"""The stages of a run, and an estimate of the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from forty2.progress import Progress

Kind = Literal["read", "measure", "train", "fuse"]
_SHORT = ("read", "fuse")
"""Kinds that take little time beside the others."""


class AgendaItem(NamedTuple):
    """A stage of a run."""

    title: str
    kind: Kind
    work: float = 1.0
    """Amount of work, in the unit of its kind: tokens trained on, or models measured or fused."""
    done: bool = False
    """True if an earlier process finished it."""


@dataclass
class Agenda:
    """The stages of a run, in order. Announces each one, with an estimate of the time left.

    The time of a stage is estimated from those of its kind that this process has finished. There is
    no estimate while a stage of another kind than any so far lies ahead; fusing counts as nothing.
    """

    tasks: Sequence[AgendaItem]
    progress: Progress
    _at: int = -1
    _began: float = 0.0
    _rates: dict[Kind, float] = field(default_factory=dict)
    """Seconds for a unit of work, by kind."""

    def begin_next(self) -> None:
        """End the stage under way, and announce the next."""
        now = time.monotonic()
        if self._at >= 0 and not self.tasks[self._at].done:
            ended = self.tasks[self._at]
            self._rates[ended.kind] = (now - self._began) / ended.work
        self._at += 1
        self._began = now
        self.progress(self.tasks[self._at].title, 0, 1, {"heading": self._heading()})

    def set_work(self, work: Mapping[str, float]) -> None:
        """Set the work of tasks, by title."""
        self.tasks = [
            task._replace(work=max(1.0, work.get(task.title, task.work))) for task in self.tasks
        ]

    def seconds_left(self) -> float | None:
        """Estimate the seconds from the beginning of the present stage to the end of the run."""
        left = [
            task for task in self.tasks[self._at :] if not task.done and task.kind not in _SHORT
        ]
        if any(task.kind not in self._rates for task in left):
            return None
        return sum(task.work * self._rates[task.kind] for task in left)

    def _heading(self) -> str:
        task = self.tasks[self._at]
        heading = f"stage {self._at + 1} of {len(self.tasks)}: {task.title}"
        left = self.seconds_left()
        if task.done:
            heading += ", done before"
        elif left is not None and self._rates:
            heading += f", {in_words(left)} left"
        return heading


def in_words(seconds: float) -> str:
    """Write an estimated time: `under a minute`, `about 6 min`, `about 1 h 20 min`."""
    if seconds < 60:
        return "under a minute"
    hours, minutes = divmod(round(seconds / 60), 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes)
    return f"about {' '.join(parts)}"
