"""Word problems of one to four steps: things are bought, shared, lost and counted again."""

from __future__ import annotations

from random import Random

from forty2.failures.builtin.made import PEOPLE, THINGS, Made, number_question

_ENDS = ("How many {} does {} have now?", "How many {} are left with {} in the end?")


def word_problems(rng: Random) -> Made:
    """Make a word problem with as many steps as its level."""
    level = rng.randint(1, 4)
    person, other = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    have = rng.randint(6, 120)
    told = [rng.choice(("{} has {} {}.", "{} starts with {} {}.")).format(person, have, thing)]
    working = [f"At first: {have}"]
    for _ in range(level):
        text, after, step = _step(rng, person, other, thing, have)
        told.append(text)
        working.append(f"{step} = {after}")
        have = after
    told.append(rng.choice(_ENDS).format(thing, person))
    return number_question(" ".join(told), have, "\n".join(working), level)


def _step(rng: Random, person: str, other: str, thing: str, have: int) -> tuple[str, int, str]:
    """Return what happens, the number afterwards and the sum."""
    n = rng.randint(2, 60)
    boxes, each = rng.randint(2, 9), rng.randint(2, 24)
    lost = rng.randint(1, max(1, have - 1))
    divisors = [d for d in range(2, 10) if have % d == 0 and have > d]
    steps = [
        (f"{other} brings {n} more.", have + n, f"{have} + {n}"),
        (f"Then {n} more are found in a drawer.", have + n, f"{have} + {n}"),
        (
            f"{person} buys {boxes} packs of {each} {thing}.",
            have + boxes * each,
            f"{have} + {boxes} * {each}",
        ),
        (f"After that, {lost} of them go to {other}.", have - lost, f"{have} - {lost}"),
        (f"{lost} get lost on the way home.", have - lost, f"{have} - {lost}"),
    ]
    if divisors:
        d = rng.choice(divisors)
        friends = f"{d - 1} friends" if d > 2 else "one friend"
        steps.append(
            (f"{person} shares all of them evenly with {friends}.", have // d, f"{have} / {d}")
        )
    if have <= 80:
        steps.append(
            (f"A week later the number has doubled, thanks to {other}.", 2 * have, f"2 * {have}")
        )
    return rng.choice(steps)
