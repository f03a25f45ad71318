"""Our TruthfulQA. Rows: question, context, and the options of MC1 and MC2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], object]:
    from forty2.benchmark.tasks.truthfulqa import score
    from forty2.benchmark.truthfulqa_questions import Options, Question, Questions
    from forty2.model.loading import load_tokenizer

    model, tokenizer = job.loaded(), load_tokenizer(job.model)
    items = tuple(
        Question(
            row["question"],
            "all",
            *(Options(tuple(row[kind]), (0,) * len(row[kind])) for kind in ("mc1", "mc2")),
        )
        for row in job.rows
    )
    return lambda: score(model, tokenizer, Questions(items, "", "rows", None))
