"""Progress: the callback that ignores everything satisfies the protocol."""

from __future__ import annotations

import pytest

from forty2.progress import Progress, silent


def test_silent_progress_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress: Progress = silent
    progress("training", 1, 2, {"loss": 0.5, "warning": "a text"})
    assert capfd.readouterr() == ("", "")
