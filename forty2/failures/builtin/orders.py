"""Puzzles: who is where in an order, which number comes next, which of four statements follows."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from forty2.failures.builtin.made import PEOPLE, Made, number_question, text_question

_RELATIONS = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("richer", "poorer", "richest", "poorest"),
)
_LABELS = "ABCD"


def orders(rng: Random) -> Made:
    """Make a puzzle."""
    form, make = rng.choice((("order", _order), ("sequence", _sequence), ("statement", _statement)))
    return make(rng)._replace(form=form)


def _facts(rng: Random, people: list[str], more: str, less: str) -> str:
    """Say how neighbours in an order compare, in any sequence; the first person has the most."""
    facts = []
    for one, other in pairwise(people):
        swapped = rng.random() < 0.5
        facts.append(
            f"{other} is {less} than {one}." if swapped else f"{one} is {more} than {other}."
        )
    rng.shuffle(facts)
    return " ".join(facts)


def _order(rng: Random) -> Made:
    level = rng.randint(1, 4)
    people = rng.sample(PEOPLE, level + 2)
    more, less, most, least = rng.choice(_RELATIONS)
    facts = _facts(rng, people, more, less)
    place, asked = rng.choice(
        [
            (0, f"the {most}"),
            (-1, f"the {least}"),
            (1, f"the second {most}"),
            (-2, f"the second {least}"),
        ]
    )
    made = text_question(f"{facts} Who is {asked}? Reply with the name only.", people[place], level)
    return made._replace(verifier={**made.verifier, "ignore_case": True})


def _sequence(rng: Random) -> Made:
    level = rng.randint(1, 3)
    first, step, growth = rng.randint(-60, 400), rng.randint(2, 60), rng.randint(2, 15)
    if level == 1:
        row = [first + step * i for i in range(6)]
        why = f"Each number is {step} more than the one before."
    elif level == 2:
        row = [first + step * i + growth * i * (i - 1) // 2 for i in range(6)]
        why = f"The differences grow by {growth}."
    else:
        row = [first % 20 + 1, step]
        while len(row) < 7:
            row.append(row[-1] + row[-2])
        why = "Each number is the sum of the two before."
    shown = ", ".join(map(str, row[:-1]))
    prompt = rng.choice(
        ("Which number comes next: {}?", "{}, … What is next?", "Continue by one number: {}.")
    ).format(shown)
    return number_question(prompt, row[-1], why, level)


def _statement(rng: Random) -> Made:
    level = rng.randint(2, 4)
    people = rng.sample(PEOPLE, level + 1)
    more, less, *_ = rng.choice(_RELATIONS)
    facts = _facts(rng, people, more, less)
    i, j = sorted(rng.sample(range(len(people)), 2))
    right = f"{people[i]} is {more} than {people[j]}"
    wrong = {
        f"{people[b]} is {more} than {people[a]}"
        for a in range(len(people))
        for b in range(a + 1, len(people))
    }
    texts = [right, *rng.sample(sorted(wrong), 3)]
    rng.shuffle(texts)
    choices = dict(zip(_LABELS, texts, strict=True))
    listed = "\n".join(f"{label}. {text}" for label, text in choices.items())
    answer = next(label for label, text in choices.items() if text == right)
    prompt = f"{facts} Which of these is true? Reply with its letter.\n{listed}"
    verifier = {"kind": "choice", "answer": answer, "choices": choices}
    return Made(prompt, verifier, f"{answer}. {right}", level)
