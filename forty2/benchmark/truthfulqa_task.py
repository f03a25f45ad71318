"""What the benchmarks over TruthfulQA's questions have in common: which are asked, and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.benchmark.task import Source, Task
from forty2.benchmark.truthfulqa_questions import Questions, choose_questions
from forty2.files import JsonObject

if TYPE_CHECKING:  # a result is read without mlx
    from forty2.model.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class TruthfulQATask(Task[Questions]):
    """A benchmark over TruthfulQA's questions, or a part of them."""

    data: str | Path | None
    """File of questions or `probe`, as for `load_questions`."""
    n: int | None = None
    """Questions to sample, stratified by category; None: all."""
    leave_out: Sequence[str] = ()
    """Categories to leave out, or groups of them, as for `without_categories`."""
    seed: int = 42
    """Seed of the sample."""
    chat_template: bool = False
    """Put the context into one user turn, which is not the published setting."""

    data_key = "questions"
    must_agree = ("chat_template", "leave_out")
    category_key = "category"

    def load(self) -> Questions:
        return choose_questions(self.data, self.leave_out, self.n, self.seed)

    def source(self, questions: Questions) -> Source:
        return Source(questions.name, questions.sha256, len(questions.items))

    def settings(self, questions: Questions, loaded: LoadedModel) -> JsonObject:
        left_out = {"leave_out": list(self.leave_out)} if self.leave_out else {}
        return {"chat_template": self.chat_template, **left_out}
