"""What each phase bought and cost: a recipe's phases one after the other, over several seeds.

For each seed there are two runs of the ordinary kind, in OUT/seedN: `full`, which measures the base
and the model after every phase, and one of the first preference phase alone (`dpo-only`). All are
measured on the same questions, drawn with the recipe's own seed, and the base once for all. A run
that stopped goes on, `forty2 report` works on each, and seeds can be added later.

A seed chooses what the adapter begins as, the order of the rows, and what is drawn for the
built-in sets. Every figure has an interval over seeds and items, and every change is paired: same
seed, same item.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from forty2.benchmark.compare import scores_of as scores_by_metric
from forty2.benchmark.results import Stage
from forty2.benchmark.stages import questions_of
from forty2.benchmark.stats import (
    LEVEL,
    RESAMPLES,
    SEED,
    Interval,
    Values,
    Verdict,
    unchanged,
    verdict,
    widened,
)
from forty2.benchmark.tasks.perplexity import TEXTS
from forty2.benchmark.truthfulqa_questions import Question
from forty2.errors import RecipeError, RunError
from forty2.files import read_json, read_sealed, write_json, write_sealed
from forty2.progress import Progress, silent
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import AnyPhase, Recipe
from forty2.report.ablation import text_table, write_ablation
from forty2.runs.folder import RunDir
from forty2.runs.pipeline import run
from forty2.training.processes import launched

Says = Literal["holds", "does not hold", "cannot be told"]

KL = "KL"
_BASE = Path("benchmarks") / "base.json"
_CHUNK = 1000  # resamples drawn at a time, to bound memory


class Score(NamedTuple):
    """A variant's mean of one metric."""

    value: float
    low: float
    """Lower end of the 95% interval over seeds and items."""
    high: float
    n: int
    """Items."""


class Change(NamedTuple):
    """The paired change of one metric from one variant to another."""

    difference: float
    low: float
    """Lower end of the 95% interval over seeds and items."""
    high: float
    n: int
    """Items."""
    verdict: Verdict


class Insight(NamedTuple):
    """Whether SFT alone leaks more than the base, and DPO brings leaks back down."""

    says: Says
    sentence: str


@dataclass(slots=True)
class Ablation:
    """What an ablation found, and where it is written."""

    path: Path
    record: dict[str, Any]
    """As OUT/ablation.json has it."""
    table: str
    insight: Insight | None
    """None: the recipe has no SFT phase with a preference phase after it."""
    report: Path


def ablate(
    recipe: Recipe,
    seeds: Sequence[int] = (1, 2, 3),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Ablation:
    """Run a recipe's phases one after the other and its first preference phase alone, per seed.

    Args:
        recipe: from `load_recipe`. Nothing is fused. Its own seed draws the questions, if any.
        seeds: two or more; each takes the place of the recipe's in its runs.
        out: default `adapters/NAME-ablation`.
        resume: go on with what stopped, or add seeds; finished runs are read back.
        progress: is told what goes on.

    Raises:
        Forty2Error: with one line that says what to do. Finished phases stay.
    """
    if launched():
        raise RunError("an ablation is run by one process; start it without mlx.launch")
    out = Path(out) if out is not None else Path("adapters") / f"{recipe.name}-ablation"
    if len(set(seeds)) < max(2, len(seeds)) or not all(0 <= seed < 2**31 for seed in seeds):
        raise RunError(
            f"seeds {', '.join(map(str, seeds))}: give two or more that differ, from 0 on; one says "
            "nothing about how much another would change"
        )
    if recipe.benchmark is None:
        raise RecipeError(f"{recipe.name}: benchmark: null measures nothing; say what to measure")
    if out.exists() and not (out.is_dir() and (resume or not any(out.iterdir()))):
        raise RunError(f"{out}: is no empty folder; go on with --resume, or name another --out")
    margin = recipe.benchmark.margin
    recipe, questions = _with_questions(dataclasses.replace(recipe, fuse=None), out)
    parts = parts_of(recipe)
    first = out / f"seed{seeds[0]}" / parts[0].folder
    values, same = _measured(recipe, parts, seeds, out, first, trust_remote_code, progress)
    found = _insight(parts, values)
    provenance = read_json(first / "run.json")
    record = {
        "name": recipe.name,
        "seeds": list(seeds),
        "questions": questions,
        "margin": margin,
        "statistics": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "run": {key: provenance[key] for key in ("model", "model_sha256", "versions")},
        "notes": [] if len(parts) > 1 else [_NOT_ALONE],
        "variants": {
            name: {metric: score_of(metric, scores)._asdict() for metric, scores in metrics.items()}
            for name, metrics in values.items()
        },
        "changes": [
            {
                "variant": after,
                "against": before,
                "metrics": {
                    metric: change._asdict()
                    for metric, change in changes_of(
                        values[before], values[after], margin, same=before == "base" and same[after]
                    ).items()
                },
            }
            for after, before in steps_of(parts)
        ],
        "insight": found._asdict() if found is not None else None,
        "recipe": to_yaml(recipe),
        "items": {
            name: {metric: scores.tolist() for metric, scores in metrics.items()}
            for name, metrics in values.items()
        },
    }
    write_json(out / "ablation.json", record)
    return Ablation(out, record, text_table(record), found, write_ablation(record, out))


# --- the runs -------------------------------------------------------------------------------------

_NOT_ALONE = "no run of a preference phase alone: the recipe has none, or begins with it"


class Part(NamedTuple):
    """One of the runs that each seed has."""

    folder: str
    phases: dict[str, AnyPhase]
    variants: list[str]
    """What the model is called after each of the phases."""


def parts_of(recipe: Recipe) -> list[Part]:
    """The full run, and that of the first preference phase alone where others come before it."""
    names = list(recipe.phases)
    parts = [
        Part("full", recipe.phases, ["+".join(names[: n + 1]) for n in range(len(names))]),
    ]
    at = _first_preference(recipe.phases)
    if at:
        name = names[at]
        parts.append(Part(f"{name}-only", {name: recipe.phases[name]}, [f"{name} only"]))
    return parts


def steps_of(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """What is compared, after and before: each with the base, each with the one before it in the
    full run, and the preference phase after others with itself alone: what those bought it."""
    full = parts[0].variants
    steps = [(name, "base") for part in parts for name in part.variants]
    steps += list(zip(full[1:], full[:-1], strict=True))
    if len(parts) > 1:
        at = _first_preference(parts[0].phases)
        assert at is not None
        steps.append((full[at], parts[1].variants[0]))
    return steps


def _first_preference(phases: Mapping[str, AnyPhase]) -> int | None:
    """The place of the first preference phase."""
    kinds = enumerate(phases.values())
    return next((n for n, phase in kinds if phase.needs_reference), None)


def _with_questions(recipe: Recipe, out: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the same questions for every seed, and what they are.

    A run draws its questions with its seed. What the recipe's own seed draws is put into a file, of
    which every run asks all.
    """
    assert recipe.benchmark is not None
    drawn = questions_of(recipe.benchmark, recipe.seed)
    told = {"name": drawn.name, "sha256": drawn.sha256, "n": len(drawn.items)}
    if recipe.benchmark.n != len(drawn.items):
        return recipe, told  # all that there are
    file = out.resolve() / "questions.json"
    asked = [_question(item) for item in drawn.items]
    if not file.exists():
        write_json(file, asked)
    elif read_json(file) != asked:
        raise RunError(
            f"{file}: holds other questions than {recipe.name} draws now; go on with the recipe "
            "that the ablation was started with, or name another --out"
        )
    benchmark = dataclasses.replace(recipe.benchmark, questions=str(file))
    return dataclasses.replace(recipe, benchmark=benchmark), {**told, "drawn_with": recipe.seed}


def _question(item: Question) -> dict[str, Any]:
    return {
        "question": item.question,
        "category": item.category,
        **{
            f"{name}_targets": {"choices": list(options.choices), "labels": list(options.labels)}
            for name, options in (("mc1", item.mc1), ("mc2", item.mc2))
        },
    }


def _measured(
    recipe: Recipe,
    parts: Sequence[Part],
    seeds: Sequence[int],
    out: Path,
    first: Path,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[dict[str, dict[str, Values]], dict[str, bool]]:
    """Of each variant its scores (S, n) by metric, and whether it is the base still."""
    scores: dict[str, list[dict[str, Values]]] = {"base": []}
    moved: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        for part in parts:
            path = out / f"seed{seed}" / part.folder
            one = dataclasses.replace(recipe, seed=seed, phases=part.phases)
            if path != first:
                _begin(path, one, first)
            done = run(
                one,
                run_dir=path,
                resume=(path / "run.json").exists(),
                trust_remote_code=trust_remote_code,
                progress=_named(progress, f"seed {seed} {part.folder}"),
            )
            if part is parts[0]:
                scores["base"].append(scores_of(done.stages[0]))
            from_base = read_json(path / "summary.json")["comparisons"]
            for name, stage, change in zip(part.variants, done.stages[1:], from_base, strict=True):
                scores.setdefault(name, []).append(scores_of(stage))
                moved.setdefault(name, []).append((change["kl"], change["changed"]))
    values = {
        name: {metric: np.stack([one[metric] for one in by_seed]) for metric in by_seed[0]}
        for name, by_seed in scores.items()
    }
    same = {name: unchanged(*map(float, np.mean(by_seed, 0))) for name, by_seed in moved.items()}
    return values, same


def _begin(path: Path, recipe: Recipe, first: Path) -> None:
    """Begin a run with the base's measurement by the first: same weights, same questions.

    If the weights are others by now, the run refuses to go on from this beginning.
    """
    if (path / "run.json").exists():
        return
    record = read_json(first / "run.json")
    provenance = {key: record[key] for key in record if key not in ("version", "started")}
    with RunDir.open(path, to_yaml(recipe), provenance, resume=False):
        write_sealed(path / _BASE, read_sealed(first / _BASE))


def _named(progress: Progress, run_name: str) -> Progress:
    def told(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        progress(f"{run_name}: {stage}", done, total, info)

    return told


# --- the statistics -------------------------------------------------------------------------------


def scores_of(stage: Mapping[str, Any]) -> dict[str, Values]:
    """A stage's scores item by item, (n,) by metric; of metrics with two items or more.

    Higher is better, except for KL, from the base: its items are the probes, each weighing as many
    places as it has, as texts weigh in `log p of texts`.
    """
    read = Stage.from_json(dict(stage), f"stage {stage['stage']}")
    scores = {name: one.values() for name, one in scores_by_metric(read).metrics.items()}
    scores[KL] = np.array([item.scores[KL] for item in read["divergence"].items])
    return {name: values for name, values in scores.items() if len(values) > 1}


def interval(values: Values, least: float = -math.inf, most: float = math.inf) -> Interval:
    """95% interval of a mean, (S, n): of S seeds, each on the same n items.

    Args:
        least, most: the mean cannot lie beyond them, nor does the interval.

    Both are samples: other seeds and other questions would have given another mean. The items' part
    is a bootstrap of the items' means over seeds. The seeds' part is what their means differ by
    beyond what the items explain, as a Student t of S - 1 degrees: with three seeds their spread is
    itself hardly known. The two are added draw by draw.

    In simulations with three seeds and 100 items it covers the truth in 93 to 98% of cases. Drawing
    seeds and then items within each, the usual bootstrap, covers it in 79 to 87% where questions
    differ as much as answers do: it takes the seeds' answers to one question for independent, and
    three seeds for all there are.
    """
    seeds, items = values.shape
    by_seed, by_item = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_item + values.mean()
    explained = float((rest**2).sum()) / ((seeds - 1) * (items - 1)) / items
    between = max(0.0, float(by_seed.var(ddof=1)) - explained) / seeds
    rng = np.random.default_rng(SEED)
    draws = np.concatenate(
        [
            by_item[rng.integers(items, size=(min(_CHUNK, RESAMPLES - done), items))].mean(axis=1)
            for done in range(0, RESAMPLES, _CHUNK)
        ]
    )
    draws += math.sqrt(between) * rng.standard_t(seeds - 1, size=RESAMPLES)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = widened(Interval(float(low), float(high)), float(values.mean()), items, least, most)
    return Interval(max(least, found.low), min(most, found.high))


def _range(metric: str) -> tuple[float, float]:
    """What a metric can be."""
    unbounded = {KL: (0.0, math.inf), TEXTS: (-math.inf, 0.0)}
    return unbounded.get(metric, (0.0, 1.0))


def score_of(metric: str, values: Values) -> Score:
    """The mean of a metric's scores (S, n) with its interval."""
    return Score(float(values.mean()), *interval(values, *_range(metric)), values.shape[1])


def changes_of(
    before: Mapping[str, Values], after: Mapping[str, Values], margin: float, *, same: bool
) -> dict[str, Change]:
    """Paired changes by metric, from scores (S, n) of the same seeds and items.

    Args:
        margin: largest loss that still counts as no tax.
        same: after is, for all that was measured, before; then the verdict is no change.
    """
    changes = {}
    for metric in before:
        if metric == KL:  # from the base: neither gain nor loss
            continue
        difference = after[metric] - before[metric]
        least, most = _range(metric)
        found = interval(difference, least - most, most - least)
        changes[metric] = Change(
            float(difference.mean()),
            *found,
            difference.shape[1],
            "no change" if same else verdict(found, margin, difference.shape[1]),
        )
    return changes


def _insight(parts: Sequence[Part], values: Mapping[str, Mapping[str, Values]]) -> Insight | None:
    at = _first_preference(parts[0].phases)
    if not at:
        return None
    if "no leak" not in values["base"]:
        return Insight(
            "cannot be told",
            "Whether SFT alone leaks more than the base and DPO brings leaks back down cannot be "
            "told: fewer than two plain factual prompts were asked; raise benchmark.n.",
        )
    sft, dpo = parts[0].variants[at - 1 : at + 1]
    leaks = {name: 1.0 - values[name]["no leak"] for name in ("base", sft, dpo)}
    return insight(leaks["base"], leaks[sft], leaks[dpo])


def insight(base: Values, sft: Values, dpo: Values) -> Insight:
    """Whether SFT alone leaks more than the base, and DPO brings leaks back down.

    Both must be so for it to hold, each by its paired interval; it does not hold as soon as one
    interval lies on the other side of zero. Where no answer changed there is nothing to tell by.

    Args:
        base, sft, dpo: leaks (S, n) of plain factual prompts: of the base, after SFT, after DPO.
    """
    rise, fall = sft - base, dpo - sft
    up, down = interval(rise, -1.0, 1.0), interval(fall, -1.0, 1.0)
    says: Says = "cannot be told"
    if up.low > 0 and down.high < 0:
        says = "holds"
    elif up.high < 0 or down.low > 0:
        says = "does not hold"
    seeds, prompts = base.shape
    return Insight(
        says,
        "That SFT alone leaks more than the base and DPO brings leaks back down "
        f"{says} here: the base leaks on {base.mean():.1%} of "
        f"plain factual prompts, SFT changes that by {_points(rise, up)}, DPO after it by "
        f"{_points(fall, down)} ({seeds} seeds, {prompts} prompts).",
    )


def _points(change: Values, found: Interval) -> str:
    if not change.any():
        return "nothing (no answer changed)"
    mean, low, high = (100 * value for value in (float(change.mean()), *found))
    return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})"
