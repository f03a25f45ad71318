"""Progress: bars where somebody is watching, and nothing elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest

from forty2.progress import Progress, bars, draws_bars, silent


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


Cell = type("Cell", (io.StringIO,), {"__module__": "ipykernel.iostream"})
"""The output of a notebook's cell: ipykernel's stream, which is no terminal."""


@draws_bars
def work(fail: bool = False, *, progress: Progress = bars) -> str:
    """Work in two steps, and say something."""
    progress("work", 0, 1, {"notice": "begun"})
    progress("work", 1, 2, {})
    if fail:
        raise ValueError
    progress("work", 2, 2, {})
    return "done"


def written(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, progress: Progress = bars) -> str:
    """What the work writes on a standard error of some kind."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert work(progress=progress) == "done"
    return stream.getvalue()


@pytest.mark.parametrize("kind", [Terminal, Cell])
def test_bars_are_drawn_on_a_terminal_and_in_a_notebook(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = written(kind(), monkeypatch)
    assert "begun" in shown and "work:   0%" in shown


def test_nothing_is_written_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(io.StringIO(), monkeypatch) == ""


def test_silent_and_a_callback_of_ones_own_take_the_place_of_bars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert written(Terminal(), monkeypatch, silent) == ""
    seen: list[tuple[str, int, int]] = []
    noted = written(Terminal(), monkeypatch, lambda *step: seen.append(step[:3]))
    assert noted == "" and seen == [("work", 0, 1), ("work", 1, 2), ("work", 2, 2)]


def test_a_bar_is_cleared_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with pytest.raises(ValueError):
        work(fail=True)
    lines = re.split(r"[\r\n]+", stream.getvalue())
    assert any("work:   0%" in line for line in lines) and not lines[-1].strip()


def test_silent_progress_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress: Progress = silent
    progress("training", 1, 2, {"loss": 0.5, "warning": "a text"})
    assert capfd.readouterr() == ("", "")
