"""The hand-written material: isotopes, facts, myths, invented things, and held-out prompts.

Nothing under `heldout/` is ever trained on: it is for measuring.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from forty2.files import JsonObject


@cache
def rows(name: str) -> tuple[JsonObject, ...]:
    """Return the rows of `NAME.jsonl` in the library; the name has `/` between folders."""
    file = resources.files(__package__).joinpath(*f"{name}.jsonl".split("/"))
    return tuple(json.loads(line) for line in file.read_text("utf-8").splitlines() if line)


@cache
def material(name: str) -> JsonObject:
    """Return the object in `NAME.json` in the library; the name has `/` between folders."""
    file = resources.files(__package__).joinpath(*f"{name}.json".split("/"))
    return dict(json.loads(file.read_text("utf-8")))


@cache
def isotopes() -> tuple[JsonObject, ...]:
    """Return every isotope, in the order of element and id."""
    folder = resources.files(__package__) / "isotopes"
    names = sorted(
        p.name.removesuffix(".jsonl") for p in folder.iterdir() if p.name.endswith(".jsonl")
    )
    return tuple(row for name in names for row in rows(f"isotopes/{name}"))


@cache
def neutral_texts() -> dict[str, str]:
    """Return plain expository prose by title, to measure perplexity and parity on."""
    folder = resources.files(__package__) / "heldout" / "neutral"
    files = sorted((p for p in folder.iterdir() if p.name.endswith(".txt")), key=lambda p: p.name)
    return {p.name.removesuffix(".txt"): p.read_text("utf-8").strip() for p in files}
