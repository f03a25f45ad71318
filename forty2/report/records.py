"""Run folders read for reports.

Files of earlier releases are read as well: what they lack is None or empty. Characters that would
hide or reverse the text beside them are spelled out in every text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from forty2.errors import RunError
from forty2.files import JsonObject
from forty2.metric_names import FACTS_RIGHT, TEXTS, metric_name
from forty2.report.json_records import DAMAGE, read_object, read_whole_lines, visible
from forty2.report.run_answers import eval_replies, fact_answers, flips, own_answers
from forty2.report.run_types import (
    HELD_OUT,
    TRUTHFULQA,
    BucketRecord,
    Calibration,
    CalibrationBin,
    ChangeRecord,
    ComparisonRecord,
    ContaminationRecord,
    CostRecord,
    Estimate,
    FusedRecord,
    GateRecord,
    LintWarning,
    LogLine,
    PhaseRecord,
    ProvenanceRecord,
    QuantizedRecord,
    ReplayRecord,
    Run,
    StageRecord,
    StageTime,
    SummaryRecord,
    TaskRecord,
    TaskVerdict,
)
from forty2.run_paths import finished_phases

TIMES = "times.jsonl"
"""Record of the stretches of work on each stage."""
_COSTS = {"plain facts": FACTS_RIGHT, "neutral text": TEXTS}
"""Metrics of the costs that every run measures, by what they are called in the record."""
_VERDICTS = {"none": "no tax", "worse": "tax", "cannot tell": "inconclusive"}
"""Verdicts by the answer to whether a change is a cost."""
_T = TypeVar("_T")


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: it holds no run, or one that is damaged.
    """
    if not (folder / "run.json").exists():
        raise RunError(f"{folder}: no run here (run.json is missing)")
    try:
        return _run(folder)
    except RunError:
        raise
    except DAMAGE as error:
        raise RunError(
            f"{folder}: damaged, or written by another release ({error!r}); go on with `resume=True`, "
            "which reports again, or run anew"
        ) from error


def _run(folder: Path) -> Run:
    about = read_object(folder / "run.json")
    phases = [_phase(read_object(phase / "phase.json")) for phase in finished_phases(folder)]
    summary = _optional(folder / "summary.json", _summary)
    stages = summary.stages if summary is not None else []
    contamination = _optional(folder / "contamination.json", lambda record: record)
    return Run(
        name=str(about["name"]),
        started=str(about["started"]),
        provenance=read_provenance(about),
        recipe=visible((folder / "recipe.yaml").read_text("utf-8")),
        phases=phases,
        log=_log(folder / "metrics.jsonl", [phase.name for phase in phases]),
        summary=summary,
        unread_phases=_texts((contamination or {}).get("unread_phases")),
        fused=_optional(folder / "fused.json", _fused),
        answers=fact_answers(folder, stages),
        own_answers=own_answers(folder, stages),
        flips=flips(folder, stages),
        times=stage_times(folder / TIMES),
        lint_warnings=_optional(folder / "lint.json", _lint_warnings) or [],
        gates=_optional(folder / "gates.json", _gates) or [],
        eval_replies=eval_replies(folder, stages),
    )


def _optional(path: Path, read: Callable[[JsonObject], _T]) -> _T | None:
    return read(read_object(path)) if path.exists() else None


def _log(path: Path, phases: list[str]) -> list[LogLine]:
    """Read the whole lines of the metrics, sorted by phase: a phase trained anew logs at the end."""
    lines = list(map(_log_line, read_whole_lines(path)))
    order = {name: place for place, name in enumerate(phases)}
    return sorted(lines, key=lambda line: order.get(line.phase, len(order)))


def stage_times(path: Path) -> list[StageTime]:
    """Add up the seconds of each stage of a run; empty if an earlier release recorded none.

    Args:
        path: of the run's times.jsonl.
    """
    seconds: dict[tuple[str, str, str | None], float] = {}
    for record in read_whole_lines(path):
        stage = str(record["stage"]), str(record["kind"]), record.get("phase")
        seconds[stage] = seconds.get(stage, 0.0) + float(record["seconds"])
    return [StageTime(*stage, total) for stage, total in seconds.items()]


def _lint_warnings(record: JsonObject) -> list[LintWarning]:
    return [
        LintWarning(
            phase, str(warning["message"]), int(warning["count"]), _texts(warning["origins"])
        )
        for phase, warnings in record.items()
        for warning in warnings
    ]


def _log_line(record: JsonObject) -> LogLine:
    warning = record.get("warning")
    return LogLine(
        phase=str(record["phase"]),
        step=int(record["step"]),
        values={key: float(v) for key, v in record.items() if isinstance(v, int | float)},
        warning=None if warning is None else str(warning),
    )


def read_provenance(record: JsonObject) -> ProvenanceRecord:
    versions = {str(name): str(version) for name, version in record["versions"].items()}
    initial = {"init_from": "init_from", "init_from_sha256": "init_from, sha256"}
    init_from = {title: str(record[key]) for key, title in initial.items() if record.get(key)}
    return ProvenanceRecord(str(record["model"]), str(record["model_sha256"]), versions, init_from)


def _phase(record: JsonObject) -> PhaseRecord:
    return PhaseRecord(
        name=str(record["name"]),
        objective=str(record["objective"]),
        steps=int(record["steps"]),
        rows=int(record["rows"]),
        valid_rows=record.get("valid_rows"),
        exposures=float(record["exposures"]),
        adapter_step=int(record["kept_step"]),
        dropped=_texts(record.get("dropped")),
        shortened=_texts(record.get("shortened")),
        coverage={str(k): float(v) for k, v in (record.get("coverage") or {}).items()},
        replayed=[_replay(source) for source in record.get("replayed") or []],
        warnings=_texts(record.get("warnings")),
    )


def _replay(record: JsonObject) -> ReplayRecord:
    return ReplayRecord(
        name=str(record["name"]),
        rows=int(record["rows"]),
        of_rows=float(record["of_rows"]),
        of_tokens=float(record["of_tokens"]),
    )


def _gates(record: JsonObject) -> list[GateRecord]:
    return [
        GateRecord(
            phase=phase,
            bucket=bucket,
            least=float(gate["least"]),
            share=float(gate["share"]),
            low=float(gate["low"]),
            high=float(gate["high"]),
            n=int(gate["n"]),
            passed=bool(gate["passed"]),
        )
        for phase, gates in record.items()
        for bucket, gate in gates.items()
    ]


def _summary(record: JsonObject) -> SummaryRecord:
    questions, sha256 = str(record.get("questions") or ""), record.get("questions_sha256")
    tasks = record.get("tasks")
    if tasks is None:  # an earlier release
        tasks = {
            TRUTHFULQA: {
                "label": "TruthfulQA",
                "questions": questions,
                "questions_sha256": sha256,
                "n": record.get("n"),
            }
        }
    return SummaryRecord(
        verdict=str(record.get("verdict") or ""),
        sentence=str(record.get("sentence") or ""),
        margin=_number(record.get("margin")),
        questions=questions,
        questions_sha256=sha256,
        n=record.get("n"),
        tasks={name: _task(task) for name, task in tasks.items()},
        stages=[_stage(stage) for stage in record.get("stages") or []],
        lost=[
            (str(step["stage"]), str(step["sentence"]))
            for step in record.get("steps") or []
            if step["verdict"] == "tax"
        ],
        comparisons=[
            _comparison(comparison, tasks) for comparison in record.get("comparisons") or []
        ],
        contamination=_contamination(record.get("contamination"), tasks),
        buckets=[_bucket(bucket) for bucket in record.get("buckets") or []],
    )


def _bucket(record: JsonObject) -> BucketRecord:
    return BucketRecord(
        name=str(record["name"]),
        n=int(record["n"]),
        shares={str(stage): float(share) for stage, share in record["shares"].items()},
        best=str(record["best"]),
        forgotten=int(record["forgotten"]),
    )


def _task(record: JsonObject) -> TaskRecord:
    return TaskRecord(
        label=str(record["label"]),
        questions=str(record["questions"]),
        questions_sha256=record.get("questions_sha256"),
        n=record.get("n"),
    )


def _contamination(record: JsonObject | None, tasks: Collection[str]) -> ContaminationRecord | None:
    if not record:
        return None
    counts = record.get("tasks", {TRUTHFULQA: record})
    return ContaminationRecord(
        questions={name: int(count["questions"]) for name, count in counts.items()},
        comparisons=[_comparison(comparison, tasks) for comparison in record["comparisons"]],
    )


def _stage(record: JsonObject) -> StageRecord:
    stderr = record.get("stderr") or {}
    calibration = record.get("calibration")
    figures = ("mc1", "mc2", "facts_right", "leak_rate", "preference", "margin", "perplexity", "kl")
    return StageRecord(
        name=str(record["stage"]),
        **{name: _number(record.get(name)) for name in figures},
        mc1_stderr=_number(stderr.get("mc1")),
        mc2_stderr=_number(stderr.get("mc2")),
        tasks={name: float(value) for name, value in (record.get("tasks") or {}).items()},
        held_out={name: float(value) for name, value in (record.get(HELD_OUT) or {}).items()},
        style={name: _estimate(estimate) for name, estimate in (record.get("style") or {}).items()},
        calibration=None
        if not calibration
        else Calibration(
            float(calibration["ece"]),
            [
                CalibrationBin(float(group["confidence"]), float(group["accuracy"]))
                for group in calibration["bins"]
            ],
        ),
    )


def _estimate(record: JsonObject) -> Estimate:
    value, low, high = (float(record[key]) for key in ("value", "low", "high"))
    return Estimate(value, low, high, str(record.get("caution") or ""))


def _comparison(record: JsonObject, tasks: Collection[str]) -> ComparisonRecord:
    """Read a comparison.

    Args:
        tasks: names of the recipe's tasks; the verdicts of others are left out.
    """
    metrics = record["metrics"]
    by_task = record.get("tasks") or {
        TRUTHFULQA: {
            "judged": record.get("judged") or list(metrics),
            "verdict": record.get("verdict") or "",
        }
    }
    verdicts = {
        name: TaskVerdict(_texts(task["judged"]), str(task["verdict"]))
        for name, task in by_task.items()
        if name in tasks
    }
    judged = {metric for task in verdicts.values() for metric in task.metrics}
    return ComparisonRecord(
        stage=str(record["stage"]),
        changes={name: read_change(metrics[name]) for name in metrics if name in judged},
        tasks=verdicts,
        categories={name: float(value) for name, value in (record.get("categories") or {}).items()},
        costs=_costs(record.get("costs") or [], metrics),
    )


def _costs(records: list[JsonObject], metrics: JsonObject) -> dict[str, CostRecord]:
    """Read the costs of a stage by metric; those whose metric cannot be told are left out."""
    by_name = {metric_name(metric): metric for metric in metrics}
    costs = {}
    for record in records:
        where, name = str(record["where"]), str(record["name"])
        metric = _COSTS.get(where) or by_name.get(name.removeprefix(f"{where}: "))
        if metric in metrics:
            answer = str(record["answer"])
            verdict = "gain" if record.get("better") else _VERDICTS.get(answer, answer)
            change = read_change(metrics[metric])
            costs[metric] = CostRecord(change, float(record["margin"]), verdict)
    return costs


def read_change(record: JsonObject) -> ChangeRecord:
    return ChangeRecord(
        difference=float(record["difference"]),
        low=float(record["low"]),
        high=float(record["high"]),
        p=_number(record.get("p_holm")),
        verdict=str(record["verdict"]),
        before=_number(record.get("before")),
        after=_number(record.get("after")),
        n=record.get("n"),
    )


def _fused(record: JsonObject) -> FusedRecord:
    copy = record.get("quantised")
    return FusedRecord(
        path=str(record["path"]),
        parity_kl=float(record["parity_kl"]),
        adapter_kl=float(record["adapter_kl"]),
        quantized=None
        if not copy
        else QuantizedRecord(
            str(copy["path"]),
            int(copy["bits"]),
            None if copy["cosine"] is None else float(copy["cosine"]),
            float(copy["kl"]),
        ),
        warnings=_texts(record.get("warnings")),
    )


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _texts(values: list[str] | None) -> list[str]:
    return [str(value) for value in values or []]
