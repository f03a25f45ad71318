"""TruthfulQA by our own scorer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], object]:
    from forty2.benchmark.tasks.truthfulqa import score
    from forty2.benchmark.truthfulqa_questions import Options, Question, Questions
    from forty2.model import cpu_kernels
    from forty2.model.loading import load_tokenizer

    model, tokenizer = job.load_model(), load_tokenizer(job.model)
    items = tuple(
        Question(
            row["question"],
            "all",
            *(Options(tuple(texts), (0,) * len(texts)) for texts in (row["mc1"], row["mc2"])),
        )
        for row in job.inputs.questions
    )
    cpu_kernels.install()  # as loading through forty2 does
    return lambda: score(model, tokenizer, Questions(items, "", "rows", None))
