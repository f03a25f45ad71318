"""Generating rows: two arms made alike, none a copy, nothing asked twice, and no budget exceeded."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Reply, said, server
from support.failure_folder import Planted, planted, topic_text, write_verdicts
from support.worse_folder import LABEL, builtin_folder, planted_folder, write_clusters, write_labels

from forty2.errors import BenchmarkError, DataError, RunError
from forty2.failures.asking import Limits
from forty2.failures.builtin import harder
from forty2.failures.chat_models import ChatModel
from forty2.failures.examples import Example, read_examples
from forty2.failures.folder import Item, read_half
from forty2.failures.generate import TeacherSettings, format_generated, generate
from forty2.failures.labels import is_held_out
from forty2.failures.proposals import Pool, plain_question
from forty2.failures.targets import Draw, Target
from forty2.failures.teaching import Proposal
from forty2.failures.testset import twin_groups
from forty2.failures.training_data import TrainingSearch
from forty2.failures.verifiers import check, parse_verifier
from forty2.files import JsonObject

STRATA = {"mathematics": 40, "reasoning": 60, "tools": 40}
FILES = ("generated.jsonl", "generated.json")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def kind_of(source: str) -> str:
    return source.rpartition("-")[0]


def fails(item: Item) -> bool:
    return "arithmetic" in item.source or "dates" in item.source


def cluster(item: Item) -> int:
    return 1 if "arithmetic" in item.source else 2 if "dates" in item.source else 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two worse clusters: sums, and dates."""
    folder = tmp_path_factory.mktemp("generate") / "F"
    return builtin_folder(folder, fails, cluster, strata=STRATA, worse=(1, 2))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "F"))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


# --- the built-in generators ----------------------------------------------------------------------


def test_both_arms_get_all_rows_and_the_record_counts_them(folder: Path) -> None:
    record = generate(folder, size=60)
    rows = read_examples(folder)
    for arm in ("targeted", "random"):
        own = [row for row in rows if row.arm == arm]
        part = record["arms"][arm]
        assert len(own) == part["kept"] == part["wanted"] == 60
        assert part["asked"] == part["made"] == 60 + sum(part["refused"].values())
        assert part["strata"] == Counter(row.stratum for row in own)
    assert [target["cluster"] for target in record["targets"]] == [1, 2, None]
    assert record["complete"] and record["teacher"] == "builtin"
    assert record["sentence"].startswith("60 of 60 rows for the worse clusters, and 60 of 60")
    assert json.loads((folder / "generated.json").read_bytes()) == record
    assert not (folder / "generated.json.part").exists()


def test_targeted_rows_are_as_the_failures_of_their_cluster_and_a_level_harder(
    folder: Path,
) -> None:
    generate(folder, size=60)
    own = [item for item in read_half(folder, "find") if not is_held_out(item)]
    harder_ones = {
        n: {harder(item.source, random.Random(1))[0] for item in own if cluster(item) == n}  # type: ignore[index]
        for n in (1, 2)
    }
    targeted = [row for row in read_examples(folder) if row.arm == "targeted"]
    assert {row.cluster for row in targeted} == {1, 2}
    for row in targeted:
        assert row.cluster is not None and row.source in harder_ones[row.cluster]
    sizes = Counter(cluster(item) for item in own if fails(item))
    share = sum(row.cluster == 1 for row in targeted) / len(targeted)
    assert share == pytest.approx(sizes[1] / (sizes[1] + sizes[2]), abs=0.02)


def test_random_rows_follow_the_test_set_and_look_at_no_verdict(
    folder: Path, tmp_path: Path
) -> None:
    generate(folder, size=120)
    rows = [row for row in read_examples(folder) if row.arm == "random"]
    shares = Counter(row.stratum for row in rows)
    assert {name: count / 120 for name, count in shares.items()} == pytest.approx(
        {"mathematics": 2 / 7, "reasoning": 3 / 7, "tools": 2 / 7}, abs=0.12
    )
    # other failures in other clusters change the targeted arm alone
    other = tmp_path / "other"
    builtin_folder(other, lambda item: "json" in item.source, lambda _: 1, strata=STRATA)
    generate(other, size=120)
    again = [row for row in read_examples(other) if row.arm == "random"]
    same = {row.id for row in rows} & {row.id for row in again}
    assert len(same) > 100, "but for rows that the targeted arm had first"


def test_every_reply_is_right_and_no_row_repeats_the_test_set_or_another(folder: Path) -> None:
    generate(folder, size=80)
    rows = read_examples(folder)
    items = [item for half in ("find", "untouched") for item in read_half(folder, half)]
    search = TrainingSearch([i.messages for i in items], [i.group for i in items])
    for row in rows:
        assert row.verifier is not None and not search.find(row.chat())
        assert check(parse_verifier(row.verifier, ""), row.reply).passed
    texts = [str(row.messages[-1]["content"]) for row in rows]
    assert len({*texts}) == len({row.id for row in rows}) == 160
    assert [row.group for row in rows] == twin_groups(texts)


def test_the_seed_decides_every_byte(folder: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(folder, tmp_path / name)) for name in ("same", "other")]
    generate(folder, size=20)
    generate(copies[0], size=20)
    generate(copies[1], size=20, seed=7)
    assert contents(folder) == contents(copies[0])
    first, other = ({row.id for row in read_examples(place)} for place in (folder, copies[1]))
    assert len(first & other) < 5


def test_the_same_command_again_changes_nothing_and_another_is_refused(folder: Path) -> None:
    record = generate(folder, size=20)
    before = contents(folder)
    assert generate(folder, size=20) == record and contents(folder) == before
    with pytest.raises(RunError, match=r"made with another size \(20, now 30\)"):
        generate(folder, size=30)
    write_verdicts(folder, {item.id: "fail" for item in read_half(folder, "find")})
    with pytest.raises(RunError, match="made with another verdicts_sha256"):
        generate(folder, size=20)


def test_no_worse_cluster_leaves_nothing_to_teach(folder: Path, tmp_path: Path) -> None:
    clusters = json.loads((folder / "clusters.json").read_bytes())
    for one in clusters["clusters"]:
        one["worse"] = False
    clusters["sentence"] = "All 70 items failed: no cluster is worse than the rest."
    (folder / "clusters.json").write_text(json.dumps(clusters), "utf-8")
    record = generate(folder, size=20)
    assert record["sentence"] == f"{clusters['sentence']} There is nothing to teach."
    assert read_examples(folder) == [] and record["arms"]["random"]["wanted"] == 0
    assert "nothing to teach" in format_generated(record)


def test_a_stratum_without_items_gets_no_rows(tmp_path: Path) -> None:
    strata = {"mathematics": 40, "code": 0, "law": 10}
    folder = builtin_folder(tmp_path / "F", fails, cluster, strata=strata)
    record = generate(folder, size=20)
    assert record["arms"]["random"]["strata"] == {"mathematics": 20}


def test_failures_that_no_generator_made_are_said_in_a_line(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "F", planted(10))
    with pytest.raises(DataError, match=r"cluster 1: \d of \d failures were not made by the built"):
        generate(folder, size=5)


def test_more_rows_than_there_are_questions_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders of words are few: the generators give up after some rounds, and the record says so."""
    monkeypatch.setattr("forty2.failures.generate._Generators.rounds", 2)
    monkeypatch.setattr(
        "forty2.failures.generate.harder", lambda source, rng: harder(source, random.Random(1))
    )
    record = generate(folder, size=30)
    part = record["arms"]["targeted"]
    assert 0 < part["kept"] < 30 and part["refused"]["copy of another row"] > 30
    assert record["complete"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clusters.json", "make it with forty2 failures cluster"),
        ("verdicts.jsonl", "make it with forty2 failures find"),
        ("testset.jsonl", "cannot be read"),
    ],
)
def test_what_is_missing_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises((RunError, DataError), match=message):
        generate(folder, size=5)


def test_clusters_of_other_items_and_labels_of_other_clusters_are_refused(folder: Path) -> None:
    write_labels(folder, "x")
    half = read_half(folder, "find")
    write_clusters(folder, {item.id: 1 for item in half}, (1,))
    with pytest.raises(DataError, match="is of earlier clusters"):
        generate(folder, size=5)
    (folder / "labels.json").unlink()
    write_clusters(folder, {item.id: 1 for item in half[1:]}, (1,))
    with pytest.raises(DataError, match="of other items than those with a verdict"):
        generate(folder, size=5)


# --- a chat model as teacher ----------------------------------------------------------------------


def rows_of(untouched: int = 12) -> list[Planted]:
    """Items of four topics in the half `find`, and trains in the other half."""
    rng = random.Random(9)
    hidden = [
        Planted(f"hidden-{n}", "trains", topic_text("trains", rng), "", "untouched")
        for n in range(untouched)
    ]
    return [*planted(12), *hidden]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A folder whose failures no generator made."""
    return planted_folder(tmp_path / "asked", rows_of())


def proposal(body: Mapping[str, Any], **changed: object) -> str:
    """A row that is of use, another one for each request."""
    n = body["seed"]
    row = {"question": f"What is {n} plus 7?", "answer": f"{n} + 7 = {n + 7}"}
    verifier = {"kind": "number", "answer": n + 7}
    return json.dumps({**row, "verifier": verifier, **changed})


def teaches(_: int, body: JsonObject) -> Reply:
    return said(f"Here it is.\n```json\n{proposal(body)}\n```")


def teacher_at(url: str, **settings: Any) -> ChatModel:
    return ChatModel(name=url, model="m", **{"tries": 3, "sleep": lambda _: None, **settings})


def test_a_teachers_rows_are_read_checked_and_kept(asked: Path) -> None:
    with server(teaches) as (url, seen):
        record = generate(asked, teacher_at(url), size=20)
    rows = read_examples(asked)
    assert len(seen) == len(rows) == 40 == sum(record["arms"][a]["asked"] for a in record["arms"])
    assert {row.source for row in rows} == {"m"} and {row.reference for row in rows} == {None}
    for row in rows:
        assert row.messages[0] == {"role": "system", "content": "Answer briefly."}
        assert row.verifier is not None and row.verifier["kind"] == "number"
        assert row.stratum == ("trains" if row.arm == "targeted" else row.stratum)
    assert len({row.stratum for row in rows if row.arm == "random"}) == 4
    assert len({body["seed"] for body in seen}) == 40


def test_a_teacher_sees_the_half_find_without_what_is_held_out(asked: Path) -> None:
    with server(teaches) as (url, seen):
        generate(asked, teacher_at(url), size=30)
    prompts = [body["messages"][0]["content"] for body in seen]
    held_out = [item for item in read_half(asked, "find") if is_held_out(item)]
    hidden = [*read_half(asked, "untouched"), *held_out]
    assert len(hidden) > 12
    for item in hidden:
        text = json.dumps(item.messages[-1]["content"])[1:-1]
        assert not any(text in prompt for prompt in prompts)
    labelled = [prompt for prompt in prompts if LABEL in prompt]
    assert len(labelled) == 30, "the random arm is told no label"
    for prompt in labelled:
        assert "A train travels" in prompt and "museums" not in prompt and "Python" not in prompt


def test_a_weak_label_is_not_told(asked: Path) -> None:
    write_labels(asked, LABEL, weak=True)
    with server(teaches) as (url, seen):
        generate(asked, teacher_at(url), size=4)
    assert not any(LABEL in body["messages"][0]["content"] for body in seen)


def test_labels_are_needed(asked: Path) -> None:
    (asked / "labels.json").unlink()
    with pytest.raises(DataError, match="make it with forty2 failures label"):
        generate(asked, "http://127.0.0.1:9/v1", size=4)


def test_a_teacher_that_copies_the_untouched_half_is_caught(asked: Path) -> None:
    """As it is, with a word changed, and with thirteen words of it in another question."""
    hidden = [str(item.messages[-1]["content"]) for item in read_half(asked, "untouched")]

    def copies(number: int, body: JsonObject) -> Reply:
        text = hidden[number % len(hidden)]
        words = text.split()
        if number % 3 == 1:
            text = text.replace("journey", "trip")
        if number % 3 == 2:
            text = f"Somebody wrote in an old book, which I like: {' '.join(words[:13])}. Is that so? {number}"
        return said(proposal(body, question=text, verifier=None))

    with server(copies) as (url, seen):
        record = generate(asked, teacher_at(url), size=40)
    assert read_examples(asked) == []
    for part in record["arms"].values():
        assert part["refused"] == {"copy of the half untouched": 16}
    assert len(seen) == 32, "after sixteen rows that are of no use it is asked no more"


@pytest.mark.parametrize(
    "dress",
    [
        str.upper,
        lambda text: text.replace(" ", "\u2009  "),
        lambda text: f"**Question 3:** {text}",
        lambda text: f"<p>{text.replace('A', '<b>A</b>')}</p>",
        lambda text: text.replace("e", "\uff45"),
        lambda text: text.replace("a", "&#97;"),
        lambda text: f"\u200b“{text}”",
    ],
)
def test_a_copy_in_other_dress_is_caught(asked: Path, dress: Callable[[str], str]) -> None:
    pool = Pool(asked)
    text = str(read_half(asked, "untouched")[0].messages[-1]["content"])
    assert pool.take(*proposed(f"Is {len(text)} even?")) is None
    assert pool.take(*proposed(dress(text))) == "copy of the half untouched"


def test_what_stands_around_a_question_is_not_compared() -> None:
    for text in ("Question: Is 2 < 3?", "**New problem 4:** Is 2 < 3?", "<i>Is 2 &lt; 3?</i>"):
        assert plain_question(text).strip() == "Is 2 < 3?"
    assert plain_question("Questions: are they good?") == "Questions: are they good?"
    assert plain_question("<b></b>") == "<b></b>"


def proposed(text: str) -> tuple[Draw, Proposal]:
    draw = Draw(Target("random", None, "", 1, ()), 0, 0, ())
    return draw, Proposal(({"role": "user", "content": text},), "It is.", None, None, "m")


def test_copies_of_what_the_teacher_was_shown_and_of_itself_are_refused(asked: Path) -> None:
    shown = str(
        next(i for i in read_half(asked, "find") if i.stratum == "trains").messages[-1]["content"]
    )
    long = " ".join(f"Which of the rivers reaches sea {n} from hill {n * n}," for n in range(40))

    def repeats(number: int, body: JsonObject) -> Reply:
        texts = [shown, "Is it so?", f"{long} traveller {number % 5}?"]
        return said(proposal(body, question=texts[number % 3], verifier=None))

    with server(repeats) as (url, _):
        record = generate(asked, teacher_at(url), size=12)
    refused: Counter[str] = Counter()
    for part in record["arms"].values():
        refused.update(part["refused"])
    assert {"copy of the half find", "copy of another row", "near copy of another row"} == {
        *refused
    }
    assert len(read_examples(asked)) == 2


BAD = {
    "no JSON object": [
        "I cannot.",
        "<html><body>502</body></html>",
        "[1]",
        '{"question": "x"',
        "{} {}",
    ],
    "not in the schema": [
        '{"question": "Why?"}',
        '{"question": " ", "answer": "x"}',
        '{"question": "Why?", "answer": "x", "more": 1}',
        '{"question": "Why?", "answer": NaN}',
        '{"question": "Why? \\ud800", "answer": "x"}',
        '{"question": "Why?", "answer": ["x"]}',
        '{"question": "Why?", "answer": "x", "verifier": "none"}',
    ],
    "verifier not readable": [
        '{"question": "Why?", "answer": "x", "verifier": {"kind": "magic"}}',
        '{"question": "Why?", "answer": "x", "verifier": {"kind": "number", "answer": "x"}}',
        '{"question": "Why?", "answer": "x", "verifier": {"kind": "number", "answer": "1e99999"}}',
        '{"question": "Why?", "answer": "x", "verifier": {"kind": "regex", "pattern": ""}}',
    ],
    "reply fails its own verifier": [
        '{"question": "Why?", "answer": "12", "verifier": {"kind": "number", "answer": 13}}'
    ],
}


def test_what_cannot_be_used_is_refused_by_reason_and_asked_for_again(asked: Path) -> None:
    bad = [(reason, text) for reason, texts in BAD.items() for text in texts]

    def mostly_nonsense(number: int, body: JsonObject) -> Reply:
        return said(bad[number - 1][1]) if number <= len(bad) else teaches(number, body)

    with server(mostly_nonsense) as (url, seen):
        record = generate(asked, teacher_at(url), size=20, limits=Limits(at_once=1))
    refused: Counter[str] = Counter()
    for part in record["arms"].values():
        refused.update(part["refused"])
    assert refused == Counter(reason for reason, _ in bad)
    assert len(read_examples(asked)) == 40 and len(seen) == 40 + len(bad)
    made = sum(part["made"] for part in record["arms"].values())
    assert made == 40 + 1, "what fails its verifier was a question"


def test_a_number_is_an_answer(asked: Path) -> None:
    with server(lambda _, body: said(proposal(body, answer=body["seed"] + 7))) as (url, _):
        generate(asked, teacher_at(url), size=2)
    assert all(row.reply.isdecimal() for row in read_examples(asked))


def test_refusals_silence_and_torn_replies_are_waited_for(asked: Path) -> None:
    """A minute of 429, errors, pages, a reply that ends in its middle, and one that never comes."""
    waited: list[float] = []
    lock, tries = threading.Lock(), Counter[int]()

    def unwell(_: int, body: JsonObject) -> Reply:
        with lock:
            tries[body["seed"]] += 1
            nth = tries[body["seed"]]
        if nth > 4:
            return teaches(0, body)
        if nth == 4:
            time.sleep(2)  # longer than the client waits
        torn = {"Content-Length": "1000"}
        return [
            (429, {"error": "slow down"}, {"Retry-After": "30"}),
            (500, b"<html>oops</html>", {}),
            (200, b'{"choices": [{"mess', torn),
            teaches(0, body),
        ][nth - 1]

    with server(unwell) as (url, _):
        model = teacher_at(url, tries=8, timeout=1, sleep=waited.append)
        record = generate(asked, model, size=3)
    assert len(read_examples(asked)) == 6 and record["arms"]["random"]["refused"] == {}
    assert waited.count(30) == 6 and {*tries.values()} == {5}


def test_a_request_that_fails_for_good_is_counted(asked: Path) -> None:
    def refuses(number: int, body: JsonObject) -> Reply:
        return (400, {"error": "too long"}, {}) if number == 3 else teaches(number, body)

    with server(refuses) as (url, _):
        record = generate(asked, teacher_at(url), size=6, limits=Limits(at_once=1))
    assert sum(part["refused"].get("no reply", 0) for part in record["arms"].values()) == 1
    assert len(read_examples(asked)) == 12


def test_a_teacher_that_goes_down_stops_the_command_and_loses_nothing(asked: Path) -> None:
    with pytest.raises(BenchmarkError, match="is the server running"):
        generate(asked, teacher_at("http://127.0.0.1:9/v1"), size=4)
    assert not (asked / "generated.json.part").exists()

    def dies(number: int, body: JsonObject) -> Reply:
        return (401, {"error": "who?"}, {}) if number > 5 else teaches(number, body)

    with server(dies) as (url, first), pytest.raises(BenchmarkError, match="`teacher_model`"):
        generate(asked, teacher_at(url), size=4, limits=Limits(at_once=1))
    with server(teaches) as (url_after, second):
        # the address is part of what the rows are made with
        with pytest.raises(BenchmarkError, match="another teacher"):
            generate(asked, teacher_at(url_after), size=4)
        journal = asked / "generated.json.part"
        journal.write_bytes(journal.read_bytes().replace(url.encode(), url_after.encode()))
        generate(asked, teacher_at(url_after), size=4)
    seeds = [body["seed"] for body in (*first[:5], *second)]
    assert len(seeds) == len({*seeds}) == 8, "nothing that was answered is asked again"


class Snapshots:
    """The journal as it is after every line: what a kill at that moment leaves."""

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "generated.json.part"
        self.taken: list[bytes] = []

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if self._journal.exists():
            self.taken.append(self._journal.read_bytes())


def test_a_kill_at_any_line_changes_no_byte_and_nothing_is_asked_twice(
    asked: Path, tmp_path: Path
) -> None:
    copies = [Path(shutil.copytree(asked, tmp_path / f"copy{n}")) for n in range(5)]

    def sometimes(_: int, body: JsonObject) -> Reply:
        return said("no idea") if body["seed"] % 4 == 0 else teaches(0, body)

    with server(sometimes) as (url, seen):
        snapshots = Snapshots(asked)
        generate(asked, teacher_at(url), size=18, progress=snapshots)
        total = len(seen)
        lines = [taken.count(b"\n") for taken in snapshots.taken]
        assert max(lines) == total + 1, "a line for each request"
        for copy, place in zip(copies, (0, 9, 20, 33, -1), strict=True):
            torn = snapshots.taken[place][: -5 if place % 2 else None]
            (copy / "generated.json.part").write_bytes(torn)
            before = len(seen)
            generate(copy, teacher_at(url), size=18)
            assert len(seen) - before == total - (torn.count(b"\n") - 1)
            assert contents(copy) == contents(asked)


def test_the_order_in_which_replies_come_changes_no_byte(asked: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(asked, tmp_path / "copy"))

    def slow(_: int, body: JsonObject) -> Reply:
        time.sleep(0.02 * (body["seed"] % 5))
        return said("no idea") if body["seed"] % 3 == 0 else teaches(0, body)

    with server(slow) as (url, _):
        generate(asked, teacher_at(url), size=12, limits=Limits(at_once=8))
        generate(copy, teacher_at(url), size=12, limits=Limits(at_once=1))
    assert contents(asked) == contents(copy)


# --- what it costs --------------------------------------------------------------------------------


def charged(_: int, body: JsonObject) -> Reply:
    status, reply, headers = teaches(0, body)
    return status, {**reply, "usage": {"prompt_tokens": 300, "completion_tokens": 50}}, headers


def test_a_dry_run_sends_nothing_and_says_no_less_than_it_costs(asked: Path) -> None:
    limits = Limits(price_in=2, price_out=10)
    settings = TeacherSettings(max_tokens=100)
    with server(charged) as (url, seen):
        model = teacher_at(url)
        before = generate(asked, model, size=10, settings=settings, limits=limits, dry_run=True)
        assert not seen and not (asked / "generated.json").exists()
        after = generate(asked, model, size=10, settings=settings, limits=limits)
    expected = before["estimate"]
    assert expected["requests"] == len(seen) == 20 and expected["tokens"]["reply"] == 2000
    assert after["tokens"] == {"prompt": 6000, "reply": 1000, "estimated": 0}
    assert after["cost"] == pytest.approx((6000 * 2 + 1000 * 10) / 1e6)
    assert expected["cost"] > after["cost"] and expected["within_budget"]
    assert "would send 20 requests" in format_generated(before)
    assert "6,000 tokens in prompts and 1,000 in replies, 0.02 in money" in format_generated(after)


def test_a_dry_run_of_the_generators_costs_nothing(folder: Path) -> None:
    record = generate(folder, size=10, dry_run=True)
    assert record["estimate"] is None and not (folder / "generated.jsonl").exists()


@pytest.mark.parametrize(
    "limits", [{"tokens": 6000}, {"cost": 0.008, "price_in": 1, "price_out": 2}]
)
def test_a_budget_ends_it_with_both_arms_alike_and_a_larger_one_goes_on(
    asked: Path, tmp_path: Path, limits: dict[str, Any]
) -> None:
    whole = Path(shutil.copytree(asked, tmp_path / "whole"))
    settings = TeacherSettings(max_tokens=100)
    with server(charged) as (url, seen):
        model = teacher_at(url)
        record = generate(asked, model, size=14, settings=settings, limits=Limits(**limits))
        spent = record["tokens"]["prompt"] + record["tokens"]["reply"]
        assert not record["complete"] and spent == 350 * len(seen)
        assert spent <= limits.get("tokens", spent) and record["cost"] in (
            None,
            pytest.approx(0.0004 * len(seen)),
        )
        assert (record["cost"] or 0) <= limits.get("cost", 0)
        kept = [record["arms"][arm]["kept"] for arm in ("targeted", "random")]
        assert min(kept) > 4 and abs(kept[0] - kept[1]) <= 1
        assert "The budget of" in record["sentence"] and "go on" in record["sentence"]
        assert len(read_examples(asked)) == sum(kept)
        again = generate(asked, model, size=14, settings=settings, limits=Limits(**limits))
        assert again == record
        before = len(seen)
        generate(asked, model, size=14, settings=settings)
        assert len(seen) == 28 > before
        generate(whole, model, size=14, settings=settings)
    assert read_examples(asked) == read_examples(whole)


def test_a_server_that_says_no_tokens_is_estimated(asked: Path) -> None:
    with server(teaches) as (url, seen):
        record = generate(asked, teacher_at(url), size=2)
    text = sum(len(body["messages"][0]["content"].encode()) for body in seen)
    assert record["tokens"]["estimated"] == 4
    assert text / 3 <= record["tokens"]["prompt"] <= text / 3 + 4


def test_the_key_is_sent_and_never_written(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("TEACHER_KEY", secret)

    def echoes(_: int, body: JsonObject) -> Reply:
        return said(f"Your key is {secret}. {proposal(body, answer=f'{secret} 7')}")

    with server(echoes) as (url, seen):
        generate(asked, teacher_at(url, api_key_env="TEACHER_KEY"), size=2)
    assert {body["key"] for body in seen} == {f"Bearer {secret}"}
    for path in asked.iterdir():
        assert secret.encode() not in path.read_bytes()


def test_markup_in_a_label_goes_to_the_teacher_as_it_is(asked: Path) -> None:
    write_labels(asked, "<b>{trains}</b> & {0}")
    with server(teaches) as (url, seen):
        generate(asked, teacher_at(url), size=2)
    assert any("<b>{trains}</b> & {0}" in body["messages"][0]["content"] for body in seen)


# --- a real kill ----------------------------------------------------------------------------------

KILLED = """
import sys
from forty2.failures.generate import generate
generate(sys.argv[1], sys.argv[2], size=30)
"""


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(asked: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(asked, tmp_path / "whole"))

    def slow(_: int, body: JsonObject) -> Reply:
        time.sleep(0.02)
        return teaches(0, body)

    with server(slow) as (url, seen):
        command = [sys.executable, "-c", KILLED, str(asked), url]
        journal = asked / "generated.json.part"
        for lines in (5, 25, 40):
            process = subprocess.Popen(command, env={**os.environ})
            while process.poll() is None:
                if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.002)
            process.wait()
        subprocess.run(command, check=True)
        times = Counter(body["seed"] for body in seen)
        assert len(times) == 60
        assert sum(n - 1 for n in times.values()) <= 3 * Limits().at_once, "only those under way"
        generate(whole, url, size=30)
    assert contents(asked) == contents(whole)


def test_a_row_is_the_same_after_it_was_written(asked: Path) -> None:
    with server(teaches) as (url, _):
        generate(asked, teacher_at(url), size=1)
    row = read_examples(asked)[0]
    assert isinstance(row, Example) and row.chat().messages[-1]["content"] == row.reply
