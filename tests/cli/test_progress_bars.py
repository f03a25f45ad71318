"""Progress bars: one a stage, on standard error, and warnings on lines of their own."""

from __future__ import annotations

import pytest

from forty2.cli.progress_bars import ProgressBars


def test_a_stage_is_a_bar_that_ends_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars() as bars:
        bars("sft", 1, 2, {"loss": 1.5})
        bars("sft", 2, 2, {"loss": 0.5})
        bars("dpo", 1, 4, {})
    out, err = capsys.readouterr()
    assert out == ""
    assert "sft: 100%" in err and "2/2" in err and "loss=0.5" in err
    assert "dpo:  25%" in err and err.endswith("\n")


def test_a_warning_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars() as bars:
        bars("sft", 1, 2, {"warning": "the loss rises"})
    assert "warning: the loss rises" in capsys.readouterr().err.splitlines()


def test_a_warning_after_its_stage_has_ended_is_not_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressBars() as bars:
        bars("sft", 2, 2, {})
        bars("sft", 2, 2, {"warning": "all prompts get one reply"})
    assert "warning: all prompts get one reply" in capsys.readouterr().err.splitlines()
