"""The parts of run folders and ablations that reports show; only this module reads their JSON.

Files of earlier releases are read as well: what they lack is None or empty. Characters that would
hide or reverse the text beside them are spelled out in every text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from forty2.errors import RunError
from forty2.files import JsonObject
from forty2.report.json_records import DAMAGE, read_object, read_whole_lines, visible

TIMES = "times.jsonl"
"""Record of the stretches of work on each stage."""
HELD_OUT = "held_out"
"""The task that measures a run's own held-out rows."""
_FIRST = "truthfulqa"
"""The task that earlier releases recorded alone, without naming it."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a run's results."""

    model: str
    model_sha256: str
    versions: dict[str, str]
    """Releases of the software, and the machine."""
    init_from: dict[str, str]
    """Folder and hash of the adapter that the run went on from, by what they are; empty: none."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of metrics.jsonl: a step, an evaluation or a warning."""

    phase: str
    step: int
    values: dict[str, float]
    warning: str | None


@dataclass(frozen=True, slots=True)
class Phase:
    """A finished phase."""

    name: str
    objective: str
    steps: int
    rows: int
    valid_rows: int | None
    """Number of validation rows; earlier releases did not record it."""
    exposures: float
    """Average uses of each row."""
    adapter_step: int
    """Step whose adapter the phase ended with; 0: the adapter that it began with."""
    dropped: list[str]
    """Origins of rows that are longer than max_length."""
    shortened: list[str]
    """Origins of rows whose prompt lost its beginning to max_length."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Questions on which the model is about equally confident."""

    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence in the first choice of MC1, against its accuracy."""

    error: float
    """Expected calibration error, 0 to 1."""
    bins: list[CalibrationBin]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float
    caution: str
    """What a reader must know beside it; "": nothing."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The measurements of the base model, of a phase or of the fused model."""

    name: str
    mc1: float | None
    mc2: float | None
    mc1_stderr: float | None
    mc2_stderr: float | None
    facts_right: float | None
    """Share of plain facts answered right; earlier releases did not record it."""
    leak_rate: float | None
    preference: float | None
    margin: float | None
    perplexity: float | None
    kl: float | None
    calibration: Calibration | None
    tasks: dict[str, float]
    """Scores of further benchmarks, by metric."""
    held_out: dict[str, float]
    """Means over the run's held-out rows, by metric."""
    style: dict[str, Estimate]
    """Style of the replies to open questions, by metric; empty: not measured."""


@dataclass(frozen=True, slots=True)
class Change:
    """The paired change of one metric, with its 95% interval."""

    difference: float
    low: float
    high: float
    p: float | None
    """p value, corrected for all metrics of the comparison."""
    verdict: str


@dataclass(frozen=True, slots=True)
class TaskVerdict:
    """One benchmark's verdict, and the metrics that it is over."""

    metrics: list[str]
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A stage against the base model."""

    stage: str
    changes: dict[str, Change]
    """Changes of the metrics that a benchmark's verdict is over, by metric."""
    tasks: dict[str, TaskVerdict]
    """Each benchmark's own verdict, by task; earlier releases recorded that of TruthfulQA alone."""
    categories: dict[str, float]
    """Mean change by category of questions."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark that a run measured."""

    label: str
    """Its name for a reader."""
    questions: str
    questions_sha256: str | None
    n: int | None


@dataclass(frozen=True, slots=True)
class Contamination:
    """Questions of the benchmarks that are in training rows."""

    questions: dict[str, int]
    """Number of questions in training rows, by task; a task that is missing was not searched for."""
    comparisons: list[Comparison]
    """The comparisons without those questions."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcome of a run that was measured."""

    verdict: str
    sentence: str
    """Benefit and cost of the last stage; empty: an earlier release judged the benefit alone."""
    margin: float | None
    questions: str
    questions_sha256: str | None
    n: int | None
    tasks: dict[str, Task]
    """Benchmarks of the recipe; earlier releases recorded TruthfulQA alone."""
    stages: list[Stage]
    comparisons: list[Comparison]
    contamination: Contamination | None


@dataclass(frozen=True, slots=True)
class Quantized:
    """The quantized copy of a fused model."""

    path: str
    bits: int
    cosine: float | None
    """None: no weight matrix is changed."""
    kl: float


@dataclass(frozen=True, slots=True)
class Fused:
    """A fused model."""

    path: str
    parity_kl: float
    adapter_kl: float
    quantized: Quantized | None
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answers of the base and of the last stage to one prompt."""

    prompt: str
    before: str
    after: str
    before_leaks: bool = False
    """True if it hedges where a plain fact was asked for."""
    after_leaks: bool = False
    between: tuple[tuple[str, str], ...] = ()
    """The stages between the two, each with its answer."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A question of TruthfulQA that one of base and last stage answered right, by MC1."""

    question: str
    category: str
    now_right: bool


@dataclass(frozen=True, slots=True)
class LintWarning:
    """A fault of a phase's rows that the lint warned of."""

    phase: str
    message: str
    rows: int
    """Number of rows with this fault; for a fault of the whole set, of rows looked at."""
    origins: list[str]
    """Origins of the first few rows."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """The time that a stage of the run took, over all starts of the run."""

    stage: str
    kind: str
    """Kind of work: read, measure, train or fuse."""
    phase: str | None
    """Name of the phase that it trained; None: it trained none."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder."""

    name: str
    started: str
    provenance: Provenance
    recipe: str
    """Text of recipe.yaml."""
    phases: list[Phase]
    log: list[LogLine]
    summary: Summary | None
    """Outcome; None if the recipe measures nothing, or the run is not finished."""
    unread_phases: list[str]
    """Phases whose data could not be searched for the benchmark's questions."""
    fused: Fused | None
    answers: list[Answer]
    """Answers to plain factual prompts."""
    own_answers: list[Answer]
    """Answers to the run's held-out prompts and eval prompts."""
    flips: list[Flip]
    times: list[StageTime]
    """Stages in the order of their first start; earlier releases recorded none."""
    lint_warnings: list[LintWarning]


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
    phases = [
        _phase(read_object(path)) for path in sorted(folder.glob("phase*/phase.json"), key=_place)
    ]
    summary = _optional(folder / "summary.json", _summary)
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
        answers=_answers(folder, summary.stages) if summary is not None else [],
        own_answers=_own_answers(folder, summary.stages) if summary is not None else [],
        flips=_flips(folder, summary.stages) if summary is not None else [],
        times=stage_times(folder / TIMES),
        lint_warnings=_optional(folder / "lint.json", _lint_warnings) or [],
    )


def _optional(path: Path, read: Callable[[JsonObject], _T]) -> _T | None:
    return read(read_object(path)) if path.exists() else None


def _place(path: Path) -> int:
    """Return the number of a phase, from its folder's name."""
    found = re.match(r"phase(\d+)", path.parent.name)
    return int(found[1]) if found else 0


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
        LintWarning(phase, str(one["message"]), int(one["count"]), _texts(one["origins"]))
        for phase, found in record.items()
        for one in found
    ]


def _log_line(record: JsonObject) -> LogLine:
    warning = record.get("warning")
    return LogLine(
        phase=str(record["phase"]),
        step=int(record["step"]),
        values={key: float(v) for key, v in record.items() if isinstance(v, int | float)},
        warning=None if warning is None else str(warning),
    )


def read_provenance(record: JsonObject) -> Provenance:
    versions = {str(name): str(version) for name, version in record["versions"].items()}
    initial = {"init_from": "init_from", "init_from_sha256": "init_from, sha256"}
    init_from = {title: str(record[key]) for key, title in initial.items() if record.get(key)}
    return Provenance(str(record["model"]), str(record["model_sha256"]), versions, init_from)


def _phase(record: JsonObject) -> Phase:
    return Phase(
        name=str(record["name"]),
        objective=str(record["objective"]),
        steps=int(record["steps"]),
        rows=int(record["rows"]),
        valid_rows=record.get("valid_rows"),
        exposures=float(record["exposures"]),
        adapter_step=int(record["kept_step"]),
        dropped=_texts(record.get("dropped")),
        shortened=_texts(record.get("shortened")),
    )


def _summary(record: JsonObject) -> Summary:
    questions, sha256 = str(record.get("questions") or ""), record.get("questions_sha256")
    tasks = record.get("tasks")
    if tasks is None:  # an earlier release
        tasks = {
            _FIRST: {
                "label": "TruthfulQA",
                "questions": questions,
                "questions_sha256": sha256,
                "n": record.get("n"),
            }
        }
    return Summary(
        verdict=str(record.get("verdict") or ""),
        sentence=str(record.get("sentence") or ""),
        margin=_number(record.get("margin")),
        questions=questions,
        questions_sha256=sha256,
        n=record.get("n"),
        tasks={name: _task(task) for name, task in tasks.items()},
        stages=[_stage(stage) for stage in record.get("stages") or []],
        comparisons=[_comparison(one, tasks) for one in record.get("comparisons") or []],
        contamination=_contamination(record.get("contamination"), tasks),
    )


def _task(record: JsonObject) -> Task:
    return Task(
        label=str(record["label"]),
        questions=str(record["questions"]),
        questions_sha256=record.get("questions_sha256"),
        n=record.get("n"),
    )


def _contamination(record: JsonObject | None, tasks: Collection[str]) -> Contamination | None:
    if not record:
        return None
    counts = record.get("tasks", {_FIRST: record})
    return Contamination(
        questions={name: int(count["questions"]) for name, count in counts.items()},
        comparisons=[_comparison(one, tasks) for one in record["comparisons"]],
    )


def _stage(record: JsonObject) -> Stage:
    stderr = record.get("stderr") or {}
    calibration = record.get("calibration")
    figures = ("mc1", "mc2", "facts_right", "leak_rate", "preference", "margin", "perplexity", "kl")
    return Stage(
        name=str(record["stage"]),
        **{name: _number(record.get(name)) for name in figures},
        mc1_stderr=_number(stderr.get("mc1")),
        mc2_stderr=_number(stderr.get("mc2")),
        tasks={name: float(value) for name, value in (record.get("tasks") or {}).items()},
        held_out={name: float(value) for name, value in (record.get(HELD_OUT) or {}).items()},
        style={name: _estimate(one) for name, one in (record.get("style") or {}).items()},
        calibration=None
        if not calibration
        else Calibration(
            float(calibration["ece"]),
            [
                CalibrationBin(float(one["confidence"]), float(one["accuracy"]))
                for one in calibration["bins"]
            ],
        ),
    )


def _estimate(record: JsonObject) -> Estimate:
    value, low, high = (float(record[key]) for key in ("value", "low", "high"))
    return Estimate(value, low, high, str(record.get("caution") or ""))


def _comparison(record: JsonObject, tasks: Collection[str]) -> Comparison:
    """Read a comparison.

    Args:
        tasks: names of the recipe's tasks; the verdicts of others are left out.
    """
    metrics = record["metrics"]
    found = record.get("tasks") or {
        _FIRST: {
            "judged": record.get("judged") or list(metrics),
            "verdict": record.get("verdict") or "",
        }
    }
    verdicts = {
        name: TaskVerdict(_texts(one["judged"]), str(one["verdict"]))
        for name, one in found.items()
        if name in tasks
    }
    judged = {metric for one in verdicts.values() for metric in one.metrics}
    return Comparison(
        stage=str(record["stage"]),
        changes={name: read_change(metrics[name]) for name in metrics if name in judged},
        tasks=verdicts,
        categories={name: float(value) for name, value in (record.get("categories") or {}).items()},
    )


def read_change(record: JsonObject) -> Change:
    return Change(
        difference=float(record["difference"]),
        low=float(record["low"]),
        high=float(record["high"]),
        p=_number(record.get("p_holm")),
        verdict=str(record["verdict"]),
    )


def _fused(record: JsonObject) -> Fused:
    copy = record.get("quantised")
    return Fused(
        path=str(record["path"]),
        parity_kl=float(record["parity_kl"]),
        adapter_kl=float(record["adapter_kl"]),
        quantized=None
        if not copy
        else Quantized(
            str(copy["path"]),
            int(copy["bits"]),
            None if copy["cosine"] is None else float(copy["cosine"]),
            float(copy["kl"]),
        ),
        warnings=_texts(record.get("warnings")),
    )


def _items(folder: Path, stages: list[Stage], benchmark: str) -> list[list[JsonObject]]:
    """Read a benchmark's items of the base and of the last stage; empty: there are no two stages."""
    return _items_of(folder, [stages[0], stages[-1]], benchmark) if len(stages) > 1 else []


def _items_of(folder: Path, stages: list[Stage], benchmark: str) -> list[list[JsonObject]]:
    # Looked up among existing files: a stage's name must not lead to another folder.
    files = {visible(path.stem): path for path in (folder / "benchmarks").glob("*.json")}
    return [
        read_object(files[stage.name.replace(" ", "-")]).get(benchmark, {}).get("items", [])
        for stage in stages
    ]


def _own_answers(folder: Path, stages: list[Stage]) -> list[Answer]:
    """Read every stage's replies to the run's held-out prompts and eval prompts."""
    if len(stages) < 2 or not all(stage.held_out for stage in stages):
        return []
    by_stage = [
        {(item["kind"], item["prompt"]): str(item["reply"]) for item in items if "reply" in item}
        for items in _items_of(folder, stages, HELD_OUT)
    ]
    return [
        Answer(
            prompt=str(key[1]),
            before=before,
            after=by_stage[-1][key],
            between=tuple(
                (stage.name, replies[key])
                for stage, replies in zip(stages[1:-1], by_stage[1:-1], strict=True)
            ),
        )
        for key, before in by_stage[0].items()
        if all(key in replies for replies in by_stage)
    ]


def _flips(folder: Path, stages: list[Stage]) -> list[Flip]:
    """Find the questions whose MC1 differs between the base and the last stage."""
    sides = [
        {
            str(item["question"]): (str(item.get("category", "")), float(item["scores"]["mc1"]))
            for item in items
            if "mc1" in item.get("scores", {})
        }
        for items in _items(folder, stages, _FIRST)
    ]
    if not sides:
        return []
    before, after = sides
    return [
        Flip(question, category, now_right=after[question][1] > score)
        for question, (category, score) in before.items()
        if question in after and after[question][1] != score
    ]


def _answers(folder: Path, stages: list[Stage]) -> list[Answer]:
    """Read the answers to plain factual prompts that both the base and the last stage were asked."""
    sides = [
        {item["id"]: item for item in items if "leak" in item}
        for items in _items(folder, stages, "behaviour")
    ]
    if not sides:
        return []
    first, last = sides
    return [
        Answer(
            prompt=str(item.get("prompt", name)),
            before=str(item["answer"]),
            after=str(last[name]["answer"]),
            before_leaks=bool(item["leak"]),
            after_leaks=bool(last[name]["leak"]),
        )
        for name, item in first.items()
        if name in last
    ]


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _texts(values: list[str] | None) -> list[str]:
    return [str(value) for value in values or []]
