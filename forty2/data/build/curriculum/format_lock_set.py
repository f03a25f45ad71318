"""Short questions with one short answer in a fixed form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Literal

from forty2.data.build.curriculum.chat_rows import (
    LANGUAGES,
    Row,
    by_language,
    chat,
    fields,
    numbered,
    paired,
    shuffled,
    unambiguous,
)
from forty2.data.library import material
from forty2.files import JsonObject

SMALL = 1_000
"""Number of rows in minimal mode without arithmetic."""
TOTAL = {"full": 11_000, "minimal": 2 * SMALL}
"""Number of rows in each mode, arithmetic included."""
LITTLE = 0.05
"""Largest share of arithmetic with math="minimal"."""
SEQUENCES = 100
"""Number sequences in each language."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def format_lock(
    mode: Literal["full", "minimal"],
    math: Literal["include", "exclude", "only", "minimal"],
    seed: int,
) -> list[Row]:
    """Build questions whose answer has one form: a word, number or short sentence, and a full stop.

    Minimal mode has 1,000 rows of small talk, 2,000 rows with arithmetic. Full mode adds facts and
    has 11,000 rows with arithmetic, less than half of them arithmetic. Answers that are code or a
    file extension have no full stop, which would make them wrong.

    Args:
        mode: "minimal": small talk; "full": facts too.
        math: whether to include arithmetic; "only": nothing else; "minimal": at most 5% of the rows.
    """
    generator = random.Random(f"format-lock-{seed}")
    rows = unambiguous(_small(generator))
    if mode == "full":
        rows = unambiguous([*rows, *_facts(generator), *_generated(generator)])
    sums = list(_arithmetic(TOTAL[mode] - len(rows), generator))
    if math == "only":
        rows = sums
    elif math == "include":
        rows += sums
    elif math == "minimal":
        rows += sums[: int(len(rows) * LITTLE / (1 - LITTLE))]
    return numbered(rows, "lock", generator)


# --- small talk -----------------------------------------------------------------------------------


def _small(generator: random.Random) -> list[Row]:
    rows = []
    for language, size in by_language(SMALL).items():
        own = material("curriculum/small_talk")[language]
        first = [*_listed(own, language), *_calendar(own["calendar"], language)]
        rows += first
        rows += islice(_say(own, language, generator), size - len(first))
    return rows


def _listed(own: JsonObject, language: str) -> Iterator[Row]:
    for category in ("greeting", "status"):
        for line in own[category]:
            yield chat(language, category, *fields(line))
    for answer, questions in own["yes_no"].items():
        for question in questions:
            yield chat(language, "yes_no", question, answer)
    for line in own["colour"]["rows"]:
        thing, colour = fields(line)
        for template in own["colour"]["templates"]:
            yield chat(language, "colour", template.format(a=thing), colour)


def _calendar(own: JsonObject, language: str) -> Iterator[Row]:
    for names, after, before in (
        (own["days"], own["next_day"], own["last_day"]),
        (own["months"], own["next_month"], own["last_month"]),
    ):
        for name, following in zip(names, names[1:] + names[:1], strict=True):
            yield chat(language, "calendar", after.format(x=name), f"{following}.")
            yield chat(language, "calendar", before.format(x=following), f"{name}.")
    for ordinal, month in zip(own["ordinals"], own["months"], strict=True):
        yield chat(language, "calendar", own["nth_month"].format(n=ordinal), f"{month}.")
    for line in own["more"]:
        yield chat(language, "calendar", *fields(line))


def _say(own: JsonObject, language: str, generator: random.Random) -> Iterator[Row]:
    """Yield each word in every case it can have, under one template after another."""
    for word, template in paired(own["say_words"], own["say_templates"], generator):
        # Names and German nouns have no small form.
        for shape in dict.fromkeys((word, _capital(word), word.upper())):
            yield chat(language, "say", template.format(x=shape), f"{shape}.")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# --- facts ----------------------------------------------------------------------------------------


def _facts(generator: random.Random) -> Iterator[Row]:
    tables = material("curriculum/facts")
    for category, family in tables.items():
        if category in ("shared", "spelling", "generated"):
            continue
        for language in LANGUAGES:
            own = family[language]
            lines = own["rows"]
            table = tables["shared"][lines] if isinstance(lines, str) else lines
            facts = [fields(line) for line in table]
            yield from _open_questions(category, language, own.get("ask", []), facts)
            yield from _yes_no_questions(category, language, own, facts, generator)


def _open_questions(
    category: str, language: str, templates: list[str], facts: list[list[str]]
) -> Iterator[Row]:
    for fact in facts:
        slots = dict(zip("abcd", fact, strict=False))
        slots |= {name.upper(): _capital(value) for name, value in slots.items()}
        for template in templates:
            question, answer = fields(template)
            yield chat(language, category, question.format(**slots), answer.format(**slots))


def _yes_no_questions(
    category: str,
    language: str,
    own: JsonObject,
    facts: list[list[str]],
    generator: random.Random,
) -> Iterator[Row]:
    """Yield questions about each fact, to affirm, and with another fact's value, to deny."""
    yes, no = ("Yes.", "No.") if language == "en" else ("Ja.", "Nein.")
    values = list(dict.fromkeys(b for _, b in facts)) if "check" in own else []
    for template in own.get("check", []):
        for a, b in facts:
            yield chat(language, category, template.format(a=a, b=b), yes)
            others = [value for value in values if value != b]
            for wrong in generator.sample(others, own.get("wrong", 1)):
                yield chat(language, category, template.format(a=a, b=wrong), no)


# --- letters, numbers, spelling, sequences --------------------------------------------------------


def _generated(generator: random.Random) -> Iterator[Row]:
    for language in LANGUAGES:
        own = material("curriculum/facts")["generated"][language]
        yield from _letters(own, language)
        yield from _numbers(own, language)
        yield from _spelling(language)
        yield from _sequences(own, language, generator)


def _letters(own: JsonObject, language: str) -> Iterator[Row]:
    for letter, following in pairwise(LETTERS):
        yield chat(language, "letters", own["letter_after"].format(x=letter), f"{following}.")
        yield chat(language, "letters", own["letter_before"].format(x=following), f"{letter}.")
    for n, letter in enumerate(LETTERS, 1):
        yield chat(language, "letters", own["letter_nth"].format(x=n), f"{letter}.")
        small = letter.lower()
        yield chat(language, "letters", own["letter_capital"].format(x=small), f"{letter}.")


def _numbers(own: JsonObject, language: str) -> Iterator[Row]:
    for n in range(101):
        word = number_word(n, language)
        yield chat(language, "numbers", own["number_word"].format(x=n), f"{_capital(word)}.")
        yield chat(language, "numbers", own["number_digits"].format(x=word), f"{n}.")
        yield chat(language, "numbers", own["number_after"].format(x=n), f"{n + 1}.")
        if n:
            yield chat(language, "numbers", own["number_before"].format(x=n), f"{n - 1}.")


def number_word(n: int, language: str) -> str:
    """Write 0 to 100 in words."""
    own = material("curriculum/facts")["generated"][language]
    small: list[str] = own["small"]
    if n == 100:
        return str(own["hundred"])
    if n < len(small):
        return small[n]
    ten, one = str(own["tens"][n // 10]), n % 10
    if not one:
        return ten
    if language == "en":
        return f"{ten}-{small[one]}"
    return f"{'ein' if one == 1 else small[one]}und{ten}"


def _spelling(language: str) -> Iterator[Row]:
    own = material("curriculum/facts")["spelling"][language]
    for word in own["words"]:
        letters = word.upper()
        answers = {
            "spell": "-".join(letters),
            "count": len(word),
            "first": letters[0],
            "last": letters[-1],
        }
        for name, template in own["templates"].items():
            yield chat(language, "spelling", template.format(x=word), f"{answers[name]}.")


def _sequences(own: JsonObject, language: str, generator: random.Random) -> Iterator[Row]:
    starts = [(start, step) for start in range(21) for step in range(2, 12)]
    for start, step in shuffled(starts, generator)[:SEQUENCES]:
        shown = ", ".join(str(start + step * n) for n in range(4))
        text = own["sequence_number"].format(x=shown)
        yield chat(language, "sequences", text, f"{start + step * 4}.")
    for start in range(20):
        for step in (1, 2):
            if start + 3 * step < len(LETTERS):
                shown = ", ".join(LETTERS[start + step * n] for n in range(3))
                text = own["sequence_letter"].format(x=shown)
                yield chat(language, "sequences", text, f"{LETTERS[start + step * 3]}.")


# --- arithmetic -----------------------------------------------------------------------------------


def _arithmetic(count: int, generator: random.Random) -> Iterator[Row]:
    """Make different sums, in the languages by turns, so that the first rows have both."""
    texts: set[str] = set()
    while len(texts) < count:
        language = LANGUAGES[len(texts) % 2]
        own = material("curriculum/facts")["generated"][language]
        a, sign, b, result = _sum(generator)
        template = generator.choice(own["arithmetic"])
        # "3 plus 4 = ?" is neither a formula nor a sentence.
        spoken = "=" not in template and generator.random() < 0.5
        text = template.format(x=f"{a} {own['signs'][sign] if spoken else sign} {b}")
        if text not in texts:
            texts.add(text)
            yield chat(language, "arithmetic", text, f"{result}.")


def _sum(generator: random.Random) -> tuple[int, str, int, int]:
    """Draw two numbers and a sign whose result is a whole number, never negative."""
    sign = generator.choice("+-×÷")
    if sign in "+-":
        a, b = generator.randrange(100), generator.randrange(100)
        return (a, sign, b, a + b) if sign == "+" else (max(a, b), sign, min(a, b), abs(a - b))
    a, b = generator.randrange(13), generator.randrange(13)
    if sign == "×":
        return a, sign, b, a * b
    b += 1
    return a * b, sign, b, a
