"""TruthfulQA by mlx-lm's evaluator under lm-evaluation-harness."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.speed.workers.__main__ import Job


def prepare(job: Job) -> Callable[[], object]:
    import mlx.core as mx
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from mlx_lm.evaluate import MLXLM

    model = MLXLM(job.model, use_chat_template=False)
    model._model.set_dtype(getattr(mx, job.dtype))

    def epoch() -> object:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = folder / "rows.jsonl"
            rows.write_text("".join(json.dumps(row) + "\n" for row in job.inputs.questions))
            for kind in ("mc1", "mc2"):
                (folder / f"{kind}.yaml").write_text(_task_file(kind, rows))
            manager = TaskManager(include_path=name, include_defaults=False)
            return simple_evaluate(
                model, tasks=["mc1", "mc2"], task_manager=manager, bootstrap_iters=0
            )

    return epoch


def _task_file(kind: str, rows: Path) -> str:
    """Define a task on local rows, in JSON, which is YAML too."""
    task = {
        "task": kind,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(rows)}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "num_fewshot": 0,
        "doc_to_text": "{{context}}",
        "doc_to_target": 0,
        "doc_to_choice": "{{" + kind + "}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    return json.dumps(task)
