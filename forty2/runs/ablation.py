"""Ablation: the gain and the cost of each phase of a recipe, over several seeds.

For each seed there are two runs of the ordinary kind, in OUT/seedN: `full`, which measures the base
and the model after every phase, and one of the first preference phase alone (`dpo-only`). All are
measured on the same questions, drawn with the recipe's own seed; the base is measured once. A run
that stopped continues, `forty2 report` works on each, and seeds can be added later. Of doses, the
runs are those of `doses`.

A seed chooses the adapter's first weights, the order of the rows, and the rows drawn for the
built-in sets. Every figure has an interval over seeds and items, and every change is paired: same
seed, same item. Of the held-out rows those count that both sides of a change have. A change is judged
by benefit and cost, as a run is.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forty2.benchmark.results import Stage
from forty2.benchmark.stats import (
    LEVEL,
    RESAMPLES,
    SEED,
    Values,
    unchanged,
)
from forty2.errors import RecipeError, RunError
from forty2.files import JsonObject, read_json, staged_folder, write_json
from forty2.progress import Progress, bars, draws_bars
from forty2.recipe.places import changed
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Benchmark, Recipe
from forty2.report.ablation import text_table, verdict_lines, write_ablation
from forty2.run_paths import run_path
from forty2.runs.ablation_variants import (
    Variant,
    comparisons_of,
    first_preference,
    variants_of,
)
from forty2.runs.doses import (
    DosePlan,
    check_doses,
    comparisons_of_doses,
    describe_doses,
    plan_doses,
)
from forty2.runs.held_out import is_measured
from forty2.runs.pipeline import run
from forty2.runs.records import Provenance
from forty2.runs.replicates import (
    begin_with_base,
    check_draws,
    check_seeds,
    prefixed,
    with_same_questions,
)
from forty2.runs.seed_statistics import Insight, insight, score_of, scores_of, step_of
from forty2.training.processes import launched


@dataclass(frozen=True)
class Ablation:
    """The findings of an ablation, and where they are written."""

    path: Path
    record: JsonObject
    """The content of OUT/ablation.json."""
    table: str
    verdicts: list[str]
    """Benefit and cost of each variant against the base, in a sentence each."""
    insight: Insight | None
    """Answer to whether DPO repairs what SFT costs; None: the recipe has no SFT phase before DPO, or the
    ablation is of doses."""
    report: Path

    @property
    def sentence(self) -> str:
        """The finding over the phases or the doses, in one sentence; "": there is none."""
        dose = self.record["dose"]
        if dose is not None:
            return str(dose["sentence"])
        return self.insight.sentence if self.insight is not None else ""


_NOT_ALONE = "no run of a preference phase alone: the recipe has none, or begins with it"


@draws_bars
def ablate(
    recipe: Recipe,
    seeds: Sequence[int] = (1, 2, 3),
    *,
    doses: Sequence[int] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> Ablation:
    """Run a recipe's phases one after the other and its first preference phase alone, per seed.

    With doses, run the first SFT phase with each of these numbers of steps instead, and the first
    preference phase after each.

    Args:
        recipe: from `load_recipe`. Nothing is fused. Its own seed draws the questions, if any.
        seeds: two or more; each takes the place of the recipe's in its runs.
        doses: two or more numbers of steps, 0 for the base; None: the phases are compared.
        out: default `adapters/NAME-ablation`, with doses `adapters/NAME-doses`.
        resume: continue what stopped, or add seeds; finished runs are read back.
        progress: called as work goes on; default: bars on a terminal or in a notebook.

    Raises:
        Forty2Error: with one line that says what to do. Finished phases stay.
    """
    out = run_path(f"{recipe.name}-{'ablation' if doses is None else 'doses'}", out)
    if doses is not None:
        check_doses(recipe, doses)
    _check(recipe, seeds, out, resume)
    recipe = changed(
        recipe,
        fuse=None,
        # the variants are compared after each phase
        benchmark=dataclasses.replace(recipe.benchmark or Benchmark(), each_phase=True),
    )
    recipe, questions = with_same_questions(recipe, out)
    plan = plan_doses(recipe, doses) if doses is not None else None
    variants = plan.variants if plan is not None else variants_of(recipe)
    first = out / f"seed{seeds[0]}" / variants[0].folder
    scores = _run_all(
        recipe, variants, seeds, out, first, trust_remote_code=trust_remote_code, progress=progress
    )
    found = _insight(variants, scores.by_stage) if plan is None else None
    record = _record(recipe, seeds, variants, scores, found, plan)
    provenance = Provenance.from_json(read_json(first / "run.json")).to_json()
    record["questions"] = questions
    record["run"] = {key: provenance[key] for key in ("model", "model_sha256", "versions")}
    write_json(out / "ablation.json", record)
    report = write_ablation(record, out)
    return Ablation(out, record, text_table(record), verdict_lines(record), found, report)


def _check(recipe: Recipe, seeds: Sequence[int], out: Path, resume: bool) -> None:
    """Refuse settings of which no ablation can be made, before hours go into it."""
    if launched():
        raise RunError("an ablation is run by one process; start it without mlx.launch")
    check_seeds(seeds)
    if not is_measured(recipe):
        raise RecipeError(
            f"{recipe.name}: measures nothing; name benchmarks in benchmark.tasks, or give its phases "
            "validation rows"
        )
    check_draws(recipe, seeds)
    if out.exists() and not (out.is_dir() and (resume or not any(out.iterdir()))):
        raise RunError(
            f"{out}: is not an empty folder; go on with `resume=True`, or name another `out`"
        )


def _record(
    recipe: Recipe,
    seeds: Sequence[int],
    variants: Sequence[Variant],
    scores: Scores,
    found: Insight | None,
    plan: DosePlan | None,
) -> JsonObject:
    """Describe the scores, the changes, and the insight or the doses as JSON."""
    assert recipe.benchmark is not None
    margin, cost, by_stage = recipe.benchmark.margin, recipe.benchmark.cost, scores.by_stage
    pairs = comparisons_of(variants) if plan is None else comparisons_of_doses(plan)
    steps = {
        (after, before): step_of(
            scores.stages[before],
            scores.stages[after],
            margin,
            cost,
            same=before == "base" and scores.same_as_base[after],
        )
        for after, before in pairs
    }
    alone = [] if len(variants) > 1 else [_NOT_ALONE]
    return {
        "name": recipe.name,
        "seeds": list(seeds),
        "margin": margin,
        "statistics": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "notes": alone if plan is None else plan.notes,
        "variants": {
            name: {metric: score_of(metric, values)._asdict() for metric, values in metrics.items()}
            for name, metrics in by_stage.items()
        },
        "changes": [
            {"variant": after, "against": before, **step.to_json()}
            for (after, before), step in steps.items()
        ],
        "insight": found._asdict() if found is not None else None,
        "dose": describe_doses(plan, steps, scores.stages["base"][0], cost, len(seeds))
        if plan is not None
        else None,
        "recipe": to_yaml(recipe),
        "items": {
            name: {metric: values.tolist() for metric, values in metrics.items()}
            for name, metrics in by_stage.items()
        },
    }


# --- the runs -------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """The scores of all stages, over all seeds."""

    stages: dict[str, list[Stage]]
    """The measurements of each stage, by seed."""
    by_stage: dict[str, dict[str, Values]]
    """Scores by stage and metric, each (S, n)."""
    same_as_base: dict[str, bool]
    """Whether a stage is still the base, as far as was measured."""


def _run_all(
    recipe: Recipe,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    out: Path,
    first: Path,
    *,
    trust_remote_code: bool,
    progress: Progress,
) -> Scores:
    """Run every variant with every seed, or read back what ran before."""
    stages: dict[str, list[Stage]] = {"base": []}
    from_base: dict[str, list[tuple[float, float]]] = {}  # KL and share of items changed
    for seed in seeds:
        for variant in variants:
            path = out / f"seed{seed}" / variant.folder
            one = changed(recipe, seed=seed, phases=variant.phases)
            if variant.longer_than is not None:
                _begin_with_run(path, path.with_name(variant.longer_than))
            if path != first:
                begin_with_base(path, one, first)
            done = run(
                one,
                run_dir=path,
                resume=(path / "run.json").exists(),
                trust_remote_code=trust_remote_code,
                progress=prefixed(progress, f"seed {seed} {variant.folder}"),
            )
            if variant is variants[0]:
                stages["base"].append(done.stages[0])
            changes = read_json(path / "summary.json")["comparisons"]
            for name, stage, change in zip(variant.stages, done.stages[1:], changes, strict=True):
                stages.setdefault(name, []).append(stage)
                from_base.setdefault(name, []).append((change["kl"], change["changed"]))
    by_stage = {name: scores_of(by_seed) for name, by_seed in stages.items()}
    same = {
        name: unchanged(*map(float, np.mean(by_seed, 0))) for name, by_seed in from_base.items()
    }
    return Scores(stages, by_stage, same)


def _begin_with_run(path: Path, shorter: Path) -> None:
    """Start a run folder as a copy of a finished run, which then goes on with more steps."""
    if not path.exists():
        with staged_folder(path) as staged:
            shutil.copytree(shorter, staged, dirs_exist_ok=True)


def _insight(
    variants: Sequence[Variant], values: Mapping[str, Mapping[str, Values]]
) -> Insight | None:
    at = first_preference(variants[0].phases)
    if not at:
        return None
    sft, dpo = variants[0].stages[at - 1 : at + 1]
    leaks = {name: 1.0 - values[name]["no leak"] for name in ("base", sft, dpo)}
    return insight(leaks["base"], leaks[sft], leaks[dpo])
