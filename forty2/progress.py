"""Progress callbacks; nothing here prints."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import ParamSpec, Protocol, TypeVar

_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")


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
    """Ignore all progress: `forty2.run(recipe, progress=forty2.silent)`."""


def bars(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
    """Stand for progress bars, in functions that `draws_bars` decorates; ignore all progress itself."""


def draws_bars(function: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """Let a function whose `progress` is `bars` by default draw them where somebody is watching."""

    @functools.wraps(function)
    def drawing(*args: _Given.args, **kwargs: _Given.kwargs) -> _Returned:
        if kwargs.get("progress", bars) is not bars or not is_watched():
            return function(*args, **kwargs)
        from forty2.progress_bars import Bars

        with Bars() as drawn:
            kwargs["progress"] = drawn
            return function(*args, **kwargs)

    return drawing


def is_watched() -> bool:
    """Return whether standard error is a terminal or the output of a notebook's cell."""
    stream = sys.stderr
    return type(stream).__module__.startswith("ipykernel.") or (
        stream is not None and stream.isatty()
    )
