"""The stages of a run, the time that each takes, and an estimate of the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from forty2.progress import Progress

Kind = Literal["read", "measure", "train", "fuse"]
_SHORT = ("read", "fuse")
"""Kinds that take little time beside the others."""
RECORDED_EVERY = 60.0
"""Seconds of work after which its time is recorded: a run that is killed loses no more."""


class TimeLog(Protocol):
    """The record of a run's times: one entry for each stretch of work on a stage."""

    def log_time(self, record: Mapping[str, object], /) -> None:
        """Append a record."""


class AgendaItem(NamedTuple):
    """A stage of a run."""

    title: str
    kind: Kind
    work: float = 1.0
    """Amount of work, in the unit of its kind: tokens trained on, or models measured or fused."""
    done: bool = False
    """True if an earlier process finished it."""
    phase: str | None = None
    """Name of the phase that it trains; None: it trains none."""


@dataclass
class Agenda:
    """The stages of a run, in order. Announces each one, with an estimate of the time left.

    It is the `Progress` of the run: at each call it looks at the clock, and records the time of the
    stage under way. Each entry is a stretch of work, so that a stage's time is the sum of its entries,
    over all starts of the run; steps that are taken again count again, pauses do not.

    The time of a stage is estimated from those of its kind that this process has finished. There is
    no estimate while a stage of another kind than any so far lies ahead; fusing counts as nothing.
    """

    tasks: Sequence[AgendaItem]
    progress: Progress
    _at: int = -1
    _began: float = 0.0
    _rates: dict[Kind, float] = field(default_factory=dict)
    """Seconds for a unit of work, by kind."""
    _log: TimeLog | None = None
    _recorded: float = 0.0
    """Time up to which the present stage's time is recorded."""

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        """Pass progress on."""
        if time.monotonic() - self._recorded >= RECORDED_EVERY:
            self.record_time()
        self.progress(stage, done, total, info)

    def record_in(self, log: TimeLog | None) -> None:
        """Record times here from now on, those of the present stage from its beginning; None: end it."""
        self._log = log

    def record_time(self) -> None:
        """Record the time of the present stage since the last record of it."""
        if self._log is None or self._at < 0:
            return
        now = time.monotonic()
        task, seconds = self.tasks[self._at], round(now - self._recorded, 3)
        self._recorded = now
        named = {} if task.phase is None else {"phase": task.phase}
        self._log.log_time({"stage": task.title, "kind": task.kind, **named, "seconds": seconds})

    def begin_next(self) -> None:
        """End the stage under way, and announce the next."""
        self.record_time()
        now = time.monotonic()
        if self._at >= 0 and not self.tasks[self._at].done:
            ended = self.tasks[self._at]
            self._rates[ended.kind] = (now - self._began) / ended.work
        self._at += 1
        self._began = self._recorded = now
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
