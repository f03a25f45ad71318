"""Values of the row keys that a recipe names."""

from __future__ import annotations

import pytest

from forty2.data.row_values import KeyUse, RowValues, as_text
from forty2.errors import DataError


def test_numbers_and_words_say_how_hard_a_row_is() -> None:
    values = RowValues(KeyUse(by="level"))
    given = [3, "0.5", "hard", "Easy", "moderate", "implicit", -1.5]
    for number, level in enumerate(given):
        values.add({"level": level}, f"f:{number}")
    origins = [f"f:{number}" for number in range(len(given))]
    assert values.difficulty(origins) == [3.0, 0.5, 2.0, 0.0, 1.0, 2.0, -1.5]


@pytest.mark.parametrize("level", ["tough", None, True, [1], "nan", float("inf"), ""])
def test_other_values_do_not(level: object) -> None:
    with pytest.raises(DataError, match=r"f:1: level is .*must be a number, or a word of easy"):
        RowValues(KeyUse(by="level")).add({"level": level}, "f:1")


def test_a_row_without_the_key_is_named() -> None:
    with pytest.raises(DataError, match=r"f:7: has no 'levle'.*it has prompt, level"):
        RowValues(KeyUse(by="levle")).add({"prompt": "a", "level": 1}, "f:7")


def test_rows_that_lack_a_key_are_a_stratum_and_no_row_with_it_is_an_error() -> None:
    values = RowValues(KeyUse(strata=("domain",)))
    values.add({"domain": "arts"}, "f:1")
    values.add({}, "f:2")
    values.check("f")
    assert values.strata(["f:2", "f:1"]) == [("(none)",), ("arts",)]
    values = RowValues(KeyUse(strata=("domian",)))
    values.add({"domain": "arts"}, "f:1")
    with pytest.raises(DataError, match=r"f: no row has 'domian'.*they have domain"):
        values.check("f")


def test_held_out_rows_match_all_keys() -> None:
    values = RowValues(KeyUse(hold_out={"domain": ("arts", "law"), "level": (3,)}))
    assert values.is_held_out({"domain": "law", "level": "3"})
    assert values.is_held_out({"domain": "arts", "level": 3.0})
    assert not values.is_held_out({"domain": "arts", "level": 2})
    assert not values.is_held_out({"domain": "arts"})
    said = str(values.nothing_held_out("f"))
    assert said == (
        "f: no row to hold out with domain: arts/law, level: 3; there are domain: arts (3), law (1); "
        "level: 3 (2), 2 (1)"
    )


def test_a_held_out_value_that_no_row_has_is_refused() -> None:
    values = RowValues(KeyUse(hold_out={"domain": ("arts", "music")}))
    assert values.is_held_out({"domain": "arts"}) and not values.is_held_out({"domain": "law"})
    with pytest.raises(DataError, match=r"^f: hold_out: no row has domain: music; remove it, or"):
        values.check_held_out("f")
    assert values.is_held_out({"domain": "music"})
    values.check_held_out("f")


def test_values_are_written_as_in_a_recipe() -> None:
    assert [as_text(value) for value in (True, 3, 3.0, 2.5, "a")] == ["true", "3", "3", "2.5", "a"]
