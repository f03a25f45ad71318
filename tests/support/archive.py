"""Run folders for tests of the archive, by the package's own writers and without training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from forty2.benchmark import metrics
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.tasks import gsm8k, task_class
from forty2.files import read_json, seal, write_json, write_sealed
from forty2.inference.generation import Reply

OLD = Path(__file__).parents[1] / "old_runs" / "sealed"


def make_run(folder: Path, *, mc1: float | None = None, **changes: Any) -> Path:
    """Write a run that stopped in its second phase; with `mc1`, one that ended and was measured.

    Args:
        changes: of run.json.
    """
    shutil.copytree(OLD, folder)
    about = read_json(folder / "run.json")
    write_json(folder / "run.json", {**about, "name": folder.name, **changes})
    if mc1 is not None:
        finish_run(folder, mc1)
    return folder


def finish_run(run: Path, mc1: float) -> None:
    """Write what a run of two phases that measures and fuses ends with."""
    shutil.copytree(run / "phase1_sft", run / "phase2_dpo")
    for phase in ("phase1_sft", "phase2_dpo"):
        seal(run / phase)
    with (run / "recipe.yaml").open("a") as file:
        file.write("benchmark:\n  n: 40\n")
    stages = {"base": 0.3, "phase1_sft": 0.35, "fused": mc1}
    write_json(
        run / "summary.json",
        {
            "verdict": "gain",
            "margin": 0.01,
            "questions": "ours",
            "n": 40,
            "stages": [
                {"stage": name, "mc1": value, "perplexity": 10 / value, "tasks": {"sums": value}}
                for name, value in stages.items()
            ],
            "comparisons": [],
        },
    )
    for name, value in stages.items():
        write_sealed(run / "benchmarks" / f"{name}.json", measured_stage(name, value).to_json())
    fused = run.parent / "fused_models" / run.name
    write_json(fused / "fused.json", {"adapter": str(run / "phase2_dpo")})
    record = {"path": str(fused), "parity_kl": 0.0, "adapter_kl": 0.1, "quantised": None}
    write_json(run / "fused.json", record)


def measured_stage(name: str, right: float, questions: int = 40) -> Stage:
    """Make a stage with this share of right answers: TruthfulQA, and sums with their replies."""
    good = int(right * questions)
    rows = [
        {
            "question": f"Question {n}?",
            "category": "all",
            "mc1": {"loglik": [float(n < good), 0.5], "labels": [1, 0]},
            "mc2": {"loglik": [float(n < good), 0.5], "labels": [1, 0]},
        }
        for n in range(questions)
    ]
    values = [metrics.item_metrics(row) for row in rows]
    means = {key: float(np.mean([v[key] for v in values])) for key in metrics.METRICS}
    asked = [gsm8k.Problem(f"How many is {n}?", f"#### {n}", n) for n in range(questions)]
    replies = [f"It is {p.number if p.number < good else -1}." for p in asked]
    sums = [
        gsm8k.judged(problem, Reply(text=text, tokens=3, stopped=True))
        for problem, text in zip(asked, replies, strict=True)
    ]
    task = task_class("gsm8k")
    items = task.items(sums)
    found = {
        "truthfulqa": {"questions": "ours", **means, "items": rows},
        "gsm8k": {**task.figures(items), "items": task.items_to_json(items)},
    }
    about = {"model": "m", "adapter": None}
    results = {key: Result.from_json({**about, **one}, key, key) for key, one in found.items()}
    return Stage(name, results)
