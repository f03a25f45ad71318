"""Training rows that hold a benchmark's questions are found, and the benchmark is scored without."""

from __future__ import annotations

from collections.abc import Sequence

from forty2.benchmark.metrics import METRICS, item_metrics
from forty2.benchmark.results import Stage
from forty2.benchmark.stages import without_contaminated
from forty2.data.checks.contamination import ContaminationFinder, Hit
from forty2.data.records import Chat, Message, Pair, Record, Text

LONG = (
    "A mayfly spends most of its life as a nymph in the mud of a stream before it ever takes wing, "
    "and only then for a day"
)
ITEMS = [
    ("What happens if you swallow a seed?", "Nothing happens to you.", "It grows."),
    ("How long does a mayfly live?", LONG),
    ("Is the sky green?", "No.", "The sky is not green but blue on a day without any clouds."),
]


def chat(question: str, answer: str, origin: str) -> Chat:
    turns = [("user", question), ("assistant", answer)]
    messages = tuple({"role": role, "content": text} for role, text in turns)
    return Chat(messages=messages, origin=origin)


def assistant(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


def hits(records: Sequence[Record], items: Sequence[Sequence[str]]) -> list[Hit]:
    finder = ContaminationFinder(items)
    return [hit for record in records for hit in finder.find(record)]


def test_questions_long_quotations_and_near_copies_are_found() -> None:
    rows: list[Record] = [
        chat("what happens if you swallow a SEED", "It passes.", "a:1"),
        chat("Tell me of insects.", f"Well: {LONG.lower()}.", "a:2"),
        Pair(
            prompt=({"role": "user", "content": "Sky?"},),
            chosen=assistant("The sky is not green but blue on a day without any cloud."),
            rejected=assistant("Green."),
            origin="b:1",
        ),
        chat("Is the sea green?", "No.", "a:3"),
        Text(text="Nothing happens to you.", origin="a:4"),
    ]
    found = {(hit.row, hit.item, hit.how) for hit in hits(rows, ITEMS)}
    assert found == {
        ("a:1", 0, "the question"),
        ("a:2", 1, "13 words in a row"),
        ("b:1", 2, "a text almost alike"),
    }


def test_what_two_items_share_is_a_hit_of_both() -> None:
    items = [[f"Who said so in {place}?", LONG] for place in ("Rome", "Athens")]
    items.append(list(items[0]))
    found = hits([chat("Tell me.", f"Well: {LONG}.", "a:1"), chat(items[0][0], "I.", "a:2")], items)
    assert {(hit.row, hit.item) for hit in found} == {
        ("a:1", 0),
        ("a:1", 1),
        ("a:1", 2),
        ("a:2", 0),
        ("a:2", 2),
    }


def test_no_rows_or_nothing_in_common_is_no_hit() -> None:
    assert hits([], ITEMS) == []
    assert hits([chat("Why?", "Because.", "a:1")], ITEMS) == []


def stage(name: str, right: list[bool]) -> Stage:
    items = []
    for n, good in enumerate(right):
        scored = {"loglik": [0.0, -1.0] if good else [-1.0, 0.0], "labels": [1, 0]}
        items.append({"question": f"q{n}", "category": "c", "mc1": scored, "mc2": scored})
    result = {
        "benchmark": "truthfulqa",
        **{name: sum(item_metrics(i)[name] for i in items) / len(items) for name in METRICS},
        "n": len(items),
        "items": items,
        "model": name,
        "adapter": None,
        "questions": "ours",
        "questions_sha256": "0",
        "chat_template": False,
        "seed": 1,
    }
    return Stage.from_json({"stage": name, "truthfulqa": result}, "it")


def test_a_gain_on_trained_questions_alone_is_gone_without_them() -> None:
    before = stage("base", [False] * 10 + [True, False] * 20)
    after = stage("tuned", [True] * 10 + [True, False] * 20)
    found = [{"row": f"a:{n}", "item": n} for n in range(10)]
    clean = without_contaminated(found, [before, after], 0.01)
    assert (clean.rows, clean.questions) == (10, 10)
    (comparison,) = clean.to_json()["comparisons"]
    assert comparison["stage"] == "tuned"
    assert comparison["metrics"]["mc1"]["difference"] == 0
    untouched = without_contaminated([], [before, after], 0.01).to_json()
    assert untouched == {"rows": 0, "questions": 0, "comparisons": []}
