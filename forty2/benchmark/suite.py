"""Everything that a run measures of one model, and the table of all its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from forty2.benchmark.compare import compare
from forty2.benchmark.metrics import means_of
from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.questions import Questions, load_questions, sample
from forty2.benchmark.tasks.behaviour import behaviour
from forty2.benchmark.tasks.divergence import Base, divergence
from forty2.benchmark.tasks.perplexity import perplexity
from forty2.benchmark.tasks.truthfulqa import result, score
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent
from forty2.recipe.schema import Benchmark


def questions_of(benchmark: Benchmark, seed: int) -> Questions:
    """The same questions for every stage of a run."""
    questions = load_questions(benchmark.questions)
    if benchmark.n is not None and benchmark.n < len(questions.items):
        questions = sample(questions, benchmark.n, seed)
    return questions


def measure(
    loaded: LoadedModel,
    questions: Questions,
    n: int | None,
    base: Base,
    *,
    adapter: str | None,
    seed: int,
    stage: str,
    kept: PartialResults,
    progress: Progress = silent,
) -> dict[str, Any]:
    """TruthfulQA, behaviour gates, neutral perplexity and KL from the base, of one model.

    Args:
        kept: where TruthfulQA's items are as they come.
    """

    def watch(done: int, total: int) -> None:
        progress(f"{stage}: truthfulqa", done, total, {})

    items = score(loaded.model, loaded.tokenizer, questions, progress=watch, kept=kept)
    return {
        "stage": stage,
        "truthfulqa": result(items, questions, model=loaded.name, adapter=adapter, seed=seed),
        "behaviour": behaviour(loaded, n, progress=progress, stage=f"{stage}: behaviour"),
        "perplexity": perplexity(loaded, n=n),
        "divergence": divergence(loaded, base),
    }


class Line(NamedTuple):
    """One stage in the table."""

    stage: str
    mc1: float
    mc2: float
    leak_rate: float
    preference: float
    margin: float
    perplexity: float
    kl: float
    """From the base, nats a token."""


def line(measured: Mapping[str, Any]) -> Line:
    """The figures of one stage."""
    truthfulqa, gates = measured["truthfulqa"], measured["behaviour"]
    return Line(
        measured["stage"],
        truthfulqa["mc1"],
        truthfulqa["mc2"],
        gates["leak_rate"],
        gates["preference"]["all"],
        gates["margin"]["all"],
        measured["perplexity"]["perplexity"],
        measured["divergence"]["kl"],
    )


def table(stages: Sequence[Mapping[str, Any]]) -> str:
    """The stages of a run as text.

    Leak rate, preference and margin are on held-out prompts, KL is from the base, a token.
    """
    head = f"{'stage':<16}{'MC1':>8}{'MC2':>8}{'leaks':>8}{'prefers':>9}{'margin':>9}{'perplexity':>12}{'KL':>10}"
    lines = [head, "-" * len(head)]
    for one in map(line, stages):
        lines.append(
            f"{one.stage:<16}{one.mc1:>8.3f}{one.mc2:>8.3f}{one.leak_rate:>8.1%}"
            f"{one.preference:>9.1%}{one.margin:>9.3f}{one.perplexity:>12.2f}{one.kl:>10.2g}"
        )
    return "\n".join(lines)


def without_contaminated(
    found: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]], margin: float
) -> dict[str, Any]:
    """How much of the benchmark was trained on, and the comparisons once more without it.

    Args:
        found: training rows and the places of the questions they hold.
        stages: measurements, the base's first.
    """
    held = {hit["item"] for hit in found}
    clean = []
    for stage in stages:
        items = [i for n, i in enumerate(stage["truthfulqa"]["items"]) if n not in held]
        kept = {**stage["truthfulqa"], **means_of(items), "items": items, "n": len(items)}
        clean.append({**stage, "truthfulqa": kept})
    again = []
    if held and len(clean[0]["truthfulqa"]["items"]) > 1:
        again = [
            {"stage": stage["stage"], **compare(clean[0], one, margin=margin).record()}
            for stage, one in zip(stages[1:], clean[1:], strict=True)
        ]
    return {
        "rows": len({hit["row"] for hit in found}),
        "questions": len(held),
        "comparisons": again,
    }
