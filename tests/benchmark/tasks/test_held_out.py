"""The run's own held-out rows: what each record scores, and what makes two measurements comparable."""

from __future__ import annotations

from typing import Any

import pytest

from forty2.benchmark.compare import compare
from forty2.benchmark.eval_prompt_files import EvalPrompt, EvalPrompts
from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.tasks import held_out
from forty2.benchmark.tasks.eval_prompts import EvalPromptsTask
from forty2.benchmark.tasks.held_out import (
    CHAT_LOSS,
    LENGTH,
    PAIR_MARGIN,
    PAIRS,
    PASSED,
    RATINGS,
    STOPS,
    HeldOut,
    HeldOutPrompt,
    HeldOutRow,
    HeldOutRows,
    Side,
    base_logps,
)
from forty2.errors import BenchmarkError
from forty2.files import JsonObject


def chat(logp: float, tokens: int, n: int = 0) -> JsonObject:
    return scored("chat", [logp], [0.0], n) | {"tokens": [tokens]}


def scored(kind: str, logps: list[float], base: list[float], n: int = 0, **more: Any) -> JsonObject:
    record = {"kind": kind, "phase": "dpo", "sha256": f"{kind} {n}", "tokens": [3] * len(logps)}
    return {**record, "logps": logps, "base_logps": base, **more}


def scores(record: JsonObject) -> dict[str, float]:
    (item,) = HeldOut.items([record])
    return item.scores


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (scored("pair", [-5, -9], [-5, -9]), {PAIRS: 0.5, PAIR_MARGIN: 0}),
        (scored("pair", [-5, -9.0004], [-5, -9]), {PAIRS: 0.5, PAIR_MARGIN: 0.0004}),
        (scored("pair", [-4, -9], [-5, -9]), {PAIRS: 1, PAIR_MARGIN: 1}),
        # both lost, the chosen answer less
        (scored("pair", [-6, -12], [-5, -9]), {PAIRS: 1, PAIR_MARGIN: 2}),
        (scored("pair", [-6, -9], [-5, -9]), {PAIRS: 0, PAIR_MARGIN: -1}),
        (scored("rating", [-4], [-5], desirable=True), {RATINGS: 1}),
        (scored("rating", [-4], [-5], desirable=False), {RATINGS: 0}),
        (scored("rating", [-6], [-5], desirable=False), {RATINGS: 1}),
        (scored("rating", [-5], [-5], desirable=False), {RATINGS: 0.5}),
        ({"kind": "reply", "stopped": False, "tokens": 7}, {STOPS: 0, LENGTH: 7}),
        ({"kind": "prompt", "passed": True}, {PASSED: 1}),
    ],
)
def test_a_record_scores_what_its_answer_gained_against_the_base(
    record: JsonObject, expected: dict[str, float]
) -> None:
    assert scores(record) == pytest.approx(expected)


def test_the_mean_of_the_chats_is_the_loss_a_token() -> None:
    items = HeldOut.items([chat(-10, 2), chat(-30, 38, 1)])
    assert HeldOut.figures(items)["means"][CHAT_LOSS] == pytest.approx(40 / 40)
    assert HeldOut.metric(CHAT_LOSS).better == "lower"


def result(records: list[JsonObject], sha256: str = "0") -> Result:
    items = HeldOut.items(records)
    figures = HeldOut.figures(items)
    return Result(
        benchmark="held_out",
        model="m",
        adapter=None,
        seed=None,
        data="x",
        data_sha256=sha256,
        versions={},
        settings={},
        figures=figures,
        items=items,
    )


def pairs(right: int, n: int = 40) -> list[JsonObject]:
    return [scored("pair", [-5, -9], [-5.5 if k < right else -4.5, -9], k) for k in range(n)]


def test_a_stored_result_is_read_back_and_a_changed_one_refused() -> None:
    before = result([*pairs(30), chat(-10, 2)])
    stored = before.to_json()
    assert Result.from_json(stored, "it") == before
    stored["items"][0]["logps"] = [-7, -9]
    with pytest.raises(BenchmarkError, match=r"do not follow|is stored as"):
        Result.from_json(stored, "it")


def test_pairs_that_became_better_are_a_gain_and_the_sentence_gives_their_share() -> None:
    base = result([scored("pair", [-5, -9], [-5, -9], k) for k in range(40)])
    found = compare(
        Stage("base", {"held_out": base}), Stage("phase1_dpo", {"held_out": result(pairs(36))})
    )
    assert found.verdict == "gain, cost unclear" and found.questions == "your held-out rows"
    assert found.sentence.startswith(
        "Better on your held-out rows: the better answer of 40 held-out pairs 50% → 90% (+40 points"
    )


def test_a_kind_of_rows_that_lost_hides_behind_no_gain() -> None:
    base = [*(scored("pair", [-5, -9], [-5, -9], k) for k in range(40))]
    chats = [chat(-10 - 0.1 * k, 10, k) for k in range(40)]
    worse = [chat(-15 - 0.1 * k, 10, k) for k in range(40)]
    before, after = ({"held_out": result(r)} for r in ([*base, *chats], [*pairs(36), *worse]))
    found = compare(Stage("base", before), Stage("phase1_dpo", after))
    assert found.tasks["held_out"].verdict == found.verdict == "tax"
    assert "better on your held-out rows" in found.sentence.lower()
    assert "worse on your held-out rows: loss on 40 held-out chats" in found.sentence


def test_too_few_of_one_kind_do_not_take_a_gain_back_and_are_said() -> None:
    base = [scored("pair", [-5, -9], [-5, -9], k) for k in range(40)]
    prompt = {"kind": "prompt", "prompt": "?", "passed": False}
    asked = [{**prompt, "id": str(k)} for k in range(4)]
    before, after = ({"held_out": result([*r, *asked])} for r in (base, pairs(36)))
    found = compare(Stage("base", before), Stage("phase1_dpo", after))
    assert found.verdict == "gain, cost unclear"  # none was measured
    assert "4 eval prompts are too few to tell" in found.sentence


def test_stages_with_other_held_out_rows_are_not_compared_on_them() -> None:
    others = [scored("pair", [-4, -8], [-4.5, -8], k) for k in range(40, 80)]
    before, after = result(pairs(3)), result(others, sha256="1")
    with pytest.raises(BenchmarkError, match="not comparable: x: 0 in both, of 40 before and 40"):
        compare(Stage("a", {"held_out": before}), Stage("b", {"held_out": after}))


def test_a_row_is_known_by_what_is_in_it_wherever_it_lies() -> None:
    row = HeldOutRow("pair", "dpo", "run/a.jsonl:1", (Side([1, 2], [False, True]),) * 2)
    assert row._replace(origin="run2/b.jsonl:7", phase="pairs").sha256() == row.sha256()
    for change in ({"kind": "chat"}, {"apart": "arts"}, {"desirable": False}, {"sides": ()}):
        assert row._replace(**change).sha256() != row.sha256()
    record = scored("pair", [-4, -8], [-4.5, -8], 1)
    assert HeldOut.identify(record) == HeldOut.identify({**record, "row": "b.jsonl:7"})
    assert HeldOut.match_key(record) == HeldOut.match_key({**record, "phase": "pairs"})
    assert HeldOut.match_key({key: record[key] for key in record if key != "sha256"}) is None


def test_the_base_s_log_probabilities_are_found_by_the_row() -> None:
    reply = {
        "kind": "reply",
        "prompt": "?",
        "reply": "!",
        "phase": "dpo",
        "tokens": 1,
        "stopped": True,
    }
    found = base_logps(result([*pairs(1, 2), chat(-7, 2), reply]))
    assert found == {0: [-5, -9], 1: [-5, -9], 2: [-7]}


def test_the_hash_is_over_what_is_scored_and_not_over_where_it_came_from() -> None:
    row = HeldOutRow("chat", "sft", "a.jsonl:1", (Side([1, 2], [False, True]),))
    prompt = HeldOutPrompt("sft", "Hello?", [1])
    rows = HeldOutRows((row,), (prompt,))
    moved = rows._replace(rows=(row._replace(origin="b.jsonl:9"),))
    assert moved.sha256() == rows.sha256()
    other = Side([1, 3], [False, True])
    for changed in (
        rows._replace(rows=(row._replace(sides=(other,)),)),
        rows._replace(rows=(row._replace(desirable=False),)),
        rows._replace(prompts=()),
        rows._replace(rows=()),
    ):
        assert changed.sha256() != rows.sha256()


def test_rows_held_out_by_their_keys_are_scored_apart() -> None:
    records = [
        scored("pair", [-4, -9], [-5, -9]),
        scored("pair", [-6, -9], [-5, -9], 1, apart="arts"),
        chat(-8.0, 4),
        chat(-30.0, 10, 1) | {"apart": "arts"},
    ]
    items = HeldOut.items(records)
    assert [item.scores for item in items] == [
        {PAIRS: 1, PAIR_MARGIN: 1},
        {f"{PAIRS} (arts)": 0, f"{PAIR_MARGIN} (arts)": -1},
        {CHAT_LOSS: 2.0},
        {f"{CHAT_LOSS} (arts)": 3.0},
    ]
    assert HeldOut.metric(f"{CHAT_LOSS} (arts)") == HeldOut.metric(CHAT_LOSS)
    rows = [HeldOutRow("pair", "dpo", "a", (), apart=apart) for apart in ("", "arts")]
    assert len({HeldOutRows((row,), ()).sha256() for row in rows}) == 2


def test_an_item_of_eval_prompts_records_how_its_reply_was_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = EvalPrompt("say_1", "?", "18", "contains", "")
    prompts = EvalPrompts("p.json", (prompt,), "user", {}, "0")
    facts = {"id": "say_1", "prompt": "?", "expected": "18", "match": "contains", "reply": "18"}
    answered = [{**facts, "passed": True, "broken": False, "tags": {}, "bucket": "say"}]
    monkeypatch.setattr(EvalPromptsTask, "score", lambda *_: answered)
    model: Any = None
    (record,) = held_out._ask(model, prompts, PartialResults.in_memory(), lambda *_: None)
    assert (record["kind"], record["match"]) == ("prompt", "contains")
