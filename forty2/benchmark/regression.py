"""The regression suite of a run: the eval prompts of all its phases, at every stage, by bucket.

The held-out measurement asks them all at each stage; here they are put side by side, so that a phase
which forgets what an earlier one taught is found by the bucket that it lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.benchmark.eval_prompt_files import bucket_of
from forty2.benchmark.results import Stage
from forty2.files import JsonObject

_TASK = "held_out"


class Bucket(NamedTuple):
    """A bucket of eval prompts over the stages of a run."""

    name: str
    """Its name; after that of its file, if the run has several files of prompts."""
    n: int
    shares: dict[str, float]
    """Share of its prompts that passed at each stage, in order."""
    best: str
    """The first stage before the last at which most of them passed."""
    forgotten: int
    """Prompts that passed at that stage and fail at the last one."""

    def to_json(self) -> JsonObject:
        return self._asdict()


def buckets(stages: Sequence[Stage]) -> list[Bucket]:
    """List the buckets of a run's eval prompts; empty: none were measured, or at one stage alone."""
    passed = [_passed(stage) for stage in stages]
    if len(stages) < 2 or not all(passed):
        return []
    files = {file for file, _ in passed[0]}
    members: dict[str, list[tuple[str, str]]] = {}
    for file, prompt in passed[0]:
        name = bucket_of(prompt)
        members.setdefault(f"{Path(file).stem}: {name}" if len(files) > 1 else name, []).append(
            (file, prompt)
        )
    listed = []
    for name, prompts in members.items():
        counts = [sum(at[prompt] for prompt in prompts) for at in passed]
        best = counts.index(max(counts[:-1]))
        lost = sum(passed[best][prompt] and not passed[-1][prompt] for prompt in prompts)
        shares = {
            stage.name: count / len(prompts) for stage, count in zip(stages, counts, strict=True)
        }
        listed.append(Bucket(name, len(prompts), shares, stages[best].name, lost))
    return listed


def bucket_cells(stages: Sequence[Stage]) -> list[list[str]]:
    """Return the cells of the table of the buckets, its head first; empty: there are none."""
    listed = buckets(stages)
    if not listed:
        return []
    return [
        ["eval prompts", "n", *(stage.name for stage in stages), "forgotten"],
        *(
            [
                bucket.name,
                str(bucket.n),
                *(f"{share:.0%}" for share in bucket.shares.values()),
                _lost(bucket),
            ]
            for bucket in listed
        ),
    ]


def _lost(bucket: Bucket) -> str:
    return f"{bucket.forgotten} since {bucket.best}" if bucket.forgotten else "0"


def _passed(stage: Stage) -> dict[tuple[str, str], bool]:
    """Return whether each eval prompt passed at a stage, by its file and id."""
    if _TASK not in stage.results:
        return {}
    records = (item.record for item in stage[_TASK].items)
    return {
        (str(record["file"]), str(record["id"])): bool(record["passed"])
        for record in records
        if record["kind"] == "prompt"
    }
