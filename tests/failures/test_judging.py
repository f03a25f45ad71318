"""Scores of a judge: what cannot be read is no score, and no failure."""

from __future__ import annotations

from typing import Any

import pytest

from forty2.failures.judging import Scoring, judge_figures, judged, parse_score


def said(*texts: str | None) -> list[dict[str, Any]]:
    return [
        {"said": text, "model": "m", "error": None if text is not None else "HTTP 500"}
        for text in texts
    ]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7),
        ("It is right.\nScore: 8/10", 8),
        ("**Score:** 7.5", 7.5),
        ("Score: **9**.", 9),
        ("9", 9),
        ("10/10", 10),
        ("Score: 3\nOn reflection:\nScore: 6", 6),
        ("<think>Score: 2</think>Score: 5", 5),
        ("score is 4", 4),
        ("It ends as it should.\n\nScore: 4\n\n", 4),
        ("The reply ends with\nScore: 10\nwhich it gives to", None),
        ("Message, Score: 10\n[End of reply]\n\nHow good is the reply?", None),
        ('end with a line that reads "Score: N".', None),
        ("<think>It may deserve Score: 9", None),
        ("Score: 8/10", 8),
        ("8/10", 8),
        ("Score: 8 out of 100", None),
        ('{"score": {"value": [8]}}', None),
        ("It gives a list:\n9\n10", None),
        ("[]", None),
        ("null", None),
        (f"Score: {'9' * 5000}", None),
        ("Score: 1e1", None),
        ("Score: nan", None),
        ("Score: 11", None),
        ("Score: 0", None),
        ("Score: 7/100", None),
        ("Score: seven", None),
        ("I give it a 7 because it is good", None),
        ("Score: -3", None),
        ("<html><body>502 Bad Gateway</body></html>", None),
        ("", None),
    ],
)
def test_a_score_is_read_or_it_is_none(text: str, score: float | None) -> None:
    assert parse_score(text) == score


def test_the_mean_of_the_readable_scores_decides() -> None:
    assert judged("a", said("Score: 6", "Score: 8"), 7)[:4] == ("a", "pass", "judge", 7.0)
    assert judged("a", said("Score: 6", "Score: 7"), 7).verdict == "fail"
    assert judged("a", said("Score: 9", "no idea"), 7)[1:4] == ("pass", "judge", 9.0)


def test_without_a_score_a_reply_is_unscored() -> None:
    for asked in (said("no idea", ""), said(None, None), said(None, "no idea"), []):
        verdict = judged("a", asked, 7)
        assert (verdict.verdict, verdict.score) == ("unscored", None)
    assert "HTTP 500" in judged("a", said(None), 7).reason


def test_the_figures_say_what_another_threshold_would_change_and_how_far_repeats_agree() -> None:
    asked = {
        "a": said("Score: 7", "Score: 7"),
        "b": said("Score: 9", "Score: 8"),
        "c": said("Score: 2", "Score: 8"),
        "d": said("nonsense", None),
    }
    found = judge_figures(asked, Scoring())
    assert found["changed_at"]["7"] == 0
    assert found["changed_at"]["8"] == 1  # a, which has 7
    assert found["changed_at"]["9"] == 2  # b, too, which has 8.5
    assert found["changed_at"]["5"] == 1  # c, which has 5
    assert found["agreement"]["items"] == 3 and found["agreement"]["raw"] == pytest.approx(2 / 3)
    assert found["agreement"]["kappa"] == pytest.approx((2 / 3 - 26 / 36) / (1 - 26 / 36))
    assert found["repeats_differ"] == 1
    assert found["requests"] == {"sent": 8, "failed": 1, "unreadable": 1}
