"""A better recipe for the starter model: searched on questions of our own, claimed with fresh seeds.

    python benchmarks/gold_master/run.py search --out G/    # 38 runs of about 14 minutes on two CPU cores: 9 hours
    python benchmarks/gold_master/run.py claim --out G/     # 3 seeds, everything measured: about 8 hours
    python benchmarks/gold_master/run.py page --out G/      # the figures into benchmarks/ and docs/results.md

Each goes on after a stop when it is called again. `claim` needs FORTY2_BENCH_DATA, a folder with
`truthfulqa/mc_task_v0_817.json`, `truthfulqa/mc_task_2025_790.json` (the CSV files beside them) and `mmlu/`.
The hours are estimates.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import choosing
import numpy as np
import results_page

import forty2
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.runner import run as measure
from forty2.benchmark.stages import read_stage
from forty2.benchmark.stats import verdict
from forty2.benchmark.task import Task
from forty2.benchmark.tasks.mmlu import Mmlu
from forty2.benchmark.tasks.truthfulqa_binary import TruthfulQABinary
from forty2.benchmark.truthfulqa_categories import GROUPS
from forty2.files import make_folder, read_json, write_json, write_text
from forty2.recipe.differences import on_one_line
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.runs.seed_statistics import interval

HERE = Path(__file__).parent
RECIPE = HERE / "spark.yaml"
SEARCH_SEEDS = (101, 102)
CLAIM_SEEDS = (201, 202, 203)
MARGIN = 0.005
"""Largest loss of MMLU that is no tax."""
SUBSETS = {
    "all": frozenset[str](),
    "without types of the isotopes": GROUPS["isotopes"],
    "without all practised types": GROUPS["practised"],
}
"""Categories of TruthfulQA that are left out, by words for the rest."""


# --- search ---------------------------------------------------------------------------------------


def search(out: Path) -> None:
    """Run both stages of the search, and write the recipe that they choose to OUT/chosen.yaml."""
    first = _swept(out / "pairs", HERE / "spark.sweep.yaml", [])
    base = first["base"]
    stages = [choosing.choose(first, base)]
    overrides = _overrides(stages[0].settings)
    second = _swept(out / "rows", HERE / "rows.sweep.yaml", overrides)
    stages.append(choosing.choose(second, base))
    overrides += _overrides(stages[1].settings)
    write_text(out / "chosen.yaml", to_yaml(load_recipe(RECIPE, overrides), out))
    about = {"rule": choosing.RULE, "seeds": list(SEARCH_SEEDS), "base": base}
    write_json(out / "chosen.json", about | {"stages": [one._asdict() for one in stages]})
    for choice in stages:
        missed = f"; misses: {', '.join(choice.missed)}" if choice.missed else ""
        print(f"{choice.name}: MC2 of the probe {choice.mc2:.3f}{missed}\n  {choice.settings}")


def _swept(path: Path, grid: Path, overrides: Sequence[str]) -> Mapping[str, Any]:
    resume = (path / "sweep.json").exists()
    found = forty2.sweep(RECIPE, grid, SEARCH_SEEDS, overrides=overrides, out=path, resume=resume)
    return found.record


def _overrides(settings: Mapping[str, object]) -> list[str]:
    return [f"{key}={on_one_line(value)}" for key, value in settings.items()]


# --- claim ----------------------------------------------------------------------------------------


def claim(out: Path, data: Path, seeds: Sequence[int] = CLAIM_SEEDS) -> Path:
    """Train OUT/chosen.yaml with fresh seeds, measure everything, and write OUT/figures.json."""
    truthfulqa = data / "truthfulqa"
    asked = f"benchmark.questions={truthfulqa / 'mc_task_v0_817.json'}"
    recipe = load_recipe(out / "chosen.yaml", [asked])
    path = out / "claim"
    ablation = forty2.ablate(recipe, seeds, out=path, resume=path.exists())
    models = {"base": None} | {f"seed{seed}": str(path / f"seed{seed}" / "full") for seed in seeds}
    tasks: dict[str, Task[Any]] = {
        "binary": TruthfulQABinary(data=truthfulqa / "mc_task_2025_790.json"),
        "mmlu": Mmlu(data=data / "mmlu"),
    }
    measured = {
        name: [
            _measured(task, recipe.model, of, out / name / f"{model}.json")
            for model, of in models.items()
        ]
        for name, task in tasks.items()
    }
    stages = {seed: stages_of(path / f"seed{seed}") for seed in seeds}
    figures = collect(ablation.record, stages, measured["mmlu"], measured["binary"])
    write_json(out / "figures.json", figures)
    return out / "figures.json"


def _measured(task: Task[Any], model: str, adapter: str | None, file: Path) -> Result:
    if file.exists():
        return Result.from_json(read_json(file), str(file))
    part = file.with_name(f"{file.name}.part")
    return measure(task, model, adapter, out=file, resume=part.exists())


def stages_of(folder: Path) -> dict[str, Stage]:
    """Read the stages of a seed's runs: base, phase1_NAME, …, and NAME_only."""
    found = {"base": read_stage(folder / "full" / "benchmarks" / "base.json")}
    for file in sorted((folder / "full" / "benchmarks").glob("phase*.json")):
        found[file.stem] = read_stage(file)
    for run in sorted(folder.glob("*-only")):
        (file,) = (run / "benchmarks").glob("phase*.json")
        found[run.name.replace("-only", "_only")] = read_stage(file)
    return found


def collect(
    ablation: Mapping[str, Any],
    stages: Mapping[int, Mapping[str, Stage]],
    mmlu: Sequence[Result],
    binary: Sequence[Result],
) -> dict[str, Any]:
    """Put together the file of figures that docs/results.md is written from, with the items' scores.

    Args:
        ablation: the content of ablation.json.
        stages: by seed and name.
        mmlu, binary: results of the base, then of the last phase with each seed.
    """
    questions = ablation["questions"]
    ends = [[*one.values()][_last_phase(one)]["truthfulqa"] for one in stages.values()]
    bases = [one["base"]["truthfulqa"] for one in stages.values()]
    lines = [
        *transfer_lines(bases, ends, ("mc1", "mc2")),
        *transfer_lines(binary[:1] * len(binary[1:]), binary[1:], ("binary", "binary_share")),
    ]
    return {
        "recipe": ablation["name"],
        "command": "make gold-master",
        **{key: ablation["run"][key] for key in ("versions", "model_sha256")},
        "questions": questions["name"],
        "questions_sha256": questions["sha256"],
        "n": questions["n"],
        "seeds": {
            str(seed): {name: _figures(stage) for name, stage in one.items()}
            for seed, one in stages.items()
        },
        "pooled": {key: ablation[key] for key in ("statistics", "variants", "changes", "insight")},
        "mmlu_5_shot": mmlu_change(mmlu, list(stages)),
        "transfer": lines,
        "settings": ablation["recipe"],
        "items": {
            "ablation": _rounded(ablation["items"]),
            "mmlu": ["".join(f"{item.scores['mmlu']:.0f}" for item in one.items) for one in mmlu],
            "binary": [[item.scores for item in one.items] for one in binary],
        },
    }


def transfer_lines(
    before: Sequence[Result], after: Sequence[Result], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Compute paired changes over seeds on all questions and without those that were practised."""
    lines = []
    for words, left_out in SUBSETS.items():
        for metric in metrics:
            old, new = (
                np.array(
                    [
                        [i.scores[metric] for i in one.items if i.category not in left_out]
                        for one in results
                    ]
                )
                for results in (before, after)
            )
            if old.shape[1] > 1:
                lines.append({"metric": metric, "questions": words, **_change(old, new)})
    return lines


def mmlu_change(results: Sequence[Result], seeds: Sequence[int]) -> dict[str, Any]:
    """Compute the paired changes of MMLU over seeds, in all and by group."""
    base, *ends = results
    groups = {}
    for name in dict.fromkeys(name for item in base.items for name in item.scores):
        old, new = (
            np.array([[i.scores[name] for i in one.items if name in i.scores] for one in side])
            for side in ([base] * len(ends), ends)
        )
        if old.shape[1] > 1:
            groups[name] = _change(old, new)
    return {
        "shots": base.settings["shots"],
        "seeds": list(seeds),
        "questions": len(base.items),
        "data_sha256": base.data_sha256,
        "margin": MARGIN,
        "groups": groups,
    }


def _change(old: Any, new: Any) -> dict[str, Any]:
    """Compare scores (S, n) of shares."""
    found = interval(new - old, -1.0, 1.0)
    return {
        "before": float(old.mean()),
        "after": float(new.mean()),
        "difference": float((new - old).mean()),
        **found._asdict(),
        "n": old.shape[1],
        "verdict": verdict(found, MARGIN, old.shape[1]),
    }


def _last_phase(stages: Mapping[str, Stage]) -> int:
    return max(n for n, name in enumerate(stages) if name.startswith("phase"))


def _figures(stage: Stage) -> dict[str, Any]:
    """Return the figures of a stage that the page shows, and those beside them."""
    truthfulqa, behaviour = stage["truthfulqa"].figures, stage["behaviour"].figures
    judged = ("n", "by_likelihood", "by_generation")
    return {
        **{key: truthfulqa[key] for key in ("mc1", "mc2", "mc3", "stderr")},
        **{key: behaviour[key] for key in ("leak_rate", "right_rate", "preference", "margin")},
        "gates": {one["gate"]: {key: one[key] for key in judged} for one in behaviour["gates"]},
        "perplexity": stage["perplexity"].figures["perplexity"],
        "kl": stage["divergence"].figures["kl"],
    }


def _rounded(items: Any) -> Any:
    """Round scores to six digits: more would only make the file larger."""
    if isinstance(items, float):
        return round(items, 6)
    if isinstance(items, Mapping):
        return {key: _rounded(value) for key, value in items.items()}
    return [_rounded(one) for one in items] if isinstance(items, list) else items


# --- page -----------------------------------------------------------------------------------------


def page(out: Path) -> None:
    """Put OUT/figures.json into benchmarks/, the items into a file beside it, and write docs/results.md."""
    figures = read_json(out / "figures.json")
    items = json.dumps(figures.pop("items"), separators=(",", ":"))
    write_text(
        results_page.FIGURES.with_name(f"{results_page.FIGURES.stem}-items.json"), f"{items}\n"
    )
    write_json(results_page.FIGURES, figures)
    results_page.main()


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("search", "claim", "page"))
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    given = parser.parse_args()
    make_folder(given.out)
    if given.what == "claim":
        if "FORTY2_BENCH_DATA" not in os.environ:
            parser.error("set FORTY2_BENCH_DATA to the folder of the benchmarks' questions")
        print(claim(given.out, Path(os.environ["FORTY2_BENCH_DATA"])))
    else:
        {"search": search, "page": page}[given.what](given.out)


if __name__ == "__main__":
    main()
