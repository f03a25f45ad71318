"""What teaching costs elsewhere: in the recipe's benchmarks, plain facts and neutral text, over the seeds.

An arm is compared with the model as it was. Where that has an adapter, it is measured once, beside the
base that every run measures: what its adapter had cost before is no cost of the arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.failures.arms_recipe import FailingModel
from forty2.files import write_sealed
from forty2.progress import Progress, silent
from forty2.recipe.schema import Recipe

if TYPE_CHECKING:
    from forty2.benchmark.results import Stage
    from forty2.benchmark.verdict import CostChange
    from forty2.model.chat_template import TemplateSettings

AS_IT_WAS = "as it was"
"""The stage of the model that the arms begin with."""
MEASURED = "none-elsewhere.json"


def measure_as_it_was(
    folder: Path,
    recipe: Recipe,
    model: FailingModel,
    template: TemplateSettings | None,
    *,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Stage | None:
    """Measure the model with its adapter as the arms' runs measure theirs; None: it has none.

    Args:
        folder: where the measurement is stored, or read back from.
        recipe: that of the arms, with its questions.
        template: chat template of the arms.

    Raises:
        BenchmarkError: questions are unusable.
    """
    from forty2.benchmark.partial_results import PartialResults
    from forty2.benchmark.stages import load_measurement, measure, read_stage
    from forty2.benchmark.tasks.divergence import base_of
    from forty2.model.loading import load, model_sha256
    from forty2.recipe.tags import tag_settings, with_tags

    if model.adapter is None:
        return None
    file = folder / MEASURED
    if file.exists():
        return read_stage(file)
    measurement = load_measurement(recipe.benchmark, recipe.seed)
    base = load(
        recipe.model,
        template=template,
        tags=tag_settings(recipe),
        trust_remote_code=trust_remote_code,
    )
    key = with_tags(model_sha256(base.path), recipe)
    logps = base_of(base, key, measurement.n, progress)
    loaded = load(model.name, model.adapter, template=template, trust_remote_code=trust_remote_code)
    with PartialResults.open(file, measurement.settings(AS_IT_WAS), resume=True) as partial:
        stage = measure(
            loaded,
            measurement,
            logps,
            stage=AS_IT_WAS,
            adapter=model.adapter,
            partial=partial,
            progress=progress,
        )
        partial.finish(stage.to_json(), write_sealed)
    return stage


def costs_elsewhere(
    before: Sequence[Stage], after: Sequence[Stage], recipe: Recipe
) -> tuple[CostChange, ...]:
    """Judge the loss in general of an arm over its seeds, by the recipe's margins.

    All that the recipe's benchmarks measure counts: what the arms are taught for is measured apart.
    """
    from forty2.runs.seed_statistics import costs_over_seeds

    assert recipe.benchmark is not None
    return costs_over_seeds(before, after, recipe.benchmark)
