"""A question that a program made, and words that several kinds of questions use."""

from __future__ import annotations

from typing import NamedTuple

from forty2.files import JsonObject

NAMES = (
    "Ada Amir Ana Ben Bao Carla Chen Dana Dmitri Elif Emma Farid Femi Greta Hana Hugo Ines Ivan Jana "
    "Jomo Kai Kofi Lara Liam Maya Mei Nadia Noor Olga Omar Paul Priya Quinn Rosa Ravi Sana Sofia Tariq "
    "Tomas Uma Vera Viktor Wanda Xavier Yara Yusuf Zoe Zara"
)
PEOPLE = tuple(NAMES.split())
_THINGS = (
    "apples pears plums pencils stamps marbles tickets books candles buttons shells coins badges cards "
    "bricks lamps plates cups keys bottles ribbons stickers nails bolts tiles postcards lemons eggs "
    "bulbs seeds photos magnets beads ropes jars boxes"
)
THINGS = tuple(_THINGS.split())
_WORDS = (
    "river stone garden window market silver thunder pocket blanket harbour lantern meadow orchard "
    "pepper quarry ribbon saddle timber valley walnut anchor bridge candle desert engine forest glacier "
    "hammer island jacket kettle ladder mirror needle oyster parrot quiver rocket shadow tunnel umbrella "
    "velvet whistle yellow zipper basket copper dragon ember fabric ginger hollow insect jungle kitten "
    "locket magnet napkin object pillow rabbit signal throne"
)
WORDS = tuple(_WORDS.split())


class Made(NamedTuple):
    """A question, its verifier and a reply that passes."""

    prompt: str
    verifier: JsonObject
    reference: str
    level: int
    """How hard it is, from 1."""
    system: str = ""
    """System message; "": none."""
    form: str = ""
    """Name of the sub-kind, such as `weekday` of dates; "": the kind has one form."""


def number_question(
    prompt: str, answer: int | str, working: str, level: int, unit: tuple[str, ...] = ()
) -> Made:
    """Make a question whose answer is a number, which the reference states after its working."""
    verifier: JsonObject = {"kind": "number", "answer": answer}
    if unit:
        verifier["unit"] = list(unit)
    said = f"{answer} {unit[0]}" if unit else f"{answer}"
    return Made(prompt, verifier, f"{working}\nThe answer is {said}.", level)


def text_question(prompt: str, answer: str, level: int) -> Made:
    """Make a question whose answer is a text, which is the whole reference."""
    return Made(prompt, {"kind": "exact", "answer": answer}, answer, level)
