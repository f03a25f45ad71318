"""Folders of the failure loop with planted topics, one of which a model fails."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TOWNS = ("Bern", "Oslo", "Lima", "Kyoto", "Accra", "Quito", "Riga", "Hanoi", "Porto", "Tunis")
DISHES = ("lentil soup", "apple pie", "fried rice", "pancakes", "goulash", "tomato salad")
TASKS = ("reverses a list", "sorts numbers", "counts vowels", "merges two dictionaries")
TOPICS = ("trains", "cooking", "code", "capitals")


class Planted(NamedTuple):
    """One item to be written."""

    id: str
    stratum: str
    text: str
    verdict: str = "pass"
    half: str = "find"


def topic_text(topic: str, rng: random.Random) -> str:
    """Return a text of one topic."""
    start, end = rng.sample(TOWNS, 2)
    match topic:
        case "trains":
            return (
                f"A train travels {rng.randint(50, 900)} km from {start} to {end} at "
                f"{rng.randint(40, 200)} km/h. How many hours does the journey take?"
            )
        case "cooking":
            return f"Which ingredients do I need to cook {rng.choice(DISHES)} for {rng.randint(2, 9)} guests?"
        case "code":
            return f"Write a Python function that {rng.choice(TASKS)} and name it f{rng.randint(1, 999)}."
    return f"Name {rng.randint(2, 9)} famous museums and monuments in the city of {start}."


def planted(each: int, failing: str | None = "trains", seed: int = 1) -> list[Planted]:
    """Return items of four topics; those of one mostly fail."""
    rng = random.Random(seed)
    rows = []
    for topic in TOPICS:
        for n in range(each):
            failed = rng.random() < (0.8 if topic == failing else 0.1)
            verdict = "fail" if failed and failing is not None else "pass"
            rows.append(Planted(f"{topic}-{n:03d}", topic, topic_text(topic, rng), verdict))
    return rows


def write_folder(
    folder: Path, rows: Sequence[Planted], more_verdicts: Mapping[str, str] | None = None
) -> Path:
    """Write the files that `failures testset` and `failures find` leave."""
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        {
            "id": row.id,
            "stratum": row.stratum,
            "messages": [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": row.text},
            ],
            "half": row.half,
        }
        for row in rows
    ]
    verdicts = {row.id: row.verdict for row in rows if row.verdict} | dict(more_verdicts or {})
    lines = [{"id": name, "verdict": verdict} for name, verdict in verdicts.items()]
    for name, values in (("testset.jsonl", items), ("verdicts.jsonl", lines)):
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        (folder / name).write_text(text, "utf-8")
    return folder
