"""The stages of MyPT's phase 3a, each with validation rows and eval prompts that share nothing with training.

Of echoes and operators, neither a wording nor a payload of validation is trained on; of other questions,
no question.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from forty2.data import library
from forty2.data.build.curriculum.chat_rows import Row, answer, unambiguous, user
from forty2.data.build.curriculum.echo_set import echo, template_names
from forty2.data.build.curriculum.format_lock_set import format_lock
from forty2.data.build.curriculum.held_out import held_out_names, is_held_out, words
from forty2.data.build.curriculum.operators_set import OPERATORS, operators
from forty2.data.splitting import Split
from forty2.files import JsonObject

PROMPTS = 25
"""Most eval prompts of a bucket in one language."""
_SEEDS = (42, 43, 44)
"""Seeds whose validation rows eval prompts are taken from, in this order: one has few of some buckets."""


class _Stage(NamedTuple):
    """A stage's rows, and the bucket of its eval prompts that a category belongs to."""

    rows: Callable[[int], Split]
    buckets: Mapping[str, str]
    others: str | None
    """Bucket of all other categories; None: they are no eval prompts, as their replies have no single form."""


_ECHOES = {**dict.fromkeys(("word", "phrase", "code", "sentence"), "echo"), "anti_echo": "anti"}
STAGES: Mapping[str, _Stage] = {
    "mypt-alpha": _Stage(
        lambda s: _divided(format_lock("minimal", "exclude", s)), {"say": "format"}, "facts"
    ),
    "mypt-beta": _Stage(lambda s: _divided(echo("exclude", None, s)), _ECHOES, "contrast"),
    "mypt-gamma": _Stage(
        lambda s: _divided(echo("only", None, s)), {"gibberish": "gibberish"}, None
    ),
    "mypt-operators": _Stage(operators, dict(zip(OPERATORS, OPERATORS, strict=True)), None),
    "mypt-3a2": _Stage(
        lambda s: _divided(format_lock("full", "include", s)),
        {"arithmetic": "sums", "say": "format"},
        "facts",
    ),
}


def stage(name: str, seed: int) -> Split:
    """Build a stage's training and validation rows."""
    return STAGES[name].rows(seed)


@functools.cache
def stage_prompts(name: str) -> JsonObject:
    """Make a stage's file of eval prompts, as the benchmark's `eval_prompts` reads it, of validation rows."""
    buckets, others = STAGES[name].buckets, STAGES[name].others
    found: dict[str, list[Row]] = {}
    count: Counter[tuple[str, str]] = Counter()
    for row in unambiguous(row for seed in _SEEDS for row in stage(name, seed).valid):
        bucket = buckets.get(row["category"], others)
        if bucket is not None and count[bucket, row["language"]] < PROMPTS:
            count[bucket, row["language"]] += 1
            found.setdefault(bucket, []).append(row)
    named = {f"{b}_{n:02d}": row for b, own in found.items() for n, row in enumerate(own, 1)}
    return {
        "description": f"Prompts of {name} with wordings and contents that are not in training.",
        "form": "user",
        "match": "exact",
        "system_prompt": {key: row["messages"][0]["content"] for key, row in named.items()},
        "prompts": {key: user(row) for key, row in named.items()},
        "expected_outputs": {key: answer(row) for key, row in named.items()},
    }


def _divided(rows: Sequence[Row]) -> Split:
    """Divide rows, without those that are in part of either side and those that the behaviour gates ask."""
    asked = _asked_by_gates()
    wordings = held_out_names(template_names())
    train: list[Row] = []
    valid: list[Row] = []
    for row in rows:
        if words(user(row)) in asked:
            continue
        if "payload" in row:
            held = {row["template"] in wordings, is_held_out(row["payload"])}
        else:
            held = {is_held_out(user(row))}
        if len(held) == 1:
            (valid if True in held else train).append(row)
    return Split(train, valid)


@functools.cache
def _asked_by_gates() -> frozenset[str]:
    """Return what the behaviour gates ask, which nothing is trained on."""
    asked = (*library.rows("heldout/behaviour"), *library.rows("heldout/refusal"))
    return frozenset(words(row["prompt"]) for row in asked)
