"""The operators set: copy, wrap and extract. Training and validation share no text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from forty2.data.build.curriculum.chat_rows import (
    LANGUAGES,
    Row,
    answer,
    chat,
    numbered,
    shuffled,
    user,
)
from forty2.data.build.curriculum.echo_set import (
    codes,
    gibberish_phrases,
    gibberish_words,
    payloads_of,
)
from forty2.data.build.curriculum.held_out import held_out_names, is_held_out
from forty2.data.library import material
from forty2.data.splitting import Split
from forty2.files import JsonObject

OPERATORS = ("copy", "wrap", "extract")
TRAIN = 300
"""Rows of each operator in each language."""
VALID = 33
"""Validation rows of each operator in each language."""
GATES = {"copy": 0.8, "wrap": 0.8, "extract": 0.6, "all": 0.75}
"""Smallest share of exact replies, by operator, for a model to pass."""


class _Part(NamedTuple):
    """The material of one side of the split."""

    templates: dict[str, list[tuple[str, str]]]
    """Name and text of each template, by operator."""
    carriers: list[str]
    """Sentences that something is extracted from."""
    payloads: list[str]


def operators(seed: int) -> Split:
    """Build 1,800 training rows and 198 validation rows, a third of each operator.

    No payload is used twice. Templates, payloads and the sentences that something is extracted from
    are divided before rows are composed, so no wording and no text of validation is trained on,
    whatever the seed.
    """
    generator = random.Random(f"operators-{seed}")
    train: list[Row] = []
    valid: list[Row] = []
    payloads = _payloads(generator)
    for language in LANGUAGES:
        first, second = _divided(language, payloads[language])
        train += _composed(language, first, generator)
        valid += _composed(language, second, generator)
    return Split(
        numbered(train, "operators-train", generator), numbered(valid, "operators-valid", generator)
    )


def eval_prompts(rows: Iterable[Row]) -> JsonObject:
    """Turn rows of operators into a file of eval prompts, as the benchmark's `eval_prompts` reads it.

    An id is the operator and a number: the first is copy_001. The gates are `GATES`.
    """
    count: Counter[str] = Counter()
    named: dict[str, Row] = {}
    for row in rows:
        count[row["operator"]] += 1
        named[f"{row['operator']}_{count[row['operator']]:03d}"] = row
    return {
        "description": "Copy, wrap and extract, with templates and payloads not in training.",
        "form": "user",
        "match": "exact",
        "system_prompt": {name: row["messages"][0]["content"] for name, row in named.items()},
        "prompts": {name: user(row) for name, row in named.items()},
        "expected_outputs": {name: answer(row) for name, row in named.items()},
        "gates": GATES,
    }


def _payloads(generator: random.Random) -> dict[str, list[str]]:
    """Make phrases, codes and pseudo-words for each language; the languages share none."""
    made = codes(1_000, generator)
    pseudo = gibberish_phrases(gibberish_words(generator), 400, generator)
    used: set[str] = set()
    result = {}
    for n, language in enumerate(LANGUAGES):
        own = payloads_of("phrase", language, generator)
        pool = [*own, *made[n :: len(LANGUAGES)], *pseudo[n :: len(LANGUAGES)]]
        result[language] = shuffled((text for text in pool if text not in used), generator)
        used.update(pool)
    return result


def _divided(language: str, payloads: Sequence[str]) -> tuple[_Part, _Part]:
    """Divide the material of a language into that of training and that of validation."""
    own = material("curriculum/operators")[language]
    named = {
        kind: [(f"{kind}-{language}-{n:02d}", text) for n, text in enumerate(own[kind], 1)]
        for kind in (*OPERATORS, "carriers")
    }
    held = held_out_names(name for kind in named.values() for name, _ in kind)

    def part(wanted: bool, count: int) -> _Part:
        chosen = {
            kind: [(name, text) for name, text in texts if (name in held) is wanted]
            for kind, texts in named.items()
        }
        carriers = [text for _, text in chosen.pop("carriers")]
        texts = [text for text in payloads if is_held_out(text) is wanted]
        return _Part(chosen, carriers, texts[: count * len(OPERATORS)])

    return part(False, TRAIN), part(True, VALID)


def _composed(language: str, part: _Part, generator: random.Random) -> list[Row]:
    marks = material("curriculum/operators")[language]["marks"]
    rows = []
    for n, payload in enumerate(part.payloads):
        operator = OPERATORS[n % len(OPERATORS)]
        templates = part.templates[operator]
        name, template = templates[n // len(OPERATORS) % len(templates)]
        mark = generator.choice(list(marks))
        opening, closing = marks[mark].split(" ")
        marked = f"{opening}{payload}{closing}"
        slots = {
            "x": payload,
            "m": mark,
            "d": _dative(language, mark),
            "t": generator.choice(part.carriers).format(x=marked),
        }
        reply = marked if operator == "wrap" else payload
        extra = {"operator": operator, "template": name, "payload": payload}
        rows.append(chat(language, operator, template.format(**slots), reply, **extra))
    return rows


def _dative(language: str, mark: str) -> str:
    """Inflect a mark's name: German says "in eckige Klammern" (into) and "in eckigen" (inside)."""
    return str(material("curriculum/operators")[language].get("dative", {}).get(mark, mark))
