"""Asking a chat model: several at once and no more, at a bounded rate, and never beyond a budget."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Reply, said, server

from forty2.benchmark.partial_results import PartialResults
from forty2.errors import BenchmarkError, DataError
from forty2.failures.asking import Asker, Limits, Request, Tokens, estimate
from forty2.files import JsonObject
from forty2.inference.chat_endpoint import ChatEndpoint
from forty2.progress import silent

REQUESTS = [Request(f"r/{n}", f"Question {n}?") for n in range(12)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def asker(url: str, partial: PartialResults | None = None, **limits: Any) -> Asker:
    endpoint = ChatEndpoint(url, "m", tries=1, sleep=lambda _: None)
    return Asker(
        lambda: endpoint,
        partial or PartialResults.in_memory(),
        stage="requests",
        seed=1,
        temperature=0.5,
        max_tokens=10,
        limits=Limits(**limits),
        progress=silent,
    )


def echo(_: int, body: JsonObject) -> Reply:
    return said(body["messages"][0]["content"])


def test_answers_come_in_the_order_of_the_requests_and_each_has_its_seed() -> None:
    def slow(number: int, body: JsonObject) -> Reply:
        time.sleep(0.01 * (number % 4))
        return echo(number, body)

    with server(slow) as (url, seen):
        answers = asker(url).ask(REQUESTS)
    assert [answer["said"] for answer in answers] == [request.text for request in REQUESTS]
    assert len({body["seed"] for body in seen}) == 12
    assert {(body["temperature"], body["max_tokens"]) for body in seen} == {(0.5, 10)}


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_requests_are_under_way_than_allowed(at_once: int) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def counting(number: int, body: JsonObject) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.03)
        with lock:
            under_way -= 1
        return echo(number, body)

    with server(counting) as (url, _):
        asker(url, at_once=at_once).ask(REQUESTS)
    assert most == at_once


def test_requests_begin_no_faster_than_allowed() -> None:
    times: list[float] = []

    def timed(number: int, body: JsonObject) -> Reply:
        times.append(time.monotonic())
        return echo(number, body)

    with server(timed) as (url, _):
        asker(url, per_minute=1200).ask(REQUESTS[:6])
    assert max(times) - min(times) > 5 * 60 / 1200 - 0.03


def test_what_is_in_the_journal_is_not_asked_again(tmp_path: Path) -> None:
    with server(echo) as (url, seen):
        for count in (5, 12):
            with PartialResults.open(tmp_path / "x.json", {"a": 1}, resume=True) as partial:
                answers = asker(url, partial).ask(REQUESTS[:count])
        assert len(answers) == len(seen) == 12


def test_after_an_error_nothing_new_is_sent_and_what_was_under_way_is_stored(
    tmp_path: Path,
) -> None:
    def refuses(number: int, body: JsonObject) -> Reply:
        if number == 5:
            return 401, {"error": "who?"}, {}
        time.sleep(0.1)
        return echo(number, body)

    with (
        server(refuses) as (url, seen),
        PartialResults.open(tmp_path / "x.json", {"a": 1}, resume=True) as partial,
    ):
        with pytest.raises(BenchmarkError, match="who"):
            asker(url, partial, at_once=4).ask(REQUESTS)
        stored = sum(request.key in partial for request in REQUESTS)
        assert stored == len(seen) - 1 <= 8


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_budget_is_kept_and_ends_at_the_same_request_however_many_are_under_way(
    at_once: int,
) -> None:
    """Requests reserve 14 tokens and take 9; of 60, five are spent on each before the last that fits."""

    def charged(number: int, body: JsonObject) -> Reply:
        time.sleep(0.01)
        status, reply, headers = echo(number, body)
        return status, {**reply, "usage": {"prompt_tokens": 4, "completion_tokens": 5}}, headers

    most = estimate(REQUESTS[0].text) + 10
    with server(charged) as (url, seen):
        one = asker(url, at_once=at_once, tokens=60)
        answers = one.ask(REQUESTS)
    expected = (60 - most) // 9 + 1
    assert len(answers) == len(seen) == expected < 12
    assert one.ended and one.spent == Tokens(4 * expected, 5 * expected)
    assert one.ask(REQUESTS[expected:]) == [], "it stays ended"


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": -1, "completion_tokens": 1}, "much", None])
def test_without_believable_figures_tokens_are_estimated(usage: object) -> None:
    with server(lambda n, body: (200, {**echo(n, body)[1], "usage": usage}, {})) as (url, _):
        one = asker(url)
        one.ask(REQUESTS[:2])
    assert one.estimated == 2 and one.spent == Tokens(8, 8)


def test_failed_requests_are_answers_without_words() -> None:
    def fails(number: int, body: JsonObject) -> Reply:
        return (400, {"error": "no"}, {}) if number == 2 else echo(number, body)

    with server(fails) as (url, _):
        answers = asker(url, at_once=1).ask(REQUESTS[:3])
    assert Counter(answer["said"] is None for answer in answers) == {True: 1, False: 2}
    assert "HTTP 400" in answers[1]["error"] and answers[1]["tokens"] == [0, 0]


def refuses_some(refused: set[str]) -> Any:
    """A server to which some questions are too long."""

    def answer(number: int, body: JsonObject) -> Reply:
        if body["messages"][0]["content"] in refused:
            return 400, {"error": "too long"}, {}
        return echo(number, body)

    return answer


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_first_question_may_fail_as_any_other(tmp_path: Path, at_once: int) -> None:
    with (
        server(refuses_some({"Question 0?", "Question 1?"})) as (url, seen),
        PartialResults.open(tmp_path / "x.json", {"a": 1}, resume=True) as partial,
    ):
        answers = asker(url, partial, at_once=at_once).ask(REQUESTS)
    assert [answer["said"] is None for answer in answers] == [True] * 2 + [False] * 10
    assert "HTTP 400" in answers[0]["error"] and len(seen) == 12


def test_the_last_question_may_fail_after_a_stop() -> None:
    partial = PartialResults.in_memory()
    with server(refuses_some({"Question 11?"})) as (url, seen):
        asker(url, partial).ask(REQUESTS[:11])
        answers = asker(url, partial).ask(REQUESTS)
    assert answers[11]["said"] is None and len(seen) == 12


def test_a_server_that_answers_nothing_stops_the_asking_and_nothing_is_stored(
    tmp_path: Path,
) -> None:
    page: Reply = (200, b"<html>sign in</html>", {})
    with (
        server(lambda *_: page) as (url, seen),
        PartialResults.open(tmp_path / "x.json", {"a": 1}, resume=True) as partial,
    ):
        for count in (12, 1):
            with pytest.raises(BenchmarkError, match="check the address and the model"):
                asker(url, partial, at_once=2).ask(REQUESTS[:count])
        assert not any(request.key in partial for request in REQUESTS) and len(seen) <= 6 + 1


def test_a_time_without_a_byte_may_be_given(tmp_path: Path) -> None:
    from forty2.failures.asking import open_asker
    from forty2.failures.chat_models import ChatModel

    def late(number: int, body: JsonObject) -> Reply:
        time.sleep(0.5)
        return echo(number, body)

    settings: dict[str, Any] = {"stage": "", "seed": 1, "temperature": 0, "max_tokens": 9}
    with server(late) as (url, seen):
        model = ChatModel(name=url, timeout=0.1, tries=1)
        with open_asker(
            model,
            PartialResults.in_memory(),
            limits=Limits(timeout=60),
            progress=silent,
            **settings,
        ) as one:
            assert one.ask(REQUESTS[:1])[0]["said"] == "Question 0?" and len(seen) == 1


def test_prices_are_per_million_and_a_budget_in_money_needs_both() -> None:
    assert Limits(price_in=2, price_out=6).price(Tokens(1_000_000, 500_000)) == 5.0
    assert Limits().price(Tokens(1, 1)) is None
    for nothing in ({"at_once": 0}, {"per_minute": 0}, {"timeout": 0}):
        with pytest.raises(DataError):
            Limits(**nothing)
    for wrong in ({"cost": 1.0}, {"price_in": 1.0}, {"cost": 1.0, "price_out": 1.0}):
        with pytest.raises(DataError, match="`price_in` and `price_out`"):
            Limits(**wrong)  # type: ignore[arg-type]


def test_what_was_spent_is_less_for_the_next_step_and_never_below_nothing() -> None:
    limits = Limits(tokens=100, cost=1.0, price_in=1e4, price_out=2e4, at_once=3)
    left = limits.less(Tokens(20, 30))
    assert (left.tokens, left.at_once) == (50, 3)
    assert left.cost == pytest.approx(1.0 - 0.2 - 0.6)
    none = limits.less(Tokens(200, 30))
    assert (none.tokens, none.cost) == (0, 0.0)
    assert not none.allow(Tokens(1, 0))
    assert Limits().less(Tokens(5, 5)) == Limits()
