"""The rest of a PhaseGPT recipe: what is measured, and where a run is written and sent."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from forty2.recipe.phasegpt.keys import LEFT_OUT, METRICS
from forty2.recipe.translation import Folders, Translator

_LONGEST_NAME = 200
"""Most letters of a run's name, which is a file's too."""


def translate_metrics(translator: Translator) -> None:
    """Translate what is measured, and refuse metrics that are not of this schema."""
    path = "evaluation.metrics"
    metrics = translator.take_values(path)
    for name in metrics:
        if name not in METRICS:
            close = difflib.get_close_matches(str(name), list(METRICS), 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(METRICS)}"
            translator.report(path, f"{name!r} is no metric of this schema{hint}")
    style = any(name in ("spiral_score", "subtlety") for name in metrics)
    note = "these; held-out rows, perplexity of neutral text and KL are measured in any case"
    translator.put("benchmark", {"tasks": ["reply_style"] if style else []}, path, note)


def translate_tracker(translator: Translator) -> None:
    """Translate where the metrics are sent."""
    path = "logging.use_wandb"
    if not translator.take(path, bool, False):
        return
    if importlib.util.find_spec("wandb") is None:
        why = "W&B is not installed (pip install 'forty2[track]'); metrics.jsonl has every metric"
        translator.result.left_out[path] = why
        translator.result.adapted.append(f"{path}: {why}")
        return
    translator.put("report_to", ["wandb"], path)
    if translator.take("logging.wandb_project", str):
        translator.put(
            "project", translator.given("logging.wandb_project"), "logging.wandb_project"
        )


def folders_of(
    translator: Translator, kto: bool, lr: float | None, kl_weight: float | None
) -> Folders:
    """Return the folders of the run: those of the schema, by track and name."""
    out = translator.take("logging.output_dir", str)
    named = translator.take("logging.wandb_run_name", str)
    two = "sft" in translator.result.document.tree.get("phases", {})
    track = re.search(r"track_([a-z])\b", out or "")
    letter = track[1] if track else "c" if two else "b" if kto else "a"
    run = Path(out).name if out else named or Path(translator.theirs.place).stem
    if kl_weight is not None:
        run = f"{re.sub(r'_?lambda[0-9.]+$', '', run)}_lambda{kl_weight:g}"
    if lr is not None:
        run += f"_lr{lr:g}"
    run = re.sub(r"[^A-Za-z0-9_.-]+", "-", run).lstrip(".")[:_LONGEST_NAME] or "run"
    place = Path("v14") / f"track_{letter}"
    parent = Path(out).parent if out else "checkpoints" / place
    for path in ("logging.output_dir", "logging.wandb_run_name"):
        translator.leave_out(path, f"the run is in {parent / run}")
    return Folders(
        parent / run, "experiments" / place / f"{run}.log", "results" / place / f"{run}.json"
    )


def account_for_rest(translator: Translator) -> None:
    """Account for every key that nothing has read."""
    for path in ("model.deepspeed_config", "training.deepspeed_config", "training.distributed"):
        value = translator.given(path)
        if value and not (isinstance(value, dict) and value.get("enabled") is False):
            translator.result.adapted.append(f"{path}: {LEFT_OUT[path]}")
    translator.account_for_rest()
