"""Tables show medians, ratios, the floor, exponents and the trainers that were left out."""

from __future__ import annotations

from forty2.speed.results import Floor, GrowthCurve, SuiteResult
from forty2.speed.tables import format_growth, format_suite
from forty2.speed.workers.__main__ import Figures


def test_a_suite_s_table_has_medians_ratios_the_floor_and_who_is_left_out() -> None:
    suite = SuiteResult(
        unit="batch",
        units=2,
        tokens=9,
        source="here",
        medians={
            "forty2": Figures(3.0, 9.0, 50.0, 1.0, 2.0),
            "mlx-lm": Figures(12.0, 9.0, 50.0, 1.0, 2.0),
        },
        ratios={"mlx-lm": Figures(0.25, 1.0, 1.0, 0.5, 0.75)},
        left_out={"unsloth": "pip could not install it"},
        runs={},
        floor=Floor(operations=4 * 10**9, operations_per_s=1e9, seconds=2.0, ratio=1.5),
    )
    head, ours, theirs, floor, left_out = format_suite("sft-tail", suite).splitlines()
    assert head.split()[:2] == ["sft-tail", "s/batch"]
    assert ours.split() == ["forty2", "3.000", "50.0", "1.00", "2.00"]
    assert theirs.split() == ["mlx-lm", "12.000", "0.25", "50.0", "1.00", "0.50", "2.00", "0.75"]
    assert "2.000 s/batch: 2 billion operations at 1 billion" in floor and "1.50 times" in floor
    assert left_out.endswith("unsloth left out: pip could not install it")


def test_a_growth_table_puts_an_exponent_beside_the_larger_size() -> None:
    curve = GrowthCurve([64, 1024], [1.0, 4.0], [0.5, 0.6], [0.5], [0.07])
    _, first, second = format_growth({"prompt tokens": curve}).splitlines()
    assert first.split() == ["64", "1.000", "0.50"]
    assert second.split() == ["1,024", "4.000", "0.50", "0.60", "0.07"]
