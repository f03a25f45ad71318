"""Metrics as reports show them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from forty2.report.metrics import (
    HELD_OUT_COLUMNS,
    STAGE_COLUMNS,
    Column,
    Score,
    shown_figure,
    shown_metric,
    shown_score,
    written_change,
    written_score,
)
from forty2.report.run_types import ChangeRecord, StageRecord


def test_leaks_and_perplexity_are_shown_instead_of_their_opposites() -> None:
    """A third less "no leak" is a third more leaks; log p lower by log 2 is twice the perplexity."""
    leaks = shown_score("no leak", Score(0.75, 0.7, 0.9))
    assert leaks == pytest.approx((0.25, 0.1, 0.3))
    perplexity = shown_score("log p of texts", Score(-np.log(8), -np.log(16), 0))
    assert perplexity == pytest.approx((8, 1, 16))
    fewer = ChangeRecord(-1 / 3, -0.5, -0.1, None, "tax")
    assert shown_figure("no leak", fewer) == pytest.approx((1 / 3, 0.1, 0.5))
    halved = ChangeRecord(-np.log(2), -np.log(3), 0.0, None, "tax")
    assert shown_figure("log p of texts", halved) == pytest.approx((1, 0, 2))


def test_every_column_of_a_stage_is_one_of_its_fields() -> None:
    assert STAGE_COLUMNS.keys() <= {field.name for field in dataclasses.fields(StageRecord)}


@pytest.mark.parametrize("columns", [STAGE_COLUMNS, HELD_OUT_COLUMNS])
def test_no_two_columns_of_a_table_have_one_title(columns: dict[str, Column]) -> None:
    assert len({column.title for column in columns.values()}) == len(columns)


@pytest.mark.parametrize(
    ("metric", "name", "written"),
    [
        ("mc1", "MC1", "+0.125 (+0.100 to +0.200), gain"),
        ("pairs right", "pairs right (points)", "+12.5 (+10.0 to +20.0), gain"),
        ("chat loss", "chat loss (nats)", "+0.125 (+0.100 to +0.200), gain"),
        ("reply tokens", "reply tokens (tokens)", "+0.1 (+0.1 to +0.2), gain"),
        ("no leak", "leaks (points)", "-12.5 (-20.0 to -10.0), gain"),
        ("log p of texts", "perplexity (%)", "-11.8 (-18.1 to -9.5), gain"),
        ("of another release", "of another release (points)", "+12.5 (+10.0 to +20.0), gain"),
    ],
)
def test_a_change_is_written_in_the_unit_beside_its_name(
    metric: str, name: str, written: str
) -> None:
    assert shown_metric(metric).name_of_changes == name
    assert written_change(metric, ChangeRecord(0.125, 0.1, 0.2, None, "gain")) == written


def test_what_was_not_measured_is_a_dash_and_one_seed_has_no_interval() -> None:
    assert written_score("mc1", None) == written_change("mc1", None) == "–"
    assert written_score("mc1", Score(0.25, math.nan, math.nan)) == "0.250"
