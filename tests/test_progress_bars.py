"""Progress on standard error: headings, evaluations and warnings stay, bars come and go."""

from __future__ import annotations

import re
import sys

import pytest
from support.terminal import on_terminal

from forty2.progress_bars import Bars

SHOW = """
from forty2.progress_bars import Bars
with Bars() as bars:
    bars("sft", 0, 1, {"heading": "stage 1 of 2: training sft"})
    for step in range(1, 4):
        bars("sft", step, 4, {"loss": 1.5, "tokens/s": 123456, "seen": "0.25x"})
        bars("sft: validation rows", 1, 2, {})
        bars("sft", step, 4, {"notice": f"step {step} of 4: validation loss 3.500"})
    bars("sft", 4, 4, {"warning": "the loss rises"})
    bars("sft", 4, 4, {"loss": 0.5})
"""


def test_what_stays_is_written_in_order_where_no_bar_can_be_drawn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bars() as bars:
        bars("sft", 0, 1, {"heading": "stage 1 of 2: training sft"})
        bars("sft", 1, 2, {"loss": 1.5})
        bars("sft", 1, 2, {"notice": "step 1 of 2: validation loss 3.5"})
        bars("sft", 2, 2, {"loss": 0.5})
        bars("sft", 2, 2, {"warning": "the loss rises"})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "stage 1 of 2: training sft",
        "  step 1 of 2: validation loss 3.5",
        "warning: the loss rises",
    ]


def test_long_work_has_a_line_now_and_then_where_no_bar_can_be_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr("forty2.progress_bars.time.monotonic", lambda: next(seconds))
    with Bars() as bars:
        for step in range(1, 9):
            bars("answers", step, 8, {"loss": step})
    assert capsys.readouterr().err.splitlines() == [
        "answers: 4 of 8, loss 4",
        "answers: 7 of 8, loss 7",
        "answers: 8 of 8, loss 8",
    ]


@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_terminal_a_bar_fits_and_goes_and_lines_stay(columns: int) -> None:
    written = on_terminal([sys.executable, "-c", SHOW], columns)
    drawn = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]+", written)]
    assert any("sft:  25%" in part and "1/4" in part for part in drawn)
    assert max(map(len, drawn)) <= columns
    assert [part for part in drawn if part.strip() and "|" not in part] == [
        "stage 1 of 2: training sft",
        *(f"  step {step} of 4: validation loss 3.500" for step in (1, 2, 3)),
        "warning: the loss rises",
    ]


def test_colour_is_left_out_where_it_is_not_wanted() -> None:
    shown = on_terminal([sys.executable, "-c", SHOW], 80)
    plain = on_terminal([sys.executable, "-c", SHOW], 80, NO_COLOR="1")
    assert "\x1b[1m" in shown and "\x1b[1m" not in plain
