"""Halves of names, and pairs by what a model knows: no name in two halves, nothing held out."""

from __future__ import annotations

import pytest

from forty2.benchmark.stats import auc
from forty2.data.build.knowledge import (
    PAIRS_OF_KNOWN,
    Thing,
    halves,
    held_out_text,
    is_held_out,
    pairs,
    shares_of,
    things,
    twins,
)
from forty2.data.build.twins import LETTERS_APART
from forty2.data.formats import parse
from forty2.data.library import rows
from forty2.errors import DataError


def names_of(pairs: list[dict[str, object]]) -> set[object]:
    return {pair["entity"] for pair in pairs}


def test_the_halves_share_no_name_and_hold_all() -> None:
    found = halves()
    choosing, reporting = ({thing.name.casefold() for thing in half} for half in found)
    assert not choosing & reporting
    assert len(choosing) + len(reporting) == len(things()) == len({*choosing, *reporting})
    for half in found:  # enough of each kind, obscure ones too, for an interval
        assert sum(not thing.real for thing in half) > 120
        assert sum(thing.real for thing in half) > 120
        assert sum(thing.real and thing.row is not None for thing in half) > 20


def test_a_name_stays_in_its_half_whatever_else_is_asked() -> None:
    some = [thing for thing in things() if thing.row is not None]
    assert {t.name for t in halves(some).choosing} <= {t.name for t in halves().choosing}


def test_names_in_the_held_out_material_are_not_asked() -> None:
    gates = [row for row in rows("heldout/behaviour") if row["gate"] == "entity"]
    assert is_held_out("Karlovin-Bresk") and is_held_out("lake tirvanessa")
    assert all(row["prompt"].casefold() in held_out_text() for row in gates)
    assert not [thing for thing in things() if is_held_out(thing.name)]
    assert not is_held_out("Tirvaness")  # whole words alone


def test_the_case_of_a_name_does_not_tell_what_is_real() -> None:
    assert {thing.shown[0].islower() for thing in things()} == {False}


def test_length_tells_nothing_of_twins() -> None:
    """Of all names, it tells real from invented better than a small model does."""
    for half in halves():
        found = twins(half)
        real, invented = found[::2], found[1::2]
        assert {thing.real for thing in real} == {True} != {thing.real for thing in invented}
        assert len({thing.name for thing in found}) == len(found) >= 200
        assert sum(thing.row is not None for thing in real) >= 25
        lengths = [[float(len(thing.name)) for thing in one] for one in (real, invented)]
        assert 0.45 < auc(*lengths) < 0.55
        whole = [[float(len(t.name)) for t in half if t.real is kind] for kind in (True, False)]
        assert auc(*whole) < 0.25
        apart = [abs(a - b) for a, b in zip(*lengths, strict=True)]
        assert max(apart) <= LETTERS_APART
    with pytest.raises(DataError, match="of like length"):
        twins([Thing("Lima", True), Thing("Institute for Polar Linguistics", False)])


def test_names_that_leave_a_half_empty_are_refused() -> None:
    real = [thing for thing in things() if thing.real]
    with pytest.raises(DataError, match="no invented names are left"):
        halves(real)
    with pytest.raises(DataError, match="no names are left to make pairs of"):
        pairs([Thing("Lima", True)], {"Lima"}, 1)


def test_known_things_are_answered_and_all_others_declined() -> None:
    choosing = halves().choosing
    own = [thing for thing in choosing if thing.real and thing.row is not None]
    known = {thing.name for thing in own[::2]}
    made = pairs(choosing, known, 7)
    answers = {row["name"]: row["chosen"] for row in rows("real_pairs")}
    every = [*made.train, *made.valid]
    for pair in every:
        parse(pair, "row")
        right = answers.get(pair["entity"])
        assert (right is not None and right in pair["chosen"]) is (pair["pair_type"] == "known")
        assert right is None or right not in pair["rejected"]
    assert names_of([p for p in every if p["pair_type"] == "known"]) == known
    assert len([p for p in every if p["pair_type"] == "known"]) == PAIRS_OF_KNOWN * len(known)
    assert names_of(every) == {thing.name for thing in choosing if thing.row is not None}
    assert not names_of(made.train) & names_of(made.valid)
    assert len({pair["id"] for pair in every}) == len(every)


def test_invented_things_are_declined_even_if_the_model_takes_them_for_known() -> None:
    choosing = halves().choosing
    everything = {thing.name for thing in choosing}
    made = pairs(choosing, everything, 7)
    assert {"known", "invented"} == set(shares_of(made.train))


def test_no_pair_holds_a_name_of_the_other_half_or_of_held_out_prompts() -> None:
    found = halves()
    made = pairs(found.choosing, {thing.name for thing in found.choosing[::2]}, 3)
    reported = {thing.name for thing in found.reporting}
    for pair in (*made.train, *made.valid):
        assert pair["entity"] not in reported
        assert not is_held_out(pair["prompt"]) and not is_held_out(pair["chosen"])


def test_the_same_seed_gives_the_same_pairs() -> None:
    choosing = halves().choosing
    known = {thing.name for thing in choosing[::3]}
    assert pairs(choosing, known, 5) == pairs(choosing, known, 5) != pairs(choosing, known, 6)
    assert sum(shares_of(pairs(choosing, known, 5).train).values()) == pytest.approx(1, abs=0.002)
