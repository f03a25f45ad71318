"""Operations on texts: reversed, counted, sorted, replaced, one to three at once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from forty2.failures.builtin.made import WORDS, Made, number_question, text_question

_ONLY = "Reply with the result only."
Operation = tuple[str, Callable[[list[str]], list[str]]]


def strings(rng: Random) -> Made:
    """Make a question about a list of words or the letters of one."""
    level = rng.randint(1, 4)
    if level == 1:
        return _letters(rng)
    words = rng.sample(WORDS, rng.randint(3, 6))
    told, result = [], words
    for text, operation in rng.sample(_operations(rng), level - 1):
        told.append(text)
        result = operation(result)
    steps = ", then ".join(told)
    prompt = (
        f"Take the words {', '.join(words)}: {steps}. Write the words separated by spaces. {_ONLY}"
    )
    return text_question(prompt, " ".join(result), level)._replace(form="words")


def _letters(rng: Random) -> Made:
    word = "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 2)))
    letter = rng.choice(word)
    n = rng.randint(1, len(word))
    kind = rng.randrange(4)
    if kind == 0:
        made = text_question(f"Write “{word}” backwards. {_ONLY}", word[::-1], 1)
        return made._replace(form="backwards")
    if kind == 1:
        count = word.count(letter)
        prompt = f"How many times does the letter {letter} occur in “{word}”?"
        working = f"In {'-'.join(word)} it is there {count} times."
        return number_question(prompt, count, working, 1)._replace(form="count")
    if kind == 2:
        prompt = f"Which letter of “{word}” is number {n} from the left? {_ONLY}"
        return text_question(prompt, word[n - 1], 1)._replace(form="letter")
    new = rng.choice("xyzqw")
    prompt = f"Replace every {letter} in “{word}” by {new}. {_ONLY}"
    return text_question(prompt, word.replace(letter, new), 1)._replace(form="replace")


def _operations(rng: Random) -> list[Operation]:
    n = rng.randint(1, 2)
    letter = rng.choice("aeiou")
    return [
        ("sort them from A to Z", sorted),
        ("sort them from Z to A", lambda words: sorted(words, reverse=True)),
        ("put them into the opposite order", lambda words: words[::-1]),
        ("write each in capitals", lambda words: [word.upper() for word in words]),
        ("spell each backwards", lambda words: [word[::-1] for word in words]),
        (
            f"move the first {'one' if n == 1 else 'two'} to the end",
            lambda words: [*words[n:], *words[:n]],
        ),
        (
            f"remove the letter {letter} from each, in capitals or not",
            lambda words: [w.replace(letter, "").replace(letter.upper(), "") for w in words],
        ),
    ]
