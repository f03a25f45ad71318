"""The soak: a short one holds, and what it looks for would be seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from soak import Sample, inconsistent, soak, verdict
from support.processes import run_function
from support.runs import short_checks

BLOCKS = 50
STEPS = 20 * BLOCKS


def records() -> list[str]:
    """The metrics of a sound run."""
    lines = []
    for phase in ("sft", "dpo"):
        for step in range(STEPS + 1):
            if step > 0:
                lines.append(json.dumps({"phase": phase, "step": step, "loss": 1.0}))
            if step % 20 == 0:
                lines.append(json.dumps({"phase": phase, "step": step, "valid_loss": 1.0}))
    return lines


def samples(
    *, resident: float = 0.0, mlx: float = 0.0, files: float = 0.0, slower: float = 0.0
) -> dict[str, list[Sample]]:
    """Samples of two phases that grow by so much in all, the first fifth aside."""

    def at(n: int) -> Sample:
        share = max(0.0, n / BLOCKS - 0.2)
        seconds = n * (1 + slower * share)
        return Sample(
            20 * n + 10,
            seconds,
            seconds,
            9e5 * (n < 5) + 1e5 + resident * share,
            1e3 + mlx * share,
            9 + int(files * share),
        )

    steady = [Sample(20 * n + 10, n, n, 1e5, 1e3, 9) for n in range(BLOCKS)]
    return {"phase1_sft": steady, "phase2_dpo": [at(n) for n in range(BLOCKS)]}


def test_a_short_soak_holds(tmp_path: Path) -> None:
    """`make soak` trains ten thousand steps.

    So few say nothing of speed, nor of resident memory, which the allocator moves by megabytes.
    """
    table = run_function(short, tmp_path)
    assert re.search(r"lines of metrics +\d+ +each step once, in order\n$", table), table
    broken = [line for line in table.splitlines() if "NOT HELD" in line]
    noisy = ("last tenth", "resident memory")
    assert not [line for line in broken if not line.startswith(noisy)], table


def short(place: str) -> None:
    with short_checks():
        print(verdict(*soak(Path(place), 100), 100)[0])


def test_a_sound_run_is_called_so() -> None:
    assert verdict(samples(), records(), STEPS)[1]


@pytest.mark.parametrize(
    ("grown", "row"),
    [
        (samples(resident=8000), "resident memory"),
        (samples(mlx=8), "mlx memory"),
        (samples(files=2), "open files"),
        (samples(slower=0.5), "last tenth beside second"),
    ],
)
def test_growth_and_slowness_are_seen(grown: dict[str, list[Sample]], row: str) -> None:
    table, held = verdict(grown, records(), STEPS)
    assert not held
    assert [line.startswith(row) for line in table.splitlines() if "NOT HELD" in line] == [True]


def test_metrics_that_miss_repeat_disorder_or_tear_a_step_are_seen() -> None:
    sound = records()
    assert inconsistent(sound, STEPS) == []
    for at in (0, 1, 500, len(sound) - 1):
        assert inconsistent(sound[:at] + sound[at + 1 :], STEPS)
        assert inconsistent([*sound[: at + 1], *sound[at:]], STEPS)
        assert inconsistent([*sound[:at], sound[at][:9], *sound[at + 1 :]], STEPS)
    assert inconsistent([sound[1], sound[0], *sound[2:]], STEPS)
