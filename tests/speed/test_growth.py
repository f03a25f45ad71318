"""Growth: each point measures rows of the size it names, and exponents are those of a power law."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.speed import growth
from forty2.speed.growth import growth_exponents, growth_points, measure_growth, write_chats
from forty2.speed.workers.__main__ import Figures, Job, Measurement

MODEL = Path(__file__).parents[1] / "old_runs" / "inputs" / "model"


def test_every_point_has_rows_of_the_size_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "DATA_ROWS", (10,))
    for point in growth_points(MODEL, "float32", tmp_path):
        inputs = point.job.inputs
        if point.quantity == "prompt tokens":
            assert {len(prompt) for prompt, _, _ in inputs.pairs} == {point.size}
        elif point.quantity == "batch size":
            assert len(inputs.pairs) == growth.STEPS * point.size == point.job.counted // 160
            assert point.job.batch_size == point.size
        else:
            assert len(Path(inputs.data_file).read_text().splitlines()) == point.size == 10


def test_exponents_tell_a_square_from_a_line() -> None:
    assert growth_exponents([1, 2, 8], [3, 6, 24]) == pytest.approx([1, 1])
    assert growth_exponents([1, 2, 8], [3, 12, 192]) == pytest.approx([2, 2])


def test_a_curve_holds_medians_and_the_memory_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are replaced by a cost that is known: their own tests run them."""
    runs = iter(range(1000))

    def known_cost(python: str, worker: str, job: Job) -> Measurement:
        extra = next(runs) % 3 * 100  # the second of three rounds is the median
        size = job.batch_size if worker == "ours_dpo" else job.counted
        figures = Figures(float(size**2), 0.0, 0.0, mlx_gb=size + extra, process_gb=7.0 + extra)
        return Measurement(figures, {}, "")

    monkeypatch.setattr(growth, "measure", known_cost)
    monkeypatch.setattr(growth, "DATA_ROWS", (10, 20))
    curves = measure_growth(MODEL, "float32", 3, growth_progress := Counted())
    assert curves["batch size"].size == [1, 2, 4, 8, 16]
    assert curves["batch size"].seconds == [1, 4, 16, 64, 256]
    assert curves["batch size"].seconds_exponents == pytest.approx([2, 2, 2, 2])
    assert curves["batch size"].gb == [101, 102, 104, 108, 116]
    assert curves["rows prepared"].gb == [107, 107]
    assert growth_progress.calls == 6 + 5 + 2 * 2


class Counted:
    """Progress that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, stage: str, done: int, total: int, info: object) -> None:
        self.calls += 1


def test_conversations_differ_at_every_size(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 50)
    lines = (tmp_path / "chats.jsonl").read_text().splitlines()
    assert len(set(lines)) == 50
