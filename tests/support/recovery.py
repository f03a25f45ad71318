"""A failure loop up to its accepted rows, for a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from forty2.failures.builtin.made import WORDS
from forty2.failures.find import FindSettings, find_failures
from forty2.failures.folder import read_half
from forty2.failures.testset import TestsetSettings, make_testset
from support.small_run import make_inputs

SHORT = FindSettings(max_tokens=6, batch_size=4)
RECIPE = """
version: 1
name: arms
max_length: 128
adapter: {rank: 2, layers: 2}
phases:
  sft: {objective: sft, epochs: 8, batch_tokens: 400, lr: 1.0e-2, lint: false, save_every_steps: 1}
benchmark: {n: 2}
"""


class Loop(NamedTuple):
    """Folder of a loop, and what it is tried with."""

    folder: Path
    model: str
    recipe: Path


def question(n: int) -> str:
    """A question that no other number has."""
    return f"{WORDS[n % 11]} {n * n + 7} {WORDS[n % 7]} {n} {WORDS[(3 * n) % 13]}?"


def make_loop(
    folder: Path, inputs: Path | None = None, n: int = 24, *, run: Path | None = None
) -> Loop:
    """Make a test set, find failures and accept rows for both arms.

    Args:
        run: the run whose failures are found; None: those of the model without adapter.
    """
    mx.random.seed(7)  # the model learns to say what the arms teach, whatever it said before
    inputs = inputs or make_inputs(folder.with_name(f"{folder.name}-inputs"))
    rows = [
        {
            "prompt": question(i),
            "verifier": {"kind": "regex", "pattern": "[a-m]" if i % 2 else "e"},
            "stratum": "code" if i % 2 else "other",
        }
        for i in range(n)
    ]
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    strata = {"code": n // 2, "other": n // 2}
    make_testset(folder, TestsetSettings(sources=[str(source)], strata=strata))
    find_failures(folder, str(run or inputs / "model"), settings=SHORT)
    accept(folder, 8, 8)
    recipe = folder.with_name("arms.yaml")
    recipe.write_text(RECIPE, "utf-8")
    return Loop(folder, str(inputs / "model"), recipe)


def accepted_row(arm: str, n: int, reply: str = "easy", **changes: object) -> dict[str, object]:
    """A row as `failures score` accepts it."""
    return {
        "id": f"{arm}-{n}",
        "arm": arm,
        "cluster": 1 if arm == "targeted" else None,
        "stratum": "other",
        "messages": [{"role": "user", "content": f"Say it, {WORDS[n % 11]} number {n} of {arm}."}],
        "reply": reply,
        "verifier": None,
        "reference": None,
        "source": "test",
        "group": n,
        "by": "verifier",
        "score": None,
        **changes,
    }


def write_accepted(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    (folder / "accepted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def accept(folder: Path, targeted: int, random: int) -> None:
    """Accept rows of both arms."""
    rows = [accepted_row("targeted", n) for n in range(targeted)]
    write_accepted(folder, [*rows, *(accepted_row("random", n) for n in range(random))])


def untouched_questions(folder: Path) -> list[str]:
    return [str(item.messages[-1]["content"]) for item in read_half(folder, "untouched")]
