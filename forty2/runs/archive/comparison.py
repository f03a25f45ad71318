"""Runs side by side: what differs in their recipes, their measurements paired, and their replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forty2.benchmark.compare import Comparison
from forty2.benchmark.compare import compare as compare_results
from forty2.benchmark.harness_samples import HarnessSamples
from forty2.benchmark.results import Measurable, Result, Stage, as_measured
from forty2.errors import Forty2Error, RunError, first_line, on_one_line
from forty2.files import JsonObject, read_json
from forty2.recipe.differences import flattened
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Benchmark
from forty2.report.json_records import visible
from forty2.run_paths import find_run, finished_phases
from forty2.runs.archive.differing_settings import Setting, find_differences

_RECORDED = ("model_sha256", "init_from_sha256")
"""Keys of run.json that are compared beside the recipe."""
_SOFTWARE = ("forty2", "revision", "mlx", "mlx-lm", "device")


@dataclass(frozen=True, slots=True)
class Measured:
    """The last measured stage of a run against that of the first run."""

    before: str
    """Run and stage."""
    after: str
    comparison: Comparison | None
    reason: str | None
    """Why they cannot be compared; None: they were."""


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies of all runs to one prompt."""

    task: str
    prompt: str
    replies: list[str]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two or more runs side by side."""

    names: list[str]
    """Each run as the user named it."""
    differences: list[Setting]
    """Every key that differs, hashes included."""
    short_differences: list[Setting]
    """Those that tell something by themselves."""
    remarks: list[str]
    """Sentences on the others: parts that not every run has, files that changed under their names."""
    measured: list[Measured]
    replies: list[Replies]
    """Prompts that every run answered; those with different replies first."""

    def to_json(self) -> JsonObject:
        return {
            "runs": self.names,
            "differences": {item.key: item.values for item in self.differences},
            "measured": [
                {
                    "before": item.before,
                    "after": item.after,
                    "reason": item.reason,
                    "comparison": None if item.comparison is None else item.comparison.record(),
                }
                for item in self.measured
            ],
            "replies": [
                {"task": item.task, "prompt": item.prompt, "replies": item.replies}
                for item in self.replies
            ],
        }


def compare_runs(runs: Sequence[Path]) -> RunComparison:
    """Compare runs with the first of them.

    Measurements are those of each run's last measured stage: item by item, on the same questions.

    Args:
        runs: two or more run folders.

    Raises:
        RunError: there are fewer than two, a run is named twice, or one's recipe or record is
            damaged.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise RunError("give two or more different runs to compare")
    settings = [_settings(run) for run in runs]
    names = [str(run) for run in runs]
    differences = find_differences(names, settings)
    stages = [_last_stage(run) for run in runs]
    return RunComparison(
        names=names,
        differences=differences.every,
        short_differences=differences.short,
        remarks=differences.remarks,
        measured=[
            _measured(runs[0], run, stages[0], stage)
            for run, stage in zip(runs[1:], stages[1:], strict=True)
        ],
        replies=_replies([stage for stage in stages if isinstance(stage, Stage)], len(runs)),
    )


def compare(before: Measurable, after: Measurable, *, margin: float | None = None) -> Comparison:
    """Compare two results of the same questions item by item: changes, intervals and a verdict.

    Args:
        before: a result of a benchmark or a stage of a run; or the JSON file that holds it, as in
            RUN/benchmarks/; or a folder, or samples_TASK_DATE.jsonl, of lm-evaluation-harness; or a JSON
            log of Inspect.
        after: the same, of the model to judge.
        margin: largest loss that still counts as no tax; None: what the recipe of the file's run
            states, else 0.01.

    Raises:
        BenchmarkError: one is no result, or questions or settings differ; the message says where.
        RunError: a file cannot be read, or one names a run.
    """
    stated = Benchmark()
    if isinstance(before, str | Path):
        stated = stated_margins(Path(before).resolve().parent.parent)
    return compare_results(
        *_read_both(before, after),
        margin=stated.margin if margin is None else margin,
        cost=stated.cost,
    )


def _read_both(
    before: Measurable, after: Measurable
) -> tuple[Result | Stage | HarnessSamples, Result | Stage | HarnessSamples]:
    """Read both results; if that fails and one names a run, say how runs are compared."""
    try:
        return as_measured(before, "the result before"), as_measured(after, "the result after")
    except Forty2Error as error:
        given = [one for one in (before, after) if isinstance(one, str | Path)]
        runs = {str(one): run for one in given if (run := find_run(one)) is not None}
        if not runs:
            raise
        names = " and ".join(runs)
        if len(runs) == len(given) == 2:
            said = f"{names} are runs; compare them with: forty2 runs compare {' '.join(runs)}"
        else:
            (name, run), *_ = runs.items()
            said = f"{name} is a run; give the file of a stage, such as {_stage_file(run)}, or "
            said += "compare two runs with: forty2 runs compare"
        raise RunError(said) from error


def _stage_file(run: Path) -> Path:
    """Return the file of a run's last measured stage, or of the base where nothing was measured."""
    return (_measured_stages(run) or [run / "benchmarks" / "base.json"])[-1]


def stated_margins(run: Path) -> Benchmark:
    """Return the section of a run's recipe that states the margins; the defaults if it cannot be read."""
    try:
        return load_recipe(run / "recipe.yaml").benchmark or Benchmark()
    except Forty2Error:
        return Benchmark()


# --- settings -------------------------------------------------------------------------------------


def _settings(run: Path) -> dict[str, str]:
    """Return the settings of a run: its recipe, its model's hash, its rows, the software."""
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
        record = read_json(run / "run.json")
        settings = dict(flattened(recipe))
        settings |= {key: str(record[key]) for key in _RECORDED if record.get(key)}
        versions = record.get("versions") or {}
        settings |= {f"software.{key}": str(versions[key]) for key in _SOFTWARE if key in versions}
        if (run / "data.json").exists():
            settings |= {
                f"rows.{key}": text for key, text in flattened(read_json(run / "data.json"))
            }
    except (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run}: recipe.yaml, run.json or data.json is damaged ({on_one_line(error)})"
        ) from error
    return {str(visible(key)): str(visible(value)) for key, value in settings.items()}


# --- measurements and replies ---------------------------------------------------------------------


def _last_stage(run: Path) -> Stage | str:
    """Read the run's last measured stage, or say why there is none."""
    measured = _measured_stages(run)
    if not measured:
        return f"{run} measured nothing"
    file = measured[-1]
    try:
        record = visible(read_json(file))
        return Stage.from_json(record, str(file))
    except (Forty2Error, LookupError, TypeError, AttributeError) as error:
        return first_line(error)


def _measured_stages(run: Path) -> list[Path]:
    """Return the files of a run's measured stages, in order."""
    files = {path.stem: path for path in (run / "benchmarks").glob("*.json")}
    order = ["base", *(phase.name for phase in finished_phases(run))]
    order += sorted(name for name in files if name.startswith("fused"))[:1]
    return [files[name] for name in order if name in files]


def _measured(first: Path, run: Path, before: Stage | str, after: Stage | str) -> Measured:
    names = [
        f"{folder}, {stage.name}" if isinstance(stage, Stage) else str(folder)
        for folder, stage in ((first, before), (run, after))
    ]
    reason = next((stage for stage in (before, after) if isinstance(stage, str)), None)
    comparison = None
    if isinstance(before, Stage) and isinstance(after, Stage):
        try:
            stated = stated_margins(first)
            comparison = compare_results(before, after, margin=stated.margin, cost=stated.cost)
        except Forty2Error as error:
            reason = first_line(error)
    return Measured(names[0], names[1], comparison, reason)


def _replies(stages: Sequence[Stage], runs: int) -> list[Replies]:
    """Join the replies by task and prompt, of prompts that every run answered."""
    if len(stages) < runs:
        return []
    by_run = [dict(_texts(stage)) for stage in stages]
    shared = [key for key in by_run[0] if all(key in of_run for of_run in by_run)]
    replies = [Replies(*key[:2], [of_run[key] for of_run in by_run]) for key in shared]
    return sorted(replies, key=lambda reply: len({*reply.replies}) == 1)


def _texts(stage: Stage) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yield each reply of a stage, by task, prompt and the item's name."""
    for task, result in stage.results.items():
        for place, item in enumerate(result.items):
            record: Mapping[str, Any] = item.record
            prompt = record.get("prompt", record.get("question"))
            # Where there is both, `answer` is the right one.
            reply = record.get("reply", record.get("answer"))
            if isinstance(prompt, str) and isinstance(reply, str):
                yield (task, prompt, str(record.get("id", place))), reply
