"""Sources of questions: rows of one's own with their lines, benchmarks with verifiers, a fair sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forty2.errors import DataError
from forty2.failures.sources import Candidate, open_source
from forty2.failures.verifiers import check, parse_verifier


def rows_of(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def opened(name: str, **wanted: int) -> dict[str, list[Candidate]]:
    source = open_source(name, wanted, seed=1)
    return {stratum: list(source.of(stratum)) for stratum in wanted}


def test_a_row_gives_prompt_verifier_reference_and_origin(tmp_path: Path) -> None:
    verifier = {"kind": "number", "answer": 4}
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    name = rows_of(
        tmp_path / "own.jsonl",
        {"prompt": "2 + 2?", "verifier": verifier, "reference": "It is 4.", "stratum": "sums"},
        {"messages": turns, "stratum": "sums"},
        {"messages": turns[:1], "stratum": "sums"},
    )
    found = {row.source: row for row in opened(name, sums=9)["sums"]}
    one, two, three = (found[f"{name}:{line}"] for line in (1, 2, 3))
    assert one.messages[-1]["content"] == "2 + 2?"
    assert (one.verifier, one.reference) == (verifier, "It is 4.")
    assert (two.verifier, two.reference) == (None, "4") and len(two.messages) == 1
    assert three.reference is None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "verifier": {"kind": "number"}}, "verifier.answer"),
        ({"prompt": "a", "stratum": 3}, "stratum must be a name"),
        ({"prompt": "a", "reference": 3}, "reference must be a text"),
        ({"text": "no prompt"}, "has no prompt"),
        ({"prompt": "a", "tools": [{"name": "f"}]}, "tools are not offered"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    name = rows_of(tmp_path / "own.jsonl", {"prompt": "right"}, row)
    with pytest.raises(DataError, match=rf"own\.jsonl:2: .*{says}"):
        opened(name, other=3)


def test_the_sample_is_fair_bounded_and_does_not_depend_on_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}?"} for n in range(2000)]
    there = opened(rows_of(tmp_path / "a.jsonl", *rows), other=100)["other"]
    back = opened(rows_of(tmp_path / "b.jsonl", *rows[::-1]), other=100)["other"]
    asked = [row.messages[0]["content"] for row in there]
    assert len(there) == 200 and asked == [row.messages[0]["content"] for row in back]
    places = [int(text.split()[1][:-1]) for text in asked]
    assert 850 < sum(places) / len(places) < 1150, "from everywhere, not the first rows"


def test_benchmarks_have_verifiers_that_their_answers_pass(bench_data: Path) -> None:
    for name, stratum in (("mmlu", "mathematics"), ("mmlu", "reasoning"), ("gsm8k", "mathematics")):
        found = opened(f"{name}:{bench_data / name}", **{stratum: 20})[stratum]
        assert len(found) == 40
        for row in found:
            assert row.verifier is not None and row.reference is not None
            verifier = parse_verifier(row.verifier, row.source)
            assert check(verifier, row.reference).passed, row


@pytest.mark.usefixtures("programs_run_here")
def test_humaneval_asks_for_functions_that_its_own_solutions_are(bench_data: Path) -> None:
    found = opened(f"humaneval:{bench_data / 'humaneval'}", code=10)["code"]
    assert len(found) == 20
    for row in found:
        assert row.verifier is not None and row.reference is not None
        verifier = parse_verifier(row.verifier, row.source)
        assert check(verifier, row.reference).passed


def test_a_benchmark_that_is_not_there_says_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORTY2_BENCH_DATA", raising=False)
    with pytest.raises(DataError, match="write mmlu:PATH"):
        opened("mmlu", other=1)
    monkeypatch.setenv("FORTY2_BENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match="gsm8k: there is no such"):
        opened("gsm8k", other=1)


def test_questions_made_by_programs_have_no_end(tmp_path: Path) -> None:
    source = open_source("builtin", {"tools": 1}, seed=1).of("tools")
    made = [next(source) for _ in range(300)]
    assert all(row.source.startswith("builtin:") for row in made)
    assert any(row.messages[0]["role"] == "system" for row in made)
