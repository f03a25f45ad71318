"""JSON read for a reader: no text hides anything, and a line that is half written is not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forty2.errors import RunError
from forty2.report.json_records import DAMAGE, read_object, read_whole_lines, visible


def test_every_character_of_a_text_can_be_seen() -> None:
    hidden = "a\u202eb\x00c\ud800d\u200be\U000e0041f\n\tg"
    assert visible({hidden: [hidden, 1, None]}) == {
        "a\\u202eb\\x00c\\ud800d\\u200be\\U000e0041f\n\tg": [
            "a\\u202eb\\x00c\\ud800d\\u200be\\U000e0041f\n\tg",
            1,
            None,
        ]
    }


@pytest.mark.parametrize("text", ["[1]", "null", '"a"', "{", "[" * 100_000])
def test_a_file_without_an_object_is_damage(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(text, "utf-8")
    with pytest.raises(DAMAGE):
        read_object(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.json: no such file"):
        read_object(tmp_path / "run.json")


def test_a_line_that_is_half_written_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert read_whole_lines(log) == []
    log.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2', "utf-8")
    assert read_whole_lines(log) == [{"step": 1}]
