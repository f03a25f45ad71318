"""What is recorded of a recovery: arms, differences, costs and verdict, and its table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forty2.failures.arms import NONE, ArmRows
from forty2.failures.arms_recipe import FailingModel
from forty2.failures.elsewhere import costs_elsewhere
from forty2.failures.examples import ACCEPTED, ARMS, Arm
from forty2.failures.folder import Item, about_testset
from forty2.files import JsonObject, file_sha256, read_json
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Recipe

if TYPE_CHECKING:
    from forty2.benchmark.results import Stage


class TrainedArm(NamedTuple):
    """One run of an arm."""

    path: Path
    base: Stage
    last: Stage


def steps_of(run: TrainedArm) -> int:
    """Return the number of steps that it took."""
    (phase,) = run.path.glob("phase1_*/phase.json")
    return int(read_json(phase)["steps"])


def build_record(
    folder: Path,
    recipe: Recipe,
    model: FailingModel,
    seeds: Sequence[int],
    rows: ArmRows,
    trained: Mapping[Arm, Mapping[int, TrainedArm]],
    retested: Mapping[str, JsonObject],
    before: Stage | None,
    untouched: Sequence[Item],
    warnings: Sequence[str],
) -> JsonObject:
    """Compare the arms on the untouched half, judge them, and return the content of `recover.json`.

    Args:
        trained: runs by arm and seed.
        retested: replies and verdicts on the untouched half, by `none` or ARM-SEED.
        before: the model as it was, measured elsewhere; None: it is the base of the runs.
    """
    from forty2.benchmark.stats import LEVEL, RESAMPLES, SEED
    from forty2.failures.recovery_verdict import judge_recovery

    by_arm: dict[str, list[JsonObject]] = {
        arm: [retested[f"{arm}-{seed}"] for seed in seeds] for arm in ARMS
    }
    by_arm[NONE] = [retested[NONE]]
    costs = {
        arm: costs_elsewhere(
            [before or run.base for run in runs.values()],
            [run.last for run in runs.values()],
            recipe,
        )
        for arm, runs in trained.items()
    }
    passed = {arm: [_passed(one) for one in found] for arm, found in by_arm.items()}
    judged = judge_recovery(untouched, passed, costs["targeted"])
    run = read_json(next(iter(trained["targeted"].values())).path / "run.json")
    return {
        "verdict": judged.verdict,
        "sentence": judged.sentence,
        "warnings": list(warnings),
        "model": model.name,
        "adapter": model.adapter,
        "model_sha256": run["model_sha256"],
        "seeds": list(seeds),
        "items": judged.items,
        "groups": judged.groups,
        "unscored": judged.unscored,
        "rates": judged.rates,
        "differences": [one._asdict() for one in judged.differences],
        "costs": {arm: [cost._asdict() for cost in found] for arm, found in costs.items()},
        "arms": {arm: _arm_figures(found) for arm, found in by_arm.items()},
        "rows": rows.record,
        "steps": {
            arm: {str(seed): steps_of(run) for seed, run in runs.items()}
            for arm, runs in trained.items()
        },
        "runs": {
            arm: [str(run.path.relative_to(folder)) for run in runs.values()]
            for arm, runs in trained.items()
        },
        "statistics": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "testset_sha256": about_testset(folder)["sha256"],
        "accepted_sha256": file_sha256(folder / ACCEPTED),
        "recipe": to_yaml(recipe, folder / "recover"),
        "versions": run["versions"],
    }


def _passed(record: JsonObject) -> dict[str, bool]:
    """Return whether each scored item passed."""
    return {
        item["id"]: item["verdict"] == "pass"
        for item in record["items"]
        if item["verdict"] != "unscored"
    }


def _arm_figures(seeds: Sequence[JsonObject]) -> JsonObject:
    """Sum up an arm's verdicts over seeds, in all and by stratum."""
    strata: dict[str, JsonObject] = {}
    for name in seeds[0]["strata"]:
        strata[name] = _summed([one["strata"][name] for one in seeds])
    return {
        "all": _summed([one["all"] for one in seeds]),
        "strata": strata,
        "stop_rate": [one["replies"]["stop_rate"] for one in seeds],
    }


def _summed(parts: Sequence[JsonObject]) -> JsonObject:
    counts: JsonObject = {
        key: [part[key] for part in parts] for key in ("pass", "fail", "unscored")
    }
    scored = sum(counts["pass"]) + sum(counts["fail"])
    return {**counts, "pass_rate": sum(counts["pass"]) / scored if scored else None}


def format_recovery(record: JsonObject) -> str:
    """Format the arms and the verdict for the terminal."""
    lines = [f"{'arm':<10}{'pass rate':>10}{'rows':>8}{'tokens':>10}{'original':>10}{'steps':>8}"]
    for arm, figures in record["arms"].items():
        rate = figures["all"]["pass_rate"]
        shown = "—" if rate is None else f"{rate:.1%}"
        line = f"{arm:<10}{shown:>10}"
        if (own := record["rows"]["arms"].get(arm)) is not None:
            steps = next(iter(record["steps"][arm].values()))
            line += (
                f"{own['rows']:>8,}{own['tokens']:>10,}{own['original_share']:>10.1%}{steps:>8,}"
            )
        lines.append(line)
    for arm, own in record["rows"]["arms"].items():
        if own["left_out"]:
            what = ", ".join(f"{count:,} {why}" for why, count in own["left_out"].items())
            lines.append(f"{arm}: of {own['accepted']:,} accepted rows left out: {what}")
    if record["unscored"]:
        lines.append(f"{record['unscored']:,} items without a verdict in some arm are not compared")
    return "\n".join([*lines, "", f"Verdict: {record['sentence']}"])
