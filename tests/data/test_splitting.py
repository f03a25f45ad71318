"""Splits keep together what belongs together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forty2.data.sources import dumps
from forty2.data.splitting import split
from forty2.errors import DataError


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 60), st.floats(0.05, 0.5), st.integers(0, 9))
def test_a_split_never_parts_a_prompt(
    tmp_path_factory: pytest.TempPathFactory, prompts: int, share: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("split") / "rows.jsonl"
    rows = [
        {"prompt": f"Question {i}{mark}", "chosen": f"a{j}", "rejected": "b"}
        for i in range(prompts)
        for j, mark in enumerate(["?", " ?", "!"])
    ]
    path.write_text(dumps(rows))
    if round(share * prompts) == 0:
        return
    held = split(path, share, seed=seed)
    by_prompt = Counter((i // 3, valid) for i, valid in enumerate(held))
    assert set(by_prompt.values()) == {3}
    assert abs(sum(held) - share * len(rows)) <= 3
    assert split(path, share, seed=seed) == held


def test_entities_and_named_keys_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"q{i}", "completion": "a", "entity": f"E{i % 7}", "topic": str(i % 3)}
        for i in range(60)
    ]
    path.write_text(dumps(rows))
    for by, key in ((None, "entity"), ("topic", "topic")):
        held = split(path, 0.3, by=by)
        sides = {(row[key], valid) for row, valid in zip(rows, held, strict=True)}
        assert len(sides) == len({row[key] for row in rows}) and 0 < sum(held) < 60
    with pytest.raises(DataError, match=r"rows.jsonl:1: has no colour to split by"):
        split(path, 0.3, by="colour")
    path.write_text(dumps(rows[:1]))
    with pytest.raises(DataError, match="cannot be split"):
        split(path, 0.3)
