"""Training rows that hold a benchmark's questions are found, and the benchmark is scored without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from forty2.benchmark.metrics import METRICS, item_metrics
from forty2.benchmark.results import Stage
from forty2.benchmark.summary import without_contaminated
from forty2.data.checks.contamination import Benchmark, ContaminationFinder, Hit, benchmark_of
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
    finder = ContaminationFinder([Benchmark("b", items)])
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


WRAPPED = {
    "a sentence of it": "Question: Where did fortune cookies originate?\nAnswer:",
    "quoted": "He asked me, “Where did fortune cookies originate?” and left.",
    "anywhere": "Now tell me what happens to you if you eat watermelon seeds whole and why that is "
    "so, in a paragraph of forty words or so, with two sources for each claim that you make",
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_question_is_found_inside_a_longer_turn(how: str) -> None:
    items = [
        ["Where did fortune cookies originate?"],
        ["What happens to you if you eat watermelon seeds?"],
        ["Is it so?"],
    ]
    found = hits([chat(f"{WRAPPED[how]} Is it so? Yes.", "It.", "a:1")], items)
    assert [hit.how for hit in found] == ["the question"] and found[0].item < 2


def test_what_most_items_share_identifies_none_of_them() -> None:
    """MMLU's moral scenarios begin with the same 35 words, and HumanEval's tests alike."""
    intro = "For which of these two scenarios does the main character describe actions in this "
    intro += "chapter that are clearly morally wrong, according to ordinary moral standards? "
    rng = random.Random(3)
    own = [" ".join("".join(rng.sample("abcdefgh", 5)) for _ in range(40)) for _ in range(12)]
    items = [["Which of these is true?", intro + text] for text in own]
    found = hits([chat(intro + own[4], "A", "a:1"), chat(intro, "A", "a:2")], items)
    assert [(hit.row, hit.item) for hit in found] == [("a:1", 4)]
    assert hits([chat("Which of these is true?", "A", "a:3")], items) == []


def test_with_groups_what_two_groups_share_is_a_wording_and_what_one_shares_is_not() -> None:
    wording = "Take the words that follow and write them in capitals one by one with commas: "
    passage = "On a grey day in March a boy with two left shoes walked over the old bridge. "
    rng = random.Random(3)
    own = [" ".join("".join(rng.sample("abcdefgh", 5)) for _ in range(12)) for _ in range(4)]
    items = [[wording + own[0]], [wording + own[1]], [passage + own[2]], [passage + own[3]]]
    grouped = ContaminationFinder([Benchmark("b", items)], groups=[0, 1, 2, 2])
    other = "and now for something that is not among them at all, in a few words of my own"
    for text, places in ((wording, []), (passage, [2, 3]), (own[0], [])):
        assert [hit.item for hit in grouped.find(chat(text + other, "A", "a:1"))] == places
    assert [hit.item for hit in grouped.find(chat(items[1][0], "A", "a:2"))] == [1]
    assert [hit.item for hit in hits([chat(wording + other, "A", "a:3")], items)] == [0, 1]
    assert ContaminationFinder([], groups=[]).find(chat("is it old", "Yes.", "a:1")) == []


def test_hits_name_their_benchmark_and_its_item() -> None:
    finder = ContaminationFinder(
        [Benchmark("one", [["Where is Rome?"], ["Is it old?"]]), Benchmark("two", [["Is it old?"]])]
    )
    found = finder.find(chat("is it old", "Yes.", "a:1"))
    assert [(hit.benchmark, hit.item) for hit in found] == [("one", 1), ("two", 0)]
    assert ContaminationFinder([]).find(chat("is it old", "Yes.", "a:1")) == []


def test_an_answer_is_not_taken_for_the_question_of_a_file_s_row(tmp_path: Path) -> None:
    """Neither is a short text under another key, which many rows may hold."""
    file = tmp_path / "benchmark.jsonl"
    file.write_text('{"category": "Law", "Question": "Is the sky green?", "best": "No."}\n')
    finder = ContaminationFinder([benchmark_of(file)])
    assert not finder.find(chat("Law", "No.", "a:1"))
    assert finder.find(chat("Is the sky green", "Maybe.", "a:2"))[0].benchmark == "benchmark.jsonl"


def near_copies_by_every_trigram(texts: list[str], row: str) -> set[int]:
    """Compare a row with every text, without an index."""

    def trigrams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    mine = trigrams(row)
    both = [(n, trigrams(text)) for n, text in enumerate(texts)]
    return {n for n, t in both if mine and len(mine & t) >= 0.6 * len(mine | t)}


def test_the_index_of_near_copies_misses_none() -> None:
    """Rows are texts with a few words changed, from a vocabulary so small that trigrams recur."""
    rng = random.Random(9)
    texts = [" ".join(rng.choices("abcde", k=rng.randint(8, 12))) for _ in range(300)]
    finder = ContaminationFinder([Benchmark("b", [["", text] for text in texts])])
    some = 0
    for n, text in enumerate(texts):
        words = text.split()
        words[rng.randrange(len(words))] = rng.choice("abcdef")
        row = " ".join(words[rng.randrange(2) :])
        wanted = near_copies_by_every_trigram(texts, row)
        found = finder.find(chat(row, "?", "a:1"))
        assert {hit.item for hit in found} == wanted, (n, row)
        some += len(wanted)
    assert some > 100


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
    found = [Hit(f"a:{n}", "truthfulqa", n, "the question") for n in range(10)]
    clean = without_contaminated(found, ["truthfulqa"], [before, after], 0.01)
    assert (clean.rows, clean.questions) == (10, 10)
    (comparison,) = clean.to_json()["comparisons"]
    assert comparison["stage"] == "tuned"
    assert comparison["metrics"]["mc1"]["difference"] == 0
    untouched = without_contaminated([], ["truthfulqa"], [before, after], 0.01).to_json()
    assert untouched == {
        "rows": 0,
        "questions": 0,
        "tasks": {"truthfulqa": {"rows": 0, "questions": 0}},
        "comparisons": [],
    }
