"""Folders of the failure loop with planted topics, one of which a model fails."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.failures.folder import Half, Item, halves_sha256, json_line, write_testset

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
    half: Half = "find"


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
    groups: dict[str, int] = {}
    items = [
        Item(
            id=row.id,
            stratum=row.stratum,
            messages=(
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": row.text},
            ),
            verifier=None,
            reference=None,
            half=row.half,
            group=groups.setdefault(row.text, len(groups)),
            source="planted",
        )
        for row in rows
    ]
    write_testset(folder, items, {"sha256": halves_sha256(items)})
    verdicts = {row.id: row.verdict for row in rows if row.verdict and row.half == "find"}
    verdicts |= dict(more_verdicts or {})
    write_verdicts(folder, verdicts)
    return folder


def write_verdicts(folder: Path, verdicts: Mapping[str, str]) -> None:
    """Write one verdict an item."""
    lines = [
        json_line({"id": name, "verdict": verdict, "by": "judge", "score": None, "reason": ""})
        for name, verdict in verdicts.items()
    ]
    (folder / "verdicts.jsonl").write_bytes(b"".join(lines))
