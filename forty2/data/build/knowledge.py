"""Names of real and of invented things in two halves, and pairs by what a model knows of them.

One half is for choosing a score and a threshold, and pairs are made from it alone. The other is for
reporting: it is never trained on, so a model trained on the pairs can be measured on it, too. Names
that occur in the library's held-out material are in neither.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from typing import NamedTuple

from forty2.data import library
from forty2.data.build.spark import claimed, invented_pairs
from forty2.data.build.twins import pair_twins
from forty2.data.library import material, rows
from forty2.data.splitting import Row, Split, seeded_order, split_by_stratum
from forty2.errors import DataError

PAIRS_OF_KNOWN = 3
"""Pairs made of each thing that the model knows. The library has an answer to one question of one
real thing for every five that are invented; with one pair each, doubt would be nearly all it saw."""
DENIALS = ("There seems to be no", "As far as I know there is no")
"""Openings of refusals that deny a thing exists, so are untrue of a real thing."""


class Thing(NamedTuple):
    """A name, and whether something has it."""

    name: str
    real: bool
    row: Row | None = None
    """The library's row on it: kind, question and both answers; None: the library has its name alone."""

    @property
    def shown(self) -> str:
        """The name with a capital letter, as models are asked: a small one would give some away."""
        return self.name[0].upper() + self.name[1:]


class Halves(NamedTuple):
    """The names in two halves that share none."""

    choosing: list[Thing]
    reporting: list[Thing]


@cache
def things() -> tuple[Thing, ...]:
    """Return every thing of the library whose name is not in the held-out material."""
    listed = (resources.files(library.__package__) / "entities_real.txt").read_text("utf-8")
    found = [
        *(Thing(row["name"], False, row) for row in rows("entities")),
        *(Thing(row["name"], True, row) for row in rows("real_pairs")),
        *(Thing(name, True) for name in listed.splitlines() if name),
    ]
    first: dict[str, Thing] = {}
    for thing in found:
        first.setdefault(_key(thing.name), thing)
    return tuple(thing for thing in first.values() if not is_held_out(thing.name))


def halves(source: Sequence[Thing] | None = None) -> Halves:
    """Divide things by a hash of the name, so that a name is always in the same half.

    Args:
        source: None: all of the library.

    Raises:
        DataError: a half has no real or no invented name.
    """
    found = Halves([], [])
    for thing in things() if source is None else source:
        digest = hashlib.sha256(_key(thing.name).encode()).digest()
        found[digest[0] % 2].append(thing)
    for half in found:
        for real, kind in ((True, "real"), (False, "invented")):
            if not any(thing.real is real for thing in half):
                raise DataError(f"knowledge: no {kind} names are left to ask in one of the halves")
    return found


def twins(half: Sequence[Thing]) -> list[Thing]:
    """Return real and invented names in turn, each real one with an invented one of about its length.

    A name has one twin. Obscure real names, those with a row, choose first, and prefer an invented
    thing of their kind. Names without a twin are left out.

    Raises:
        DataError: there are no twins.
    """
    found = pair_twins(
        sorted((thing for thing in half if thing.real), key=lambda thing: thing.row is None),
        [thing for thing in half if not thing.real],
        name=lambda thing: thing.name,
        kind=lambda thing: thing.row and thing.row.get("kind"),
    )
    if not found:
        raise DataError("knowledge: no real and invented names of like length are left to ask")
    return [thing for pair in found for thing in pair]


def is_held_out(text: str) -> bool:
    """Return whether a text occurs, as whole words in any case, in the held-out material."""
    wanted = text.casefold().removeprefix("the ")
    held = held_out_text()
    return wanted in held and bool(re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", held))


@cache
def held_out_text() -> str:
    """Return all text under `heldout/` of the library, casefolded."""
    folder = resources.files(library.__package__) / "heldout"
    return "\n".join(_texts(folder)).casefold()


def _texts(place: Traversable) -> Iterator[str]:
    """Yield the text of every file; what JSON escapes is written out."""
    if place.is_dir():
        for below in sorted(place.iterdir(), key=lambda one: one.name):
            yield from _texts(below)
        return
    text = place.read_text("utf-8")
    if place.name.endswith(".json"):
        yield json.dumps(json.loads(text), ensure_ascii=False)
    elif place.name.endswith(".jsonl"):
        for line in text.splitlines():
            yield json.dumps(json.loads(line), ensure_ascii=False)
    else:
        yield text


def _key(name: str) -> str:
    return name.casefold().removeprefix("the ")


# --- pairs ----------------------------------------------------------------------------------------


def pairs(choosing: Sequence[Thing], known: Collection[str], seed: int) -> Split:
    """Make preference pairs: of known real things prefer the answer, of all others the refusal.

    The pairs of a thing are all for training or all for validation.

    Args:
        choosing: things of the half for choosing; those without a row have no pair.
        known: names that the model knows. Only real ones among them are answered.

    Raises:
        DataError: no thing has a row, or a pair holds a prompt of the held-out material.
    """
    rows_of = [
        {**thing.row, "pair_type": _pair_type(thing, known)} for thing in choosing if thing.row
    ]
    if not rows_of:
        raise DataError("knowledge: no names are left to make pairs of")
    split = split_by_stratum(rows_of, seed, lambda row: str(row["pair_type"]))
    made = Split(
        *(
            seeded_order((pair for row in part for pair in _compose(row, seed)), seed)
            for part in split
        )
    )
    for pair in (*made.train, *made.valid):
        if is_held_out(pair["prompt"]) or is_held_out(pair["entity"]):
            raise DataError(f"knowledge: {pair['id']} is in the held-out material")
    return made


def shares_of(made: Sequence[Row]) -> dict[str, float]:
    """Return the share of each kind of pair."""
    counts = Counter(str(pair["pair_type"]) for pair in made)
    return {kind: round(count / len(made), 3) for kind, count in sorted(counts.items())}


def _pair_type(thing: Thing, known: Collection[str]) -> str:
    if not thing.real:
        return "invented"
    return "known" if thing.name in known else "unknown"


def _compose(row: Row, seed: int) -> Iterator[Row]:
    """Yield the pairs of a thing."""
    generator = random.Random(f"{seed}-{row['id']}")
    match row["pair_type"]:
        case "known":
            made = _answered(row, generator)
        case "unknown":
            made = _declined(row, generator)
        case _:
            made = islice(invented_pairs(row, generator), 1)
    return ({"pair_type": row["pair_type"], **pair} for pair in made)


def _answered(row: Row, generator: random.Random) -> Iterator[Row]:
    """Prefer the true answer to the written doubt and to refusals worded as for invented things."""
    own = material("entity_questions")
    noun = own["kinds"][row["kind"]]["noun"]
    refusals = seeded_order(own["refusals"], generator.random())[: PAIRS_OF_KNOWN - 1]
    doubts = [row["rejected"], *(one.format(name=row["name"], noun=noun) for one in refusals)]
    for n, doubt in enumerate(doubts, 1):
        chosen = claimed(row["chosen"], generator)
        yield _pair(row, n, row["question"], chosen, doubt)


def _declined(row: Row, generator: random.Random) -> Iterator[Row]:
    """Prefer not knowing a real thing to a made-up claim about it."""
    (invented,) = islice(invented_pairs(row, generator), 1, 2)
    own = material("entity_questions")
    refusal = generator.choice([one for one in own["refusals"] if not one.startswith(DENIALS)])
    noun = own["kinds"][row["kind"]]["noun"]
    chosen = refusal.format(name=row["name"], noun=noun)
    yield _pair(row, 1, invented["prompt"], chosen, invented["rejected"])


def _pair(row: Row, number: int, prompt: str, chosen: str, rejected: str) -> Row:
    return {
        "id": f"{row['id']}-{number}",
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "category": row["kind"],
        "difficulty": row["difficulty"],
        "entity": row["name"],
    }
