"""Keys that nothing reads are counted, those that are read are not."""

from __future__ import annotations

from forty2.data.formats import parse
from forty2.data.ignored import IgnoredKeys


def test_keys_are_listed_with_the_number_of_their_rows() -> None:
    ignored = IgnoredKeys()
    for number in range(3):
        row = {"prompt": "q", "completion": "a", "weight": 2, "entity": "e", "id": 7, "source": "s"}
        ignored.add(parse(row if number else {**row, "note": "n"}, "f:1"))
    assert str(ignored) == "id, source (3 rows); note (1 rows)"
    assert ignored.rows == {"id": 3, "source": 3, "note": 1}


def test_keys_of_messages_are_counted_too() -> None:
    ignored = IgnoredKeys()
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "q", "name": "Ann", "date": "today"},
        {"role": "assistant", "content": "a", "score": 1, "weight": 1},
    ]
    ignored.add(parse({"messages": turns}, "f:1"))
    ignored.add(
        parse({"chosen": turns, "rejected": [turns[0], {**turns[1], "content": "b"}]}, "f:2")
    )
    assert str(ignored) == "messages[].date, messages[].score (2 rows)"


def test_any_number_of_keys_takes_little_room() -> None:
    ignored = IgnoredKeys()
    for number in range(2000):
        ignored.add(parse({"text": "a", f"k{number:04}": 1}, "f:1"))
    assert len(ignored.rows) == 1000 and str(ignored).endswith("; and 988 more")
