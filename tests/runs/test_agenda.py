"""The time that a run has left comes from the stages that it has finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from forty2.runs.agenda import Agenda, AgendaItem, in_words

TASKS = [
    AgendaItem("reading", "read"),
    AgendaItem("measuring the base", "measure"),
    AgendaItem("training sft", "train"),
    AgendaItem("measuring after sft", "measure"),
    AgendaItem("training dpo", "train"),
    AgendaItem("measuring after dpo", "measure"),
    AgendaItem("fusing", "fuse"),
]


def headings(
    monkeypatch: pytest.MonkeyPatch, tasks: list[AgendaItem], minutes: list[float]
) -> list[str]:
    """Go through an agenda whose stages take these minutes."""
    said: list[str] = []

    def progress(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        said.append(info["heading"])

    now = iter([0.0, *(60 * sum(minutes[: n + 1]) for n in range(len(minutes)))])
    monkeypatch.setattr("forty2.runs.agenda.time.monotonic", lambda: next(now))
    agenda = Agenda(tasks, progress)
    for task in tasks:
        agenda.begin_next()
        if task.kind == "read":
            agenda.set_work({"training sft": 100.0, "training dpo": 400.0})
    return said


def test_time_left_is_estimated_once_every_kind_of_stage_has_been_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert headings(monkeypatch, TASKS, [1, 5, 10, 5, 40, 5, 1]) == [
        "stage 1 of 7: reading",
        "stage 2 of 7: measuring the base",
        "stage 3 of 7: training sft",
        "stage 4 of 7: measuring after sft, about 50 min left",
        "stage 5 of 7: training dpo, about 45 min left",
        "stage 6 of 7: measuring after dpo, about 5 min left",
        "stage 7 of 7: fusing, under a minute left",
    ]


def test_what_was_done_before_tells_nothing_about_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [*TASKS[:1], *(task._replace(done=True) for task in TASKS[1:4]), *TASKS[4:]]
    said = headings(monkeypatch, tasks, [1, 0, 0, 0, 40, 5, 1])
    assert said[1:5] == [
        "stage 2 of 7: measuring the base, done before",
        "stage 3 of 7: training sft, done before",
        "stage 4 of 7: measuring after sft, done before",
        "stage 5 of 7: training dpo",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "under a minute"),
        (61, "about 1 min"),
        (3570, "about 1 h"),
        (3600, "about 1 h"),
        (8000, "about 2 h 13 min"),
    ],
)
def test_times_are_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


class Log:
    """A log in memory."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []

    def log_time(self, record: Mapping[str, object]) -> None:
        self.entries.append(tuple(record.values()))


def test_each_stage_is_recorded_from_its_beginning_and_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first stage begins before there is a folder for its record."""
    clock, log = [0.0], Log()
    monkeypatch.setattr("forty2.runs.agenda.time.monotonic", lambda: clock[0])
    agenda = Agenda([TASKS[0], TASKS[2]._replace(phase="sft")], lambda *_: None)
    agenda.begin_next()
    clock[0] = 5
    agenda.record_in(log)
    agenda.begin_next()
    for step, now in enumerate((30, 64.9, 65, 100, 131)):
        clock[0] = now
        agenda("phase1_sft", step, 5, {})
    clock[0] = 132
    agenda.record_time()
    assert log.entries == [
        ("reading", "read", 5),
        ("training sft", "train", "sft", 60),
        ("training sft", "train", "sft", 66),
        ("training sft", "train", "sft", 1),
    ]
    agenda.record_in(None)
    clock[0] = 999
    agenda.record_time()
    assert len(log.entries) == 4
