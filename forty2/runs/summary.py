"""The summary of a run: its stages compared with the base, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.benchmark.compare import compare
from forty2.benchmark.suite import line, without_contaminated
from forty2.files import JsonObject, read_json, write_json
from forty2.recipe.schema import Benchmark
from forty2.runs.measuring import CONTAMINATION

SUMMARY = "summary.json"


class Summary(NamedTuple):
    """The comparisons of a run's stages with its base."""

    verdict: str
    """The last stage's; empty where only the base was measured."""
    record: JsonObject


def summarize(path: Path, benchmark: Benchmark, stages: Sequence[JsonObject]) -> Summary:
    """Compare the stages with the base, and write summary.json.

    Args:
        stages: the base's measurement first.
    """
    margin = benchmark.margin
    base = stages[0]["truthfulqa"]
    comparisons = [(stage, compare(stages[0], stage, margin=margin)) for stage in stages[1:]]
    verdict = comparisons[-1][1].verdict if comparisons else ""
    record = {
        "verdict": verdict,
        "margin": margin,
        "questions": base["questions"],
        "questions_sha256": base["questions_sha256"],
        "n": base["n"],
        "stages": [
            {
                **line(stage)._asdict(),
                **{key: stage["truthfulqa"].get(key) for key in ("stderr", "calibration")},
            }
            for stage in stages
        ],
        "comparisons": [{"stage": s["stage"], **c.record()} for s, c in comparisons],
        "contamination": without_contaminated(
            read_json(path / CONTAMINATION)["hits"], stages, margin
        ),
    }
    write_json(path / SUMMARY, record)
    return Summary(verdict, record)
