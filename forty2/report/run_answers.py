"""What the stages of a run answered, from the items in the run's benchmarks/."""

from __future__ import annotations

from pathlib import Path

from forty2.files import JsonObject
from forty2.report.expectations import in_words
from forty2.report.json_records import read_object, visible
from forty2.report.run_types import HELD_OUT, TRUTHFULQA, Answer, EvalReply, Flip, StageRecord


def fact_answers(folder: Path, stages: list[StageRecord]) -> list[Answer]:
    """Read the answers to plain factual prompts that both the base and the last stage were asked."""
    sides = [
        {item["id"]: item for item in items if "leak" in item}
        for items in _items(folder, _ends(stages), "behaviour")
    ]
    if not sides:
        return []
    first, last = sides
    return [
        Answer(
            prompt=str(item.get("prompt", name)),
            before=str(item["answer"]),
            after=str(last[name]["answer"]),
            before_leaks=bool(item["leak"]),
            after_leaks=bool(last[name]["leak"]),
        )
        for name, item in first.items()
        if name in last
    ]


def own_answers(folder: Path, stages: list[StageRecord]) -> list[Answer]:
    """Read every stage's replies to the run's held-out prompts and eval prompts."""
    if len(stages) < 2 or not all(stage.held_out for stage in stages):
        return []
    by_stage = [
        {(item["kind"], item["prompt"]): item for item in items if "reply" in item}
        for items in _items(folder, stages, HELD_OUT)
    ]
    return [
        Answer(
            prompt=str(key[1]),
            before=str(before["reply"]),
            after=str(by_stage[-1][key]["reply"]),
            between=tuple(
                (stage.name, str(replies[key]["reply"]))
                for stage, replies in zip(stages[1:-1], by_stage[1:-1], strict=True)
            ),
            expected=_expected(before),
        )
        for key, before in by_stage[0].items()
        if all(key in replies for replies in by_stage)
    ]


def _expected(item: JsonObject) -> str:
    """Return the held-out answer, or say what an eval prompt expects."""
    expected = str(item.get("expected", ""))
    return in_words(expected, str(item.get("match", ""))) if "passed" in item else expected


def eval_replies(folder: Path, stages: list[StageRecord]) -> dict[str, list[EvalReply]]:
    """Read every stage's replies to the run's eval prompts; empty: none were measured."""
    if not all(stage.held_out for stage in stages):
        return {}
    found = {
        stage.name: [
            EvalReply(
                prompt=str(item["prompt"]),
                expected=str(item["expected"]),
                reply=str(item["reply"]),
                passed=bool(item["passed"]),
                broken=bool(item.get("broken")),
                tags={str(tag): bool(there) for tag, there in item.get("tags", {}).items()},
                match=str(item.get("match", "")),
            )
            for item in items
            if "passed" in item
        ]
        for stage, items in zip(stages, _items(folder, stages, HELD_OUT), strict=True)
    }
    return found if any(found.values()) else {}


def flips(folder: Path, stages: list[StageRecord]) -> list[Flip]:
    """Find the questions whose MC1 differs between the base and the last stage."""
    sides = [
        {
            str(item["question"]): (str(item.get("category", "")), float(item["scores"]["mc1"]))
            for item in items
            if "mc1" in item.get("scores", {})
        }
        for items in _items(folder, _ends(stages), TRUTHFULQA)
    ]
    if not sides:
        return []
    before, after = sides
    return [
        Flip(question, category, now_right=after[question][1] > score)
        for question, (category, score) in before.items()
        if question in after and after[question][1] != score
    ]


def _ends(stages: list[StageRecord]) -> list[StageRecord]:
    """Return the base and the last stage; empty: there are no two stages."""
    return [stages[0], stages[-1]] if len(stages) > 1 else []


def _items(folder: Path, stages: list[StageRecord], benchmark: str) -> list[list[JsonObject]]:
    """Read a benchmark's items of each of these stages."""
    # Looked up among existing files: a stage's name must not lead to another folder.
    files = {visible(path.stem): path for path in (folder / "benchmarks").glob("*.json")}
    return [
        read_object(files[stage.name.replace(" ", "-")]).get(benchmark, {}).get("items", [])
        for stage in stages
    ]
