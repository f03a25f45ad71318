"""Results as JSON have the shape of the published file."""

from __future__ import annotations

import json
from pathlib import Path

from forty2.files import JsonObject
from forty2.speed.results import ComparisonResult, Floor, GrowthCurve, SuiteResult
from forty2.speed.workers.__main__ import Figures, Measurement

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "forty2-bench.json"
OF_ONE_SUITE = {"rows", "rounds"}
"""Keys that the published file has in suites measured with other settings than the rest."""


def published_result() -> tuple[JsonObject, ComparisonResult]:
    """The published file, and the result that it was made from."""
    value = json.loads(PUBLISHED.read_text("utf-8"))
    suites = {
        name: SuiteResult(
            **{
                **{key: suite[key] for key in ("unit", "units", "tokens", "source", "left_out")},
                "medians": {who: Figures(**each) for who, each in suite["medians"].items()},
                "ratios": {who: Figures(**each) for who, each in suite["ratios"].items()},
                "runs": {
                    who: [Measurement.from_json(json.dumps(run)) for run in runs]
                    for who, runs in suite["runs"].items()
                },
                "floor": Floor(**suite["floor"]),
            }
        )
        for name, suite in value["suites"].items()
    }
    growth = {name: GrowthCurve(**curve) for name, curve in value["growth"].items()}
    kept = {key: value[key] for key in ("machine", "model", "precision", "batch_size")}
    return value, ComparisonResult(**kept, rows=16, rounds=2, suites=suites, growth=growth)


def test_the_published_file_has_the_shape_that_is_written_now() -> None:
    published, result = published_result()
    written = json.loads(json.dumps(result.as_json()))
    for suite in published["suites"].values():
        for key in OF_ONE_SUITE:
            suite.pop(key, None)
    assert written == {**published, "rows": 16, "rounds": 2}
    assert [key for key in written if key in published] == list(published)


def test_what_was_not_measured_is_absent() -> None:
    suite = SuiteResult("batch", 1, 1, "here", {}, {}, {}, {})
    result = ComparisonResult({}, "m", "float32", 4, 1, 4, {"vocabulary": suite})
    written = result.as_json()
    assert "growth" not in written and "floor" not in written["suites"]["vocabulary"]
