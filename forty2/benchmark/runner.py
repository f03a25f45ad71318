"""The driver of all benchmarks: load, sample, resume, score, summarise, write."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from forty2 import machine
from forty2.benchmark.partial_results import PartialResults, weights
from forty2.benchmark.results import Result
from forty2.benchmark.task import Questions, Report, Task
from forty2.files import JsonObject
from forty2.model.chat_template import TemplateSettings
from forty2.model.loading import LoadedModel, load
from forty2.progress import Progress, bars, draws_bars


@draws_bars
def run(
    task: Task[Any],
    model: str,
    adapter: str | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    template: TemplateSettings | None = None,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> Result:
    """Measure a model, and write the result with every item.

    Args:
        task: the benchmark with its settings.
        model: folder, hub name or `smollm2`.
        adapter: adapter folder, or a run folder.
        out: JSON file to write; until it is complete, scored items are stored beside it.
        resume: go on with a measurement that stopped.
        template: settings of the chat template; None: those that the adapter's run records.
        trust_remote_code: let the model run architecture code that it brings along.

    Raises:
        BenchmarkError: the questions are unusable, or a score is not finite.
        ModelError: the model or adapter cannot be loaded.
    """
    questions = task.load()
    loaded = load(model, adapter, template=template, trust_remote_code=trust_remote_code)
    source = task.source(questions)
    header = {
        "benchmark": task.name,
        "model": model,
        "adapter": adapter,
        f"{task.data_key}_sha256": source.sha256,
        **task.settings(questions, loaded),
        **_template_date(loaded),
        "n": source.n,
        "seed": task.seed,
        "weights": weights(loaded, adapter),
    }
    file = Path(out) if out is not None else None
    with PartialResults.open(file, header, resume=resume) as partial:
        result = measure(
            task,
            questions,
            loaded,
            adapter=adapter,
            partial=partial,
            report=functools.partial(progress, task.name),
        )
        partial.finish(result.to_json())
    return result


def measure(
    task: Task[Questions],
    questions: Questions,
    loaded: LoadedModel,
    *,
    adapter: str | None,
    partial: PartialResults,
    report: Report,
) -> Result:
    """Measure a loaded model on loaded questions.

    Args:
        adapter: name of the adapter that the model carries, for the result.
        partial: holds items that were scored before a stop, and takes new ones.

    Raises:
        BenchmarkError: a score is not finite.
    """
    items = task.items(task.score(loaded, questions, partial, report))
    source = task.source(questions)
    return Result(
        benchmark=task.name,
        model=loaded.name,
        adapter=adapter,
        seed=task.seed,
        data=source.name,
        data_sha256=source.sha256,
        versions=machine.facts(),
        settings={**task.settings(questions, loaded), **_template_date(loaded)},
        figures={**task.notes(questions, items), **task.figures(items)},
        items=items,
    )


def _template_date(loaded: LoadedModel) -> JsonObject:
    """Return the day that the model's chat template takes for today, if it writes the date."""
    date = getattr(loaded.tokenizer, "template_date", None)
    return {} if date is None else {"template_date": date}
