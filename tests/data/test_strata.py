"""Strata are drawn evenly, in turns, or in proportion to their sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from forty2.cli import main
from forty2.data.sources import dumps
from forty2.data.strata import largest_remainder, round_robin, stratify
from forty2.errors import DataError


def test_strata_are_drawn_evenly_and_from_easy_to_hard(tmp_path: Path) -> None:
    levels = ["simple", "moderate", "nuanced"]
    rows = [
        {
            "prompt": f"q{i}",
            "chosen": "a",
            "rejected": "b",
            "domain": "xy"[i % 2],
            "complexity": levels[i % 3],
        }
        for i in range(90)
        if i % 6 != 5
    ]
    rows += [{**rows[0], "prompt": f"more {i}"} for i in range(200)]
    found = stratify(rows, ["domain", "complexity"], 25, seed=3)
    assert found.empty == [("y", "nuanced")] and set(found.drawn.values()) == {5}
    order = [row["order"] for row in found.rows]
    assert order == sorted(order) and set(order) == {0.0, 0.5, 1.0}
    assert stratify(rows, ["domain", "complexity"], 25, seed=3) == found
    with pytest.raises(DataError, match="row 1: has no colour"):
        stratify(rows, ["colour"])
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text(dumps(rows))
    args = ["data", "stratify", "-i", str(source), "--by-keys", "domain", "complexity"]
    result = CliRunner().invoke(main, [*args, "--size", "25", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "5 strata of 5 to 5 rows" in result.output and "y nuanced" in result.output


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.data())
def test_the_largest_remainder_gives_every_share_rounded_up_or_down(
    sizes: list[int], data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    order = data.draw(st.permutations(range(len(sizes))))
    parts = largest_remainder(dict(enumerate(sizes)), total, order)
    assert list(parts) == list(range(len(sizes))) and sum(parts.values()) == total
    for name, size in enumerate(sizes):
        exact = total * size / sum(sizes)
        assert abs(parts[name] - exact) < 1 and parts[name] <= size


def test_what_is_left_goes_to_the_largest_remainders_and_ties_to_the_first() -> None:
    assert largest_remainder({"a": 5, "b": 3, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}
    assert largest_remainder({"a": 1, "b": 1}, 1) == {"a": 1, "b": 0}
    assert largest_remainder({"a": 1, "b": 1}, 1, ["b", "a"]) == {"a": 0, "b": 1}


def test_turns_go_round_until_every_group_is_used_up() -> None:
    assert "".join(round_robin(["abc", "", "d", "ef"])) == "adebfc"
    assert list(round_robin([])) == []
