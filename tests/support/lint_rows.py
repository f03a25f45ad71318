"""Rows to lint, sound ones by the hundred, and the findings in them."""

from __future__ import annotations

import random
from typing import Any

from forty2.data.checks.findings import Finding
from forty2.data.checks.lint import Linter
from forty2.data.formats import parse
from forty2.data.library import rows as library

WORDS = sorted({w for row in library("myths_a") for t in row["true"] for w in t.lower().split()})


Row = dict[str, Any]


def chat(question: str, answer: str, **meta: Any) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **meta}


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choices(WORDS, k=words)).capitalize() + "."


def chats(n: int, seed: int = 0) -> list[Row]:
    generator = random.Random(seed)
    return [chat(sentence(generator, 9), sentence(generator, 20)) for _ in range(n)]


def pairs(n: int, seed: int = 0) -> list[Row]:
    generator = random.Random(seed)
    keys = ("prompt", "chosen", "rejected")
    lengths = (9, generator.randint(8, 30), generator.randint(8, 30))
    made = [
        dict(zip(keys, (sentence(generator, k) for k in lengths), strict=True)) for _ in range(n)
    ]
    for row in made:  # neither side is the longer by habit
        if generator.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return made


def found(train: list[Row], valid: list[Row] | None = None, **options: Any) -> list[Finding]:
    linter = Linter(**options)
    for split, rows in (("train", train), ("valid", valid or [])):
        for number, row in enumerate(rows, 1):
            linter.add(parse(row, f"{split}:{number}"), split)  # type: ignore[arg-type]
    return linter.findings()


def checks(findings: list[Finding]) -> list[tuple[str, str, int]]:
    return [(f.check, f.level, f.count) for f in findings]
