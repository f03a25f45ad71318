"""The course of a PhaseGPT recipe's phases: length, batches, learning rate, evaluations, the best adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from forty2.data.sources import BUILTIN, valid_beside
from forty2.files import JsonObject, is_number
from forty2.recipe.phasegpt.keys import METRICS, PUBLISHED
from forty2.recipe.phasegpt.rows import rows_of
from forty2.recipe.translation import Translator

_HIGHER = {"max": "higher", "min": "lower"}
_MOST_EPOCHS = 10_000
"""Most epochs of a phase, or of a stage of its curriculum."""


def translate_curriculum(translator: Translator, at: str, data: str) -> list[float]:
    """Translate the curriculum; return the share of the rows that each pass uses."""
    section = "training.curriculum_learning"
    stages = translator.take(f"{section}.stages", list, [])
    if not stages or not translator.take(f"{section}.enabled", bool, True):
        return []
    shares: list[float] = []
    for stage in stages:
        epochs, share = (
            (stage.get("epochs", 1), stage.get("data_fraction"))
            if isinstance(stage, dict)
            else (0, 0)
        )
        other = set(stage) - {"name", "epochs", "data_fraction"} if isinstance(stage, dict) else ()
        whole = type(epochs) is int and 1 <= epochs <= _MOST_EPOCHS
        if not whole or not is_number(share) or other:
            translator.report(
                f"{section}.stages",
                f"a stage has a name, whole epochs from 1 to {_MOST_EPOCHS:,} and a data_fraction; got "
                f"{str(stage)[:80]}",
            )
            return []
        shares += [float(share)] * epochs
    by = _order_key(translator, data, f"{section}.stages")
    translator.put(f"{at}.curriculum.by", by, "", "from easy to hard")
    note = "one pass each; the last share is used by all further passes"
    translator.put(f"{at}.curriculum.stages", shares, f"{section}.stages", note)
    return shares


def _order_key(translator: Translator, data: str, path: str) -> str:
    """Choose the row key that says how hard a row is."""
    rows = rows_of(translator, data)
    having = set(rows[0]) if rows else {"order"}
    found = next((key for key in ("order", "difficulty", "complexity") if key in having), None)
    if found is None:
        translator.report(path, f"the rows of {data} have no order, difficulty or complexity")
    return found or "order"


def translate_course(
    translator: Translator,
    at: str,
    section: str,
    data: str,
    rows: list[JsonObject] | None,
    lr: float | None = None,
    shares: Sequence[float] = (),
) -> None:
    """Translate length, batches, learning rate, evaluations and checkpoints of a phase.

    Args:
        lr: learning rate in place of the file's.
        shares: share of the rows that each pass uses; empty: all.
    """

    def setting(key: str, kind: Any) -> tuple[Any, str]:
        for path in dict.fromkeys((f"{section}.{key}", f"training.{key}")):
            if (value := translator.take(path, kind)) is not None:
                return value, path
        return PUBLISHED[key], ""

    def translated(ours: str, key: str, kind: Any) -> Any:
        value, path = setting(key, kind)
        translator.put(f"{at}.{ours}", value, path, "" if path else "as published")
        return value

    epochs, path = setting("num_epochs", float)
    if shares and len(shares) != epochs:
        why = f"{epochs:g} would not be the {len(shares)} epochs of the stages"
        translator.adapt(f"{at}.epochs", len(shares), path or "training.curriculum_learning", why)
        epochs = len(shares)
    else:
        translator.put(f"{at}.epochs", epochs, path, "" if path else "as published")
    size = translated("batch_size", "batch_size", int)
    accumulate = translated("accumulate", "gradient_accumulation_steps", int)
    if lr is not None:
        translator.put(f"{at}.lr", lr, "--lr")
        setting("learning_rate", float)
    else:
        translated("lr", "learning_rate", float)
    translated("weight_decay", "weight_decay", float)
    translated("clip_norm", "max_grad_norm", float)
    schedule, path = setting("lr_scheduler", str)
    translator.put(f"{at}.schedule", schedule, path, "" if path else "as published")
    counts = size >= 1 and accumulate >= 1 and 0 < epochs <= _MOST_EPOCHS
    if not counts:
        translator.report(
            section,
            "batch_size, gradient_accumulation_steps and num_epochs should be above 0, and num_epochs "
            f"at most {_MOST_EPOCHS:,}",
        )
    steps = _count_steps(len(rows), epochs, size, accumulate, shares) if rows and counts else None
    ratio, path = setting("warmup_ratio", float)
    if not 0 <= ratio <= 1:
        translator.report(path, f"should be a share of the steps, from 0 to 1, not {ratio:g}")
    elif steps is not None:
        note = f"{ratio:g} of {steps} steps"
        translator.put(f"{at}.warmup_steps", min(steps, math.ceil(ratio * steps)), path, note)
    elif ratio:
        translator.adapt(f"{at}.warmup_steps", 0, path, "a share of steps that are not counted yet")
    for ours, key in (
        ("eval_every_steps", "eval_interval"),
        ("save_every_steps", "save_steps"),
    ):
        _translate_every(translator, at, ours, f"evaluation.{key}", steps)
    _translate_best(translator, at, data)


def _translate_every(
    translator: Translator, at: str, ours: str, path: str, steps: int | None
) -> None:
    """Translate a number of steps between evaluations or checkpoints, if it is ever reached."""
    every = translator.take(path, int)
    if every is None:
        return
    if steps is not None and every <= steps:
        translator.put(f"{at}.{ours}", every, path)
    elif steps is None:
        translator.adapt(
            f"{at}.{ours}",
            None,
            path,
            f"{every} may be beyond the last step; a fifth of all steps instead",
        )
    else:
        why = f"{every} is beyond the last of {steps} steps and would never come; a fifth of them instead"
        translator.adapt(f"{at}.{ours}", None, path, why)


def _translate_best(translator: Translator, at: str, data: str) -> None:
    """Translate the choice of the best adapter."""
    path = "evaluation.save_best_only"
    if not translator.take(path, bool, False) or at == "phases.sft":
        return
    named = "evaluation.metric_for_best_model"
    metrics = translator.take_values("evaluation.metrics")
    metric = translator.take(named, str) or next((m for m in metrics if m in METRICS), "loss")
    if metric not in METRICS or not METRICS[metric][0]:
        known = ", ".join(name for name, (ours, _) in METRICS.items() if ours)
        translator.report(named, f"{metric!r} cannot choose an adapter; use one of {known}")
        return
    ours, direction = METRICS[metric]
    greater = translator.take("evaluation.greater_is_better", bool)
    if greater is not None and greater != (direction == "max"):
        said = f"{metric} is better {_HIGHER[direction]}; set it to {str(not greater).lower()}"
        translator.report("evaluation.greater_is_better", said)
    if not (data.startswith(BUILTIN) or (data and valid_beside(data))) and ours != "perplexity":
        why = "the last step is kept: without validation rows there is no best one"
        translator.result.left_out[path] = why
        translator.result.adapted.append(f"{path}: {why}")
        return
    best = {"metric": ours, "direction": direction}
    source = named if translator.given(named) is not None else path
    note = f"{metric} is better {_HIGHER[direction]}"
    if metric == "perplexity":
        note += "; the model before training counts, too, and few preferences lower it"
    translator.put(f"{at}.best", best, source, note)


def _count_steps(
    rows: int, epochs: float, size: int, accumulate: int, shares: Sequence[float]
) -> int:
    """Count the optimizer steps of a phase over this many rows."""
    if shares:
        batches = sum(math.ceil(max(1, round(share * rows)) / size) for share in shares)
    else:
        batches = int(epochs) * math.ceil(rows / size)
        if epochs % 1:
            batches += math.ceil(max(1, round(epochs % 1 * rows)) / size)
    return max(1, -(-batches // accumulate))
