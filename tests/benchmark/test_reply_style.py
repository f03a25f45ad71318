"""Metrics of the style of replies: what each counts, its interval, and how good its detector is."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from forty2.benchmark.reply_style import (
    DETECTORS,
    GOOD_F1,
    HALVES,
    METRICS,
    Moves,
    StyledReply,
    cautions,
    distinct_1,
    distinct_2,
    find_moves,
    find_stance,
    quality,
    reply_length,
    spiral_score,
    style_of,
    subtlety,
    words_of,
)
from forty2.data.library import rows
from forty2.report import run_charts
from forty2.training.objectives.phase import REPLY_METRICS, ReplyMetric

LABELS = rows("heldout/style_labels")


NONE = Moves(0, 0, 0)


def reply(text: str = "", tokens: int = 10, moves: Moves = NONE) -> StyledReply:
    return StyledReply(words_of(text), tokens, moves, "none")


# --- the labelled replies -------------------------------------------------------------------------


def test_the_labelled_replies_are_many_and_half_of_the_written_ones_adversarial() -> None:
    written = [row for row in LABELS if row["source"] == "written"]
    adversarial = [row for row in written if row["kind"] in ("markers alone", "no markers")]
    assert len(written) >= 200 and 2 * len(adversarial) == len(written)
    assert (
        len({row["reply"] for row in LABELS}) == len({row["id"] for row in LABELS}) == len(LABELS)
    )
    for row in LABELS:
        assert row["thesis"] in (0, 1) and row["stance"] in ("explicit", "implicit", "none")
        assert bool(row["thesis"]) >= bool(row["antithesis"]) >= bool(row["synthesis"])
        if row["source"] == "written":
            with_dialectic = row["kind"] in ("dialectic", "no markers")
            assert bool(row["antithesis"]) == with_dialectic, row["reply"]


def test_the_halves_follow_the_stated_rule() -> None:
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in LABELS:
        digest = hashlib.sha256(row["reply"].encode()).hexdigest()
        groups[row["source"], row["kind"]].append((digest, row["half"]))
    for group in groups.values():
        assert [half for _, half in sorted(group)] == [HALVES[n % 2] for n in range(len(group))]


@pytest.mark.parametrize(
    ("part", "precision", "recall"),
    [
        ("thesis", 0.85, 0.85),
        ("antithesis", 0.7, 0.6),
        ("synthesis", 0.85, 0.5),
        ("explicit", 0.6, 0.5),
        ("implicit", 0.55, 0.35),
    ],
)
def test_the_rules_on_replies_that_they_were_not_developed_on(
    part: str, precision: float, recall: float
) -> None:
    """Floors, just under what was measured."""
    measured = quality(part, "held out")
    assert measured.precision >= precision and measured.recall >= recall, measured
    harmonic = 2 * measured.precision * measured.recall / (measured.precision + measured.recall)
    assert measured.f1 == pytest.approx(harmonic)


def test_a_metric_on_a_weak_detector_has_a_caution_and_one_on_a_good_one_has_none() -> None:
    measured = [
        quality(part, half)._asdict() for p in DETECTORS.values() for part in p for half in HALVES
    ]
    found = cautions(measured)
    for metric, parts in DETECTORS.items():
        weak = [part for part in parts if quality(part, "held out").f1 < GOOD_F1]
        assert (metric in found) == bool(weak)
        assert all(f"{part} {quality(part, 'held out').f1:.2f}" in found[metric] for part in weak)
    assert cautions([one | {"f1": GOOD_F1} for one in measured]) == {}


def test_no_question_that_is_asked_is_in_a_set_to_train_on() -> None:
    asked = [row["prompt"] for row in rows("heldout/style_prompts")]
    assert len(set(asked)) == len(asked) == 48
    trained = {row["prompt"] for row in rows("dialectic")}
    assert not trained & {*asked}


# --- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("", (0, 0, 0)),
        ("...", (0, 0, 0)),
        ("Water boils at 100 degrees.", (0, 0, 0)),
        ("A cap is fair.", (1, 0, 0)),
        ("A cap is fair. But it costs the builder his trade.", (1, 1, 0)),
        (
            "A cap is fair. But it costs the builder his trade. A cap for a year may be enough for both.",
            (1, 1, 1),
        ),
    ],
)
def test_moves_of_a_reply(text: str, moves: tuple[int, int, int]) -> None:
    assert find_moves(text) == moves
    assert find_moves(text.replace("'", "’")) == moves


def test_one_position_alone_is_no_dialectic() -> None:
    assert Moves(1, 0, 0).total == 0
    assert Moves(1, 2, 1).total == 4


def test_a_long_reply_without_an_end_is_judged_in_time() -> None:
    find_moves("but however " * 20_000)
    find_stance("I think 'that " * 20_000)


# --- the metrics ----------------------------------------------------------------------------------


def test_the_metrics_are_those_that_a_phase_can_choose_by() -> None:
    assert tuple(METRICS) == REPLY_METRICS == get_args(ReplyMetric)
    assert run_charts.GOOD_F1 == GOOD_F1
    for measure in METRICS.values():
        assert len((measure.__doc__ or "").split()) > 20


def test_the_spiral_score_is_all_moves_over_all_tokens() -> None:
    found = spiral_score([reply(tokens=50, moves=Moves(1, 1, 0)), reply(tokens=150)])
    assert found.mean() == pytest.approx(100 * 2 / 200)
    assert spiral_score([reply(tokens=0), reply(tokens=0)]).mean() == 0


def test_subtlety_is_over_the_replies_with_a_stance() -> None:
    replies = [reply()._replace(stance=s) for s in ("implicit", "explicit", "implicit", "none")]
    assert subtlety(replies).mean() == pytest.approx(2 / 3)
    assert subtlety([reply()]).mean() is None


def test_distinct_counts_different_ngrams_of_all_replies_together() -> None:
    replies = [reply("The cat, the dog."), reply("the CAT")]
    assert distinct_1(replies).mean() == pytest.approx(3 / 6)
    assert distinct_2(replies).mean() == pytest.approx(3 / 4)  # the cat, cat the, the dog
    assert distinct_2([reply("one"), reply("")]).mean() is None


def test_reply_length_is_the_mean_of_tokens() -> None:
    assert reply_length([reply(tokens=4), reply(tokens=8)]).mean() == 6


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_the_mean_of_the_scores_and_lies_in_its_interval(name: str) -> None:
    replies = [style_of(row["reply"], len(row["reply"]) // 4) for row in LABELS[:60]]
    parts = METRICS[name](replies)
    mean = parts.mean()
    assert mean is not None
    assert np.mean(parts.scores()) == pytest.approx(mean)
    low, high = parts.interval()
    assert low < mean < high


def test_the_interval_of_a_share_without_spread_has_a_width() -> None:
    low, high = subtlety([reply()._replace(stance="explicit")] * 3).interval()
    assert low == 0 and high > 0.5


@pytest.mark.parametrize("name", ["spiral_score", "distinct_1", "distinct_2", "reply_length"])
def test_intervals_are_as_wide_as_other_replies_would_vary(name: str) -> None:
    """Against the spread of the metric over many draws of 30 of the labelled replies."""
    replies = [style_of(row["reply"], len(row["reply"]) // 4) for row in LABELS]
    draw = random.Random(0)
    values, widths = [], []
    for n in range(60):
        parts = METRICS[name](draw.sample(replies, 30))
        values.append(parts.mean())
        if n < 8:
            low, high = parts.interval()
            widths.append((high - low) / (2 * 1.96))
    spread = float(np.std(np.array(values, float), ddof=1))
    assert 0.6 < np.mean(widths) / spread < 1.7


def test_the_page_states_the_quality_that_is_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    for metric, parts in DETECTORS.items():
        for part in parts:
            develop, held_out = (quality(part, half) for half in HALVES)
            figures = (held_out.precision, held_out.recall, held_out.f1, develop.f1)
            shown = " | ".join(f"{figure:.2f}" for figure in figures)
            assert f"| {part} | `{metric}` | {shown} |" in page
