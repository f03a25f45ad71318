"""Instructions to copy, and instructions that only look like it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from forty2.data.build.curriculum.chat_rows import (
    LANGUAGES,
    Row,
    by_language,
    chat,
    numbered,
    paired,
    shuffled,
    unambiguous,
)
from forty2.data.library import material
from forty2.data.strata import largest_remainder
from forty2.files import JsonObject

REAL = 5_000
"""Rows of real text."""
GIBBERISH = 3_500
"""Rows of pseudo-words."""
ANTI = 0.2
"""Share of rows that only look like echoes."""
CONTRAST = 0.2
"""Share of rows in groups that ask for one payload to be echoed, counted, written in capitals and
reversed."""
KINDS = ("word", "phrase", "code", "sentence")

Group = list[Row]
"""Rows that belong together."""


def echo(
    gibberish: Literal["include", "exclude", "only"], max_examples: int | None, seed: int
) -> list[Row]:
    """Build instructions to copy: 5,000 rows of real text, 3,500 of pseudo-words, or both.

    Three fifths are plain echoes, whose answer is the payload to the letter. A fifth only look like
    echoes and ask for something else to be said. A fifth are groups of four that ask for one
    payload to be echoed, counted, written in capitals, and reversed.

    Args:
        gibberish: whether to include rows of pseudo-words; "only": no others.
        max_examples: largest number of rows; the shares of language and kind stay the same.
    """
    generator = random.Random(f"echo-{seed}")
    # Both are always built, so that a row does not depend on the choice between them.
    real, pseudo = _real(generator), _pseudo(generator)
    groups = {"exclude": real, "only": pseudo, "include": [*real, *pseudo]}[gibberish]
    rows = unambiguous(row for group in groups for row in group)
    return numbered(_capped(rows, max_examples), "echo", generator)


def _real(generator: random.Random) -> list[Group]:
    groups: list[Group] = []
    for kind in KINDS:
        for language, size in by_language(_plain(REAL) // len(KINDS)).items():
            payloads = payloads_of(kind, language, generator)
            groups += _echoes(kind, language, payloads, size, generator)
    for language in LANGUAGES:
        words = material("curriculum/echo")[language]["words"]
        phrases = payloads_of("phrase", language, generator)
        groups += _anti(language, words, phrases, REAL, generator)
        groups += _contrast(language, phrases, REAL, generator)
    return groups


def _pseudo(generator: random.Random) -> list[Group]:
    groups: list[Group] = []
    words = gibberish_words(generator)
    phrases = gibberish_phrases(words, 1_000, generator)
    for language, size in by_language(_plain(GIBBERISH)).items():
        payloads = shuffled([*words, *phrases], generator)
        groups += _echoes("gibberish", language, payloads, size, generator)
        groups += _anti(language, words, phrases, GIBBERISH, generator)
        groups += _contrast(language, phrases, GIBBERISH, generator)
    return groups


def _plain(total: int) -> int:
    return round(total * (1 - ANTI - CONTRAST))


# --- payloads -------------------------------------------------------------------------------------


def template_names() -> list[str]:
    """Return the name of every wording, with which rows name theirs."""
    names: list[str] = []
    for language in LANGUAGES:
        own = material("curriculum/echo")[language]
        for prefix, key in (("echo", "templates"), ("anti", "anti_templates")):
            names += [f"{prefix}-{language}-{n:02d}" for n in range(1, len(own[key]) + 1)]
        for task, choices in own["contrast_templates"].items():
            names += [f"contrast-{language}-{task}-{n}" for n in range(1, len(choices) + 1)]
    return names


def payloads_of(kind: str, language: str, generator: random.Random) -> list[str]:
    """Return the words, phrases, codes or sentences of a language, in seeded order."""
    own = material("curriculum/echo")[language]
    if kind == "word":
        result = list(own["words"])
    elif kind == "phrase":
        result = [*own["phrases"], *_described(own, language)]
    elif kind == "code":
        return codes(300, generator)
    else:
        result = [*own["sentences"], *_stated(own)]
    return shuffled(result, generator)


def _described(own: JsonObject, language: str) -> Iterator[str]:
    for noun in own["nouns"]:
        for adjective in own["adjectives"]:
            if language == "en":
                yield f"{adjective} {noun}"
            else:
                word, ending = noun.split("-")
                yield f"{adjective}{ending} {word}"


def _stated(own: JsonObject) -> Iterator[str]:
    articles = {"er": "Der", "e": "Die", "es": "Das"}
    for noun in own["nouns"]:
        for adjective in own["adjectives"]:
            word, _, ending = noun.partition("-")
            yield own["sentence_form"].format(
                article=articles.get(ending), noun=word, adjective=adjective
            )


def codes(count: int, generator: random.Random) -> list[str]:
    """Make different strings of letters and digits, of shapes that people copy."""
    found: dict[str, None] = {}
    while len(found) < count:
        a, b, c = (generator.choice("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(3))
        n, m = generator.randrange(10), generator.randrange(10, 100)
        shapes = (
            f"{a}{n}-{m}",
            f"{m}{n}{m}",
            f"v{n}.{m}.{m % 7}",
            f"{a}{b}{n}{c}",
            f"{a}{m}/{b}{n}",
        )
        found[generator.choice(shapes)] = None
    return list(found)


def gibberish_words(generator: random.Random) -> list[str]:
    """Make pronounceable words of two syllables that no word list holds, half with a capital.

    Their letters are common neighbours, so that a byte-pair vocabulary needs at most four tokens.
    """
    parts = material("curriculum/echo")["syllables"]
    real = known_words()
    words = [
        f"{onset}{vowel}{rest}"
        for onset in parts["first"]
        for vowel in parts["middle"]
        for rest in parts["last"]
        if not onset.endswith(vowel)
    ]
    pseudo = shuffled((word for word in words if word not in real), generator)
    return [word.capitalize() if n % 2 else word for n, word in enumerate(pseudo)]


def known_words() -> frozenset[str]:
    """Return every word of the curriculum's lists, in small letters."""
    echoed, talk, facts = (
        material("curriculum/echo"),
        material("curriculum/small_talk"),
        material("curriculum/facts"),
    )
    lists = [echoed["real_words"]]
    for language in LANGUAGES:
        own = echoed[language]
        lists += [own["words"], own["adjectives"], [noun.split("-")[0] for noun in own["nouns"]]]
        lists += [own["phrases"], talk[language]["say_words"], facts["spelling"][language]["words"]]
    lists.append(facts["shared"]["translations"])
    return frozenset(
        word for texts in lists for text in texts for word in text.casefold().split() if word != "|"
    )


def gibberish_phrases(words: Sequence[str], count: int, generator: random.Random) -> list[str]:
    """Make different phrases of two to four pseudo-words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(generator.sample(words, generator.randint(2, 4)))] = None
    return list(found)


# --- rows -----------------------------------------------------------------------------------------


def _echoes(
    kind: str, language: str, payloads: Sequence[str], size: int, generator: random.Random
) -> Iterator[Group]:
    templates = list(enumerate(material("curriculum/echo")[language]["templates"], 1))
    for payload, (n, template) in islice(paired(payloads, templates, generator), size):
        yield [_row(language, kind, f"echo-{language}-{n:02d}", template, payload, payload)]


def _anti(
    language: str,
    words: Sequence[str],
    phrases: Sequence[str],
    total: int,
    generator: random.Random,
) -> Iterator[Group]:
    templates = list(enumerate(material("curriculum/echo")[language]["anti_templates"], 1))
    done: set[str] = set()
    size = by_language(round(total * ANTI))[language]
    while len(done) < size:
        n, template = generator.choice(templates)
        # Without quotation marks it is unclear where a phrase ends.
        quoted = '"{x}"' in template and generator.random() < 0.5
        payload, instead = generator.sample(phrases if quoted else words, 2)
        name = f"anti-{language}-{n:02d}"
        row = _row(language, "anti_echo", name, template, payload, instead, y=instead)
        text = row["messages"][1]["content"]
        if text not in done:
            done.add(text)
            yield [row]


def _contrast(
    language: str, phrases: Sequence[str], total: int, generator: random.Random
) -> Iterator[Group]:
    templates = material("curriculum/echo")[language]["contrast_templates"]
    # "ß" has no capital that everyone agrees on.
    usable = [phrase for phrase in phrases if "ß" not in phrase and _reversed(phrase) != phrase]
    size = by_language(round(total * CONTRAST / len(templates)))[language]
    for payload in shuffled(usable, generator)[:size]:
        answers = {
            "echo": payload,
            "count": str(len(payload.split())),
            "upper": payload.upper(),
            "reverse": _reversed(payload),
        }
        yield [
            _row(
                language,
                "contrast",
                f"contrast-{language}-{task}-{n + 1}",
                choices[n],
                payload,
                answers[task],
            )
            for task, choices in templates.items()
            for n in [generator.randrange(len(choices))]
        ]


def _reversed(phrase: str) -> str:
    return " ".join(reversed(phrase.split()))


def _row(
    language: str, kind: str, name: str, template: str, payload: str, answer: str, **slots: str
) -> Row:
    text = template.format(x=payload, **slots)
    return chat(language, kind, text, answer, kind=kind, template=name, payload=payload)


# --- the cap --------------------------------------------------------------------------------------


def _capped(rows: Sequence[Row], most: int | None) -> list[Row]:
    """Take the first rows of each language and kind, in proportion to their numbers."""
    if most is None or most >= len(rows):
        return list(rows)
    strata: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        strata.setdefault((row["language"], row["kind"]), []).append(row)
    counts = largest_remainder({name: len(own) for name, own in strata.items()}, most)
    return [row for name, own in strata.items() for row in own[: counts[name]]]
