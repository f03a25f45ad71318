"""Ablation: the gain and the cost of each phase of a recipe, over several seeds.

For each seed there are two runs of the ordinary kind, in OUT/seedN: `full`, which measures the base
and the model after every phase, and one of the first preference phase alone (`dpo-only`). All are
measured on the same questions, drawn with the recipe's own seed; the base is measured once. A run
that stopped continues, `forty2 report` works on each, and seeds can be added later.

A seed chooses the adapter's first weights, the order of the rows, and the rows drawn for the
built-in sets. Every figure has an interval over seeds and items, and every change is paired: same
seed, same item. Of the held-out rows those count that both sides of a change have. A change is judged
by benefit and cost, as a run is.
"""

from __future__ import annotations

import dataclasses
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
from forty2.files import JsonObject, read_json, write_json
from forty2.progress import Progress, bars, draws_bars
from forty2.recipe.places import changed
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Benchmark, Recipe
from forty2.report.ablation import text_table, verdict_lines, write_ablation
from forty2.run_paths import run_path
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
from forty2.training.objectives.phase import Phase
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
    """Answer to whether DPO repairs what SFT costs; None: the recipe has no SFT phase before DPO."""
    report: Path


class Variant(NamedTuple):
    """A run that every seed has."""

    folder: str
    phases: dict[str, Phase]
    stages: list[str]
    """Names of the model after each of the phases."""


_NOT_ALONE = "no run of a preference phase alone: the recipe has none, or begins with it"


@draws_bars
def ablate(
    recipe: Recipe,
    seeds: Sequence[int] = (1, 2, 3),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> Ablation:
    """Run a recipe's phases one after the other and its first preference phase alone, per seed.

    Args:
        recipe: from `load_recipe`. Nothing is fused. Its own seed draws the questions, if any.
        seeds: two or more; each takes the place of the recipe's in its runs.
        out: default `adapters/NAME-ablation`.
        resume: continue what stopped, or add seeds; finished runs are read back.
        progress: called as work goes on; default: bars on a terminal or in a notebook.

    Raises:
        Forty2Error: with one line that says what to do. Finished phases stay.
    """
    out = run_path(f"{recipe.name}-ablation", out)
    _check(recipe, seeds, out, resume)
    recipe = changed(
        recipe,
        fuse=None,
        # the variants are compared after each phase
        benchmark=dataclasses.replace(recipe.benchmark or Benchmark(), each_phase=True),
    )
    recipe, questions = with_same_questions(recipe, out)
    variants = variants_of(recipe)
    first = out / f"seed{seeds[0]}" / variants[0].folder
    scores = _run_all(
        recipe, variants, seeds, out, first, trust_remote_code=trust_remote_code, progress=progress
    )
    found = _insight(variants, scores.by_stage)
    record = _record(recipe, seeds, variants, scores, found)
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
) -> JsonObject:
    """Describe the scores, the changes and the insight as JSON."""
    assert recipe.benchmark is not None
    margin, cost, by_stage = recipe.benchmark.margin, recipe.benchmark.cost, scores.by_stage
    return {
        "name": recipe.name,
        "seeds": list(seeds),
        "margin": margin,
        "statistics": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "notes": [] if len(variants) > 1 else [_NOT_ALONE],
        "variants": {
            name: {metric: score_of(metric, values)._asdict() for metric, values in metrics.items()}
            for name, metrics in by_stage.items()
        },
        "changes": [
            {
                "variant": after,
                "against": before,
                **step_of(
                    scores.stages[before],
                    scores.stages[after],
                    margin,
                    cost,
                    same=before == "base" and scores.same_as_base[after],
                ).to_json(),
            }
            for after, before in comparisons_of(variants)
        ],
        "insight": found._asdict() if found is not None else None,
        "recipe": to_yaml(recipe),
        "items": {
            name: {metric: values.tolist() for metric, values in metrics.items()}
            for name, metrics in by_stage.items()
        },
    }


# --- the runs -------------------------------------------------------------------------------------


def variants_of(recipe: Recipe) -> list[Variant]:
    """List the full run, and a run of the first preference phase alone if others precede it."""
    names = list(recipe.phases)
    variants = [
        Variant("full", recipe.phases, ["+".join(names[: n + 1]) for n in range(len(names))]),
    ]
    at = _first_preference(recipe.phases)
    if at:
        name = names[at]
        variants.append(
            Variant(f"{name}-only", {name: _alone(recipe, name)}, [f"{name} only"]),
        )
    return variants


def _alone(recipe: Recipe, name: str) -> Phase:
    """Return a phase as it is without the phases before it, whose rows it cannot replay."""
    phase = recipe.phases[name]
    others = [entry for entry in phase.replay or () if entry.source not in recipe.phases]
    return dataclasses.replace(phase, replay=others or None) if phase.replay else phase


def comparisons_of(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """List the stages to compare, as pairs of names (after, before).

    Each stage with the base, each with the one before it in the full run, and the preference phase
    after others with itself alone: the difference is what the phases before it gained.
    """
    full = variants[0].stages
    pairs = [(name, "base") for variant in variants for name in variant.stages]
    pairs += list(zip(full[1:], full[:-1], strict=True))
    if len(variants) > 1:
        at = _first_preference(variants[0].phases)
        assert at is not None
        pairs.append((full[at], variants[1].stages[0]))
    return pairs


def _first_preference(phases: Mapping[str, Phase]) -> int | None:
    """Return the place of the first preference phase."""
    kinds = enumerate(phases.values())
    return next((n for n, phase in kinds if phase.needs_reference), None)


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


def _insight(
    variants: Sequence[Variant], values: Mapping[str, Mapping[str, Values]]
) -> Insight | None:
    at = _first_preference(variants[0].phases)
    if not at:
        return None
    sft, dpo = variants[0].stages[at - 1 : at + 1]
    leaks = {name: 1.0 - values[name]["no leak"] for name in ("base", sft, dpo)}
    return insight(leaks["base"], leaks[sft], leaks[dpo])
