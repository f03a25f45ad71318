"""What runs of several seeds have in common: their questions, and the measurement of the base."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from forty2.benchmark.recipe_tasks import Loaded, load_task, load_tasks
from forty2.benchmark.truthfulqa_questions import Question
from forty2.errors import RecipeError, RunError
from forty2.files import (
    JsonObject,
    read_json,
    read_sealed,
    staged_folder,
    write_json,
    write_sealed,
)
from forty2.model.adapter import TEMPLATE
from forty2.progress import Progress
from forty2.recipe.places import changed
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Recipe
from forty2.runs.folder import RunFolder
from forty2.runs.records import Provenance

BASE = Path("benchmarks") / "base.json"
DRAWN_ONCE = "truthfulqa"
"""The task whose questions are drawn once for all seeds."""
PROVENANCE = "provenance.json"
"""Copy of a run's run.json: a folder with run.json would be listed as a run."""


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that give no interval.

    Raises:
        RunError: there are fewer than two, one is there twice, or one is out of range.
    """
    if len(set(seeds)) < max(2, len(seeds)) or not all(0 <= seed < 2**31 for seed in seeds):
        raise RunError(
            f"seeds {', '.join(map(str, seeds))}: give two or more that differ, from 0 on; one says "
            "nothing about how much another would change"
        )


def check_draws(recipe: Recipe, seeds: Sequence[int]) -> None:
    """Refuse benchmarks that would ask each seed other questions, which cannot be paired.

    Raises:
        RecipeError: a benchmark draws a part of its questions with the seed.
    """
    if recipe.benchmark is None:
        return
    drawn = [_texts(load_tasks(recipe.benchmark, seed)) for seed in seeds]
    for name, texts in drawn[0].items():
        if any(one[name] != texts for one in drawn[1:]):
            raise RecipeError(
                f"{recipe.name}: benchmark.tasks: {name}: each seed draws other questions; leave out n, "
                "or name data with as many questions as are to be asked"
            )


def _texts(tasks: Mapping[str, Loaded]) -> dict[str, object]:
    return {
        name: task.question_texts(questions)
        for name, (task, questions) in tasks.items()
        if name != DRAWN_ONCE
    }


def with_same_questions(recipe: Recipe, out: Path) -> tuple[Recipe, JsonObject | None]:
    """Return the recipe with the same TruthfulQA questions for every seed, and their description.

    A run draws its questions with its own seed. So the questions that the recipe's seed draws are
    written to a file in `out`, and every run asks all of that file.

    Returns:
        The description is None if the recipe does not ask them.

    Raises:
        RunError: the file there holds other questions.
    """
    tasks = recipe.benchmark.tasks if recipe.benchmark is not None else []
    entry = next((entry for entry in tasks if entry.task == DRAWN_ONCE), None)
    if entry is None or recipe.benchmark is None:
        return recipe, None
    drawn = load_task(entry, recipe.benchmark, recipe.seed).questions
    described = {"name": drawn.name, "sha256": drawn.sha256, "n": len(drawn.items)}
    if (entry.n or recipe.benchmark.n) != len(drawn.items):
        return recipe, described  # every seed draws all questions
    file = out.resolve() / "questions.json"
    questions = [_question(item) for item in drawn.items]
    if not file.exists():
        write_json(file, questions)
    elif read_json(file) != questions:
        raise RunError(
            f"{file}: holds other questions than {recipe.name} draws now; go on with the recipe that "
            "these runs started with, or name another `out`"
        )
    tasks = [dataclasses.replace(one, data=None) if one is entry else one for one in tasks]
    benchmark = dataclasses.replace(recipe.benchmark, questions=str(file), tasks=tasks)
    return changed(recipe, benchmark=benchmark), {
        **described,
        "drawn_with": recipe.seed,
    }


def _question(item: Question) -> JsonObject:
    return {
        "question": item.question,
        "category": item.category,
        **{
            f"{name}_targets": {"choices": list(options.choices), "labels": list(options.labels)}
            for name, options in (("mc1", item.mc1), ("mc2", item.mc2))
        },
    }


def begin_with_base(path: Path, recipe: Recipe, first: Path) -> None:
    """Start a run folder with another run's measurement of the base: same weights and questions.

    The chat template then takes the same day for today, too. If the weights have changed since, the
    run refuses to go on from here.

    Args:
        first: folder of the other run, or of a copy of these files of it, see `keep_base`.
    """
    if any((path / BASE).parent.glob("*")):  # it has begun to measure, or has this measurement
        return
    copied = first / PROVENANCE
    record = copied if copied.exists() else first / "run.json"
    provenance = Provenance.from_json(read_json(record))
    with RunFolder.open(path, to_yaml(recipe, path), provenance, resume=False):
        shutil.copyfile(first / TEMPLATE, path / TEMPLATE)
        write_sealed(path / BASE, read_sealed(first / BASE))


def keep_base(run: Path, copy: Path) -> None:
    """Copy what other runs need to begin with a run's measurement of the base; no run themselves."""
    with staged_folder(copy) as staged:
        for file, name in (("run.json", PROVENANCE), (TEMPLATE, TEMPLATE), (BASE, BASE)):
            (staged / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run / file, staged / name)


def prefixed(progress: Progress, run_name: str) -> Progress:
    """Make progress whose stages begin with the run's name."""

    def report(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if "heading" in info:
            info = {"heading": f"{run_name}, {info['heading']}"}
        progress(f"{run_name}: {stage}", done, total, info)

    return report
