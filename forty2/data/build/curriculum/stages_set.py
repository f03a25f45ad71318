"""The four stages of MyPT's phase 3a, each with validation rows and eval prompts that share nothing with training.

Of echoes, neither a wording nor a payload of validation is trained on; of other questions, no question.
What is held out depends on the text alone and not on the seed, so the prompts are unseen by every run.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from forty2.data import library
from forty2.data.build.curriculum.chat_rows import Row, answer, user
from forty2.data.build.curriculum.echo_set import echo
from forty2.data.build.curriculum.format_lock_set import format_lock
from forty2.data.splitting import Split
from forty2.files import JsonObject

_ONE_IN = 6
"""A sixth of the wordings, payloads and questions is held out."""
_WORD = re.compile(r"\w+")
PROMPTS = 50
"""Most eval prompts of a bucket."""


class _Stage(NamedTuple):
    """A stage's rows, and the bucket of its eval prompts that a category belongs to."""

    rows: Callable[[int], list[Row]]
    buckets: Mapping[str, str]
    others: str | None
    """Bucket of all other categories; None: they are no eval prompts, as their replies have no single form."""


_ECHOES = {**dict.fromkeys(("word", "phrase", "code", "sentence"), "echo"), "anti_echo": "anti"}
STAGES: Mapping[str, _Stage] = {
    "mypt-alpha": _Stage(
        lambda s: format_lock("minimal", "exclude", s), {"say": "format"}, "facts"
    ),
    "mypt-beta": _Stage(lambda s: echo("exclude", None, s), _ECHOES, "contrast"),
    "mypt-gamma": _Stage(lambda s: echo("only", None, s), {"gibberish": "gibberish"}, None),
    "mypt-3a2": _Stage(
        lambda s: format_lock("full", "include", s),
        {"arithmetic": "sums", "say": "format"},
        "facts",
    ),
}


def stage(name: str, seed: int) -> Split:
    """Build a stage's training and validation rows."""
    asked = _held_out_questions()
    rows = [row for row in STAGES[name].rows(seed) if _words(user(row)) not in asked]
    sides = [_held_out(row) for row in rows]
    return Split(
        [row for row, held in zip(rows, sides, strict=True) if not any(held)],
        [row for row, held in zip(rows, sides, strict=True) if all(held)],
    )


@functools.cache
def stage_prompts(name: str) -> JsonObject:
    """Make a stage's file of eval prompts, as the benchmark's `eval_prompts` reads it, of validation rows."""
    buckets, others = STAGES[name].buckets, STAGES[name].others
    found: dict[str, list[Row]] = {}
    for row in stage(name, 42).valid:
        bucket = buckets.get(row["category"], others)
        if bucket is not None and len(found.setdefault(bucket, [])) < PROMPTS:
            found[bucket].append(row)
    named = {f"{b}_{n:02d}": row for b, own in found.items() for n, row in enumerate(own, 1)}
    return {
        "description": f"Prompts of {name} with wordings and contents that are not in training.",
        "form": "user",
        "match": "exact",
        "system_prompt": {key: row["messages"][0]["content"] for key, row in named.items()},
        "prompts": {key: user(row) for key, row in named.items()},
        "expected_outputs": {key: answer(row) for key, row in named.items()},
    }


def _held_out(row: Row) -> Sequence[bool]:
    """Return for each part of a row whether it is held out: wording and payload, or the question."""
    parts = [row["template"], row["payload"]] if "payload" in row else [user(row)]
    return [_digest(part) % _ONE_IN == 0 for part in parts]


@functools.cache
def _held_out_questions() -> frozenset[str]:
    """Return what the behaviour gates ask, which nothing is trained on."""
    asked = (*library.rows("heldout/behaviour"), *library.rows("heldout/refusal"))
    return frozenset(_words(row["prompt"]) for row in asked)


def _digest(text: str) -> int:
    """Hash a text; texts that differ in case, punctuation or white space alone have the same hash."""
    return int.from_bytes(hashlib.blake2b(_words(text).encode(), digest_size=8).digest())


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
