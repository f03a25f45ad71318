"""A worker's process: its own memory, the job as it was written, ids that text gives back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from forty2.speed.environments import WORKERS
from forty2.speed.workers.__main__ import Figures, Inputs, Job, Measurement

MODEL = Path(__file__).parents[2] / "old_runs" / "inputs" / "model"


def test_a_process_counts_its_own_memory_and_not_that_of_its_parent() -> None:
    """On Linux `ru_maxrss` would start with the parent's: pytest with mlx holds far more."""
    code = (
        "import runpy, sys; from pathlib import Path; "
        f"peak = runpy.run_path({str(WORKERS / '__main__.py')!r})['process_peak']; "
        "before = peak(); block = bytearray(200_000_000); print(before, peak())"
    )
    ballast = bytearray(400_000_000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert len(ballast) > 2 * before
    assert 150e6 < after - before < 300e6


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    inputs = Inputs(pairs=[[[1], [2, 3], [4]]], products=[[2, 3, 4]])  # type: ignore[list-item]
    job = Job(str(MODEL), "float32", inputs, 3, batch_size=1, lr=1e-3)
    job.write(tmp_path / "job.json")
    read = Job.read(tmp_path / "job.json")
    assert asdict(read) == json.loads(json.dumps(asdict(job)))
    assert read.steps == 1 and read.inputs.pairs == [[[1], [2, 3], [4]]]


def test_a_measurement_is_read_as_it_was_printed() -> None:
    measurement = Measurement(Figures(1.5, 2, 3, 4, 5), {"mlx": "0"}, "OpenBLAS")
    assert Measurement.from_json(json.dumps(asdict(measurement))) == measurement


def test_texts_for_other_trainers_are_read_as_the_same_ids() -> None:
    ids = [7, 12, 120, 1, 0, 257]
    job = Job(str(MODEL), "float32", Inputs(), 1)
    tokenizer = job.word_tokenizer()
    assert tokenizer.encode(job.as_words(ids), add_special_tokens=False) == ids
    joined = tokenizer.encode(job.as_words(ids) + job.as_words([3]), add_special_tokens=False)
    assert joined == [*ids, 3]
