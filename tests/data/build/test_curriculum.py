"""The curriculum generators: their counts, their answers, and what they keep apart."""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from forty2.data.build.curriculum import echo, format_lock, operators
from forty2.data.build.curriculum.chat_rows import answer, unambiguous, user
from forty2.data.build.curriculum.echo_set import gibberish_words, known_words
from forty2.data.build.curriculum.format_lock_set import number_word
from forty2.data.library import material
from forty2.model.loading import LoadedModel, load_tokenizer

Row = dict[str, Any]
SEEDS = pytest.mark.parametrize("seed", [0, 7, 42])
KINDS = {"word", "phrase", "code", "sentence"}


def german(rows: Sequence[Row]) -> float:
    return [row["language"] for row in rows].count("de") / len(rows)


def share(rows: Sequence[Row], key: str) -> dict[str, float]:
    return {name: n / len(rows) for name, n in Counter(row[key] for row in rows).items()}


@functools.cache
def every(seed: int) -> dict[str, list[Row]]:
    return {
        "minimal": format_lock("minimal", "exclude", seed),
        "full": format_lock("full", "include", seed),
        "sums": format_lock("full", "only", seed),
        "real": echo("exclude", None, seed),
        "pseudo": echo("only", None, seed),
        "echo": echo("include", None, seed),
        "capped": echo("exclude", 2_500, seed),
        "operators": [*operators(seed).train, *operators(seed).valid],
    }


@SEEDS
def test_nothing_is_asked_twice_and_ids_are_unique(seed: int) -> None:
    for name, rows in every(seed).items():
        assert len({user(row) for row in rows}) == len(rows), name
        assert len({row["id"] for row in rows}) == len(rows), name


@SEEDS
def test_rows_are_chats_in_two_languages(seed: int) -> None:
    for rows in every(seed).values():
        for row in rows:
            assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
            assert all(m["content"] == m["content"].strip() != "" for m in row["messages"])
            assert not re.search(r"\{\w\}", user(row))
        systems = {(row["language"], row["messages"][0]["content"]) for row in rows}
        assert len(systems) == 2


def test_same_seed_same_bytes_and_another_seed_other_rows() -> None:
    makers: list[Callable[[int], Any]] = [
        lambda seed: format_lock("full", "include", seed),
        lambda seed: echo("include", 1_000, seed),
        operators,
    ]
    for make in makers:
        assert json.dumps(make(3)) == json.dumps(make(3))
        assert json.dumps(make(3)) != json.dumps(make(4))


# --- format lock ----------------------------------------------------------------------------------


@SEEDS
def test_minimal_has_a_thousand_rows(seed: int) -> None:
    rows = format_lock("minimal", "exclude", seed)
    assert 950 <= len(rows) <= 1_050
    assert 0.40 <= german(rows) <= 0.50
    assert set(share(rows, "category")) == {
        "say",
        "yes_no",
        "greeting",
        "status",
        "colour",
        "calendar",
    }
    assert all(answer(row).endswith(".") for row in rows)


@SEEDS
def test_full_has_eleven_thousand_rows(seed: int) -> None:
    rows = format_lock("full", "include", seed)
    assert 10_500 <= len(rows) <= 11_500
    assert german(rows) >= 0.35
    assert share(rows, "category")["arithmetic"] <= 0.5
    bare = {row["category"] for row in rows if not answer(row).endswith(".")}
    assert bare == {"extensions", "syntax"}


@SEEDS
@pytest.mark.parametrize("mode", ["full", "minimal"])
def test_math_modes(mode: Any, seed: int) -> None:
    def sums(math: Any) -> float:
        return share(format_lock(mode, math, seed), "category").get("arithmetic", 0)

    assert sums("only") == 1
    assert sums("exclude") == 0
    assert 0.04 < sums("minimal") <= 0.05
    assert 0.3 < sums("include") <= 0.5


def test_say_keeps_the_case_asked_for() -> None:
    rows = [row for row in format_lock("minimal", "exclude", 42) if row["category"] == "say"]
    assert all(answer(row).removesuffix(".") in user(row) for row in rows)
    for language in ("en", "de"):
        own = material("curriculum/small_talk")[language]
        assert len(set(own["say_templates"])) >= 10
        said = [answer(row) for row in rows if row["language"] == language]
        shapes = {(text.islower(), text.isupper()) for text in said}
        assert shapes == {(True, False), (False, True), (False, False)}
        for template in own["say_templates"]:
            head = template.partition("{x}")[0]
            assert any(user(row).startswith(head) for row in rows)


WORDS = {"plus": "+", "minus": "-", "times": "*", "mal": "*", "×": "*", "÷": "/"}
WORDS |= {"divided by": "/", "geteilt durch": "/"}


@SEEDS
def test_sums_are_right(seed: int) -> None:
    rows = format_lock("full", "only", seed)
    for row in rows:
        text = user(row)
        for word, sign in WORDS.items():
            text = text.replace(f" {word} ", f" {sign} ")
        found = re.search(r"(\d+) ([-+*/]) (\d+)", text)
        assert found, text
        a, sign, b = int(found[1]), found[2], int(found[3])
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else -1}[sign]
        assert answer(row) == f"{result}." and result >= 0
        assert sign != "/" or a % b == 0


def test_sequences_go_on_evenly() -> None:
    rows = [row for row in format_lock("full", "exclude", 1) if row["category"] == "sequences"]
    for row in rows:
        shown = user(row).partition(": ")[2].removesuffix("?").split(", ")
        shown.append(answer(row).removesuffix("."))
        values = [int(item) if item.isdigit() else ord(item) for item in shown]
        assert len({b - a for a, b in pairwise(values)}) == 1


def test_number_words() -> None:
    assert number_word(21, "de") == "einundzwanzig"
    assert number_word(76, "de") == "sechsundsiebzig"
    assert number_word(30, "en") == "thirty"
    assert number_word(45, "en") == "forty-five"
    for language in ("en", "de"):
        assert len({number_word(n, language) for n in range(101)}) == 101


def test_tables_never_give_one_question_two_answers() -> None:
    tables = material("curriculum/facts")
    for name in ("extensions", "http", "translations"):
        lines = [line.split(" | ") for line in tables["shared"][name]]
        for column in zip(*lines, strict=True):
            assert len(set(column)) == len(column), name


# --- echo -----------------------------------------------------------------------------------------


@SEEDS
def test_echo_counts(seed: int) -> None:
    real, pseudo = echo("exclude", None, seed), echo("only", None, seed)
    assert len(real) >= 2_500
    assert 3_300 <= len(pseudo) <= 3_700
    assert len(echo("include", None, seed)) == len(real) + len(pseudo)
    assert set(share(real, "kind")) == KINDS | {"anti_echo", "contrast"}
    assert set(share(pseudo, "kind")) == {"gibberish", "anti_echo", "contrast"}
    for rows in (real, pseudo):
        assert 0.40 <= german(rows) <= 0.50
        for kind in ("anti_echo", "contrast"):
            assert share(rows, "kind")[kind] == pytest.approx(0.2, abs=0.01)


def test_echo_templates() -> None:
    for language, least in (("en", 43), ("de", 30)):
        templates = material("curriculum/echo")[language]["templates"]
        assert len(set(templates)) == len(templates) >= least
        for gibberish in ("exclude", "only"):
            rows = echo(gibberish, 2_500, 42)
            used = {row["template"] for row in rows if row["template"].startswith("echo-")}
            assert sum(name.startswith(f"echo-{language}") for name in used) >= least


@SEEDS
def test_answers_of_echoes(seed: int) -> None:
    for row in echo("include", None, seed):
        assert row["payload"] in user(row)
        if row["kind"] == "anti_echo":
            assert answer(row) != row["payload"]
            assert answer(row) in user(row)
        elif row["kind"] != "contrast":
            assert answer(row) == row["payload"]
            assert user(row).endswith(f": {row['payload']}")


@SEEDS
def test_contrast_groups_differ_in_every_answer(seed: int) -> None:
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for row in echo("include", None, seed):
        if row["kind"] == "contrast":
            task = row["template"].split("-")[2]
            groups.setdefault((row["language"], row["payload"]), {})[task] = answer(row)
    for (_, payload), answers in groups.items():
        words = payload.split()
        assert answers == {
            "echo": payload,
            "count": f"{len(words)}",
            "upper": payload.upper(),
            "reverse": " ".join(words[::-1]),
        }
        assert len(set(answers.values())) == 4


@pytest.mark.parametrize("most", [1, 60, 997, 2_500])
def test_the_cap_keeps_the_shares(most: int) -> None:
    rows, capped = echo("exclude", None, 5), echo("exclude", most, 5)
    assert len(capped) == most
    assert {user(row) for row in capped} <= {user(row) for row in rows}
    whole = Counter((row["language"], row["kind"]) for row in rows)
    kept = Counter((row["language"], row["kind"]) for row in capped)
    assert all(abs(kept[name] - n * most / len(rows)) <= 1 for name, n in whole.items())


def test_a_cap_above_what_there_is_takes_everything() -> None:
    assert echo("only", 10**6, 1) == echo("only", None, 1)


def test_gibberish_is_no_word_we_know() -> None:
    known = known_words()
    for seed in range(3):
        for row in echo("only", None, seed):
            assert not known & set(row["payload"].casefold().split())


def test_gibberish_costs_few_tokens(starter: LoadedModel) -> None:
    tokenizer = load_tokenizer("smollm2")
    words = gibberish_words(random.Random(0))
    assert len(words) > 1_000
    for word in words[:300]:
        assert len(tokenizer.encode(word, add_special_tokens=False)) <= 4, word
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) <= 4, word


# --- operators ------------------------------------------------------------------------------------


@SEEDS
def test_operators_share_nothing(seed: int) -> None:
    train, valid = operators(seed)
    assert len(train) >= 1_500 and len(valid) >= 150
    for key in ("template", "payload"):
        assert not {row[key] for row in train} & {row[key] for row in valid}
    payloads = [row["payload"] for row in [*train, *valid]]
    assert len(set(payloads)) == len(payloads)
    for rows in (train, valid):
        assert german(rows) == pytest.approx(0.5, abs=0.05)
        assert all(0.30 <= part <= 0.37 for part in share(rows, "operator").values())


@SEEDS
def test_operators_answer_what_they_should(seed: int) -> None:
    pairs = {*["[]", "()", "{}", "<>", "**", "||"], '""'}
    for row in [*operators(seed).train, *operators(seed).valid]:
        payload, text = row["payload"], answer(row)
        assert payload in user(row)
        if row["operator"] == "wrap":
            left, inner, right = text.partition(payload)
            assert inner and left and right and text not in user(row)
            assert left + right in pairs or right == left.replace("<", "</")
        else:
            assert text == payload


# --- together -------------------------------------------------------------------------------------


def test_the_stages_never_ask_the_same() -> None:
    asked = [
        {user(row) for row in rows}
        for rows in (format_lock("full", "include", 42), echo("include", None, 42))
    ]
    asked.append({user(row) for part in operators(42) for row in part})
    assert len(set.union(*asked)) == sum(map(len, asked))


def test_a_question_with_two_answers_is_dropped() -> None:
    def row(text: str, reply: str) -> Row:
        return {"messages": [{}, {"content": text}, {"content": reply}]}

    rows = [row("a", "1"), row("b", "1"), row("a", "2"), row("b", "1"), row("a", "1")]
    assert unambiguous(rows) == [row("b", "1")]
