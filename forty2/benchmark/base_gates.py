"""Gates of a model: the least score that it must reach in a benchmark, judged by an interval.

A gate is passed if the whole 95% interval of the score reaches it, and failed if the whole interval is
below it. If the interval holds the gate, it cannot be told: more questions can tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from forty2.benchmark.question_files import DATA, named_questions
from forty2.benchmark.results import Result
from forty2.benchmark.stats import Interval, bootstrap, wilson
from forty2.benchmark.tasks import task_class, task_names
from forty2.errors import BenchmarkError
from forty2.files import JsonObject, read_json, write_json
from forty2.progress import Progress, bars, draws_bars

if TYPE_CHECKING:
    from forty2.benchmark.task import Task
    from forty2.model.chat_template import TemplateSettings

Answer = Literal["passed", "failed", "cannot be told"]
_MEASURED = "model.json"
"""File beside the results: what they are of."""


class Gate(NamedTuple):
    """The least score in a benchmark."""

    benchmark: str
    metric: str | None
    """Metric of the benchmark; None: the first that its verdict is over."""
    least: float


class GateResult(NamedTuple):
    """A score beside its gate."""

    benchmark: str
    metric: str
    score: float
    low: float
    """Lower end of the score's 95% interval."""
    high: float
    n: int
    """Questions."""
    least: float
    answer: Answer
    data: str
    data_sha256: str | None

    def __str__(self) -> str:
        return (
            f"{self.benchmark} {self.metric}: {self.score:.1%} of {self.n:,} questions, 95% interval "
            f"{self.low:.1%} to {self.high:.1%}, gate {self.least:.1%}: {self.answer}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateSettings:
    """How the benchmarks of gates are measured."""

    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """File or folder of questions by benchmark; of others, the folder in `FORTY2_BENCH_DATA`."""
    n: int | None = None
    """Questions to sample of each benchmark; None: all."""
    seed: int = 42
    run_untrusted_code: bool = False
    """Permission to run the programs that the model writes, for humaneval."""


def parse_gate(text: str) -> Gate:
    """Read NAME=SHARE or NAME:METRIC=SHARE.

    Raises:
        BenchmarkError: it is not written so, or there is no such benchmark or metric.
    """
    named, _, least = text.partition("=")
    name, colon, metric = named.strip().partition(":")
    try:
        share = float(least)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise BenchmarkError(
            f"gate {text}: write NAME=SHARE with a share between 0 and 1, mmlu=0.6"
        )
    if name not in gated_benchmarks():
        raise BenchmarkError(
            f"gate {text}: no benchmark {name!r}; gates are for {', '.join(gated_benchmarks())}"
        )
    metrics = task_class(name).judged
    if colon and metric not in metrics:
        raise BenchmarkError(f"gate {text}: {name} has no {metric!r}, but {', '.join(metrics)}")
    return Gate(name, metric or None, share)


def gated_benchmarks() -> list[str]:
    """List the benchmarks with questions of their own whose scores are shares."""
    return [
        name
        for name in task_names()
        if {"data", "n"} <= _fields(name)
        and all(task_class(name).metric(metric) == (0.0, 1.0, "higher") for metric in _judged(name))
    ]


@draws_bars
def measure_gates(
    gates: Sequence[Gate],
    model: str,
    adapter: str | None = None,
    *,
    settings: GateSettings | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    template: TemplateSettings | None = None,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> list[GateResult]:
    """Measure a model in the benchmarks of gates, each once, and judge every gate.

    Args:
        out: folder for the results, `NAME.json` each, and `model.json`, which says by hash what they are of.
        resume: go on with what stopped; finished results in the folder are read back.

    Raises:
        BenchmarkError: there are no gates, a benchmark's questions are missing or unusable, programs may
            not be run, or the folder holds results of something else.
    """
    from forty2.benchmark.runner import run

    if not gates:
        raise BenchmarkError("no gates; name one or more, mmlu=0.6")
    settings = settings or GateSettings()
    unused = sorted(settings.data.keys() - {gate.benchmark for gate in gates})
    if unused:
        raise BenchmarkError(f"data of {', '.join(unused)}: no gate is over it; remove it")
    folder = None if out is None else Path(out)
    tasks = {name: _task(name, settings) for name in dict.fromkeys(g.benchmark for g in gates)}
    if folder is not None:
        _claim(folder, model, adapter, template)
    results: dict[str, Result] = {}
    for name, task in tasks.items():
        file = None if folder is None else folder / f"{name}.json"
        if resume and file is not None and file.exists():
            results[name] = _read_back(file, task)
            continue
        results[name] = run(
            task,
            model,
            adapter,
            out=file,
            resume=resume and file is not None,
            template=template,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    return [_judged_gate(gate, results[gate.benchmark]) for gate in gates]


def summary(results: Sequence[GateResult]) -> str:
    """Say in a sentence which gates failed, and which cannot be told."""
    by_answer: dict[str, list[str]] = {}
    for one in results:
        by_answer.setdefault(one.answer, []).append(f"{one.benchmark} {one.metric}")
    if {*by_answer} == {"passed"}:
        return f"All {len(results)} gates passed." if len(results) > 1 else "The gate passed."
    parts = [f"passed: {', '.join(by_answer['passed'])}"] if "passed" in by_answer else []
    if failed := by_answer.get("failed"):
        parts.insert(0, f"{len(failed)} of {len(results)} gates failed: {', '.join(failed)}")
    if unclear := by_answer.get("cannot be told"):
        parts.append(f"too few questions to tell: {', '.join(unclear)}")
    text = f"{'; '.join(parts)}."
    return text[0].upper() + text[1:]


def _task(name: str, settings: GateSettings) -> Task[Any]:
    """Make a task whose questions are there."""
    kind = task_class(name)
    given = settings.data.get(name) or named_questions(name)
    has_own = any(one.name == "data" and one.default is None for one in dataclasses.fields(kind))
    if given is None and not has_own:
        raise BenchmarkError(
            f"{name}: its questions are not here; name their file or folder (`data`), or set {DATA} to a "
            f"folder with {name}/"
        )
    values: dict[str, Any] = {"data": given, "seed": settings.seed}
    if "run_untrusted_code" in _fields(name):
        values["run_untrusted_code"] = settings.run_untrusted_code
    task = kind(**values)
    n = task.source(task.load()).n  # unusable questions are found before the first model runs
    return task if settings.n is None or settings.n >= n else kind(**values | {"n": settings.n})


def _claim(
    folder: Path, model: str, adapter: str | None, template: TemplateSettings | None
) -> None:
    """Record what a folder's results are of, or find that they are of the same.

    Raises:
        BenchmarkError: the folder holds results of another model, adapter or template.
    """
    from forty2.model.loading import model_sha256, resolve_model
    from forty2.recipe.saved_adapter import read_adapter_file

    now: JsonObject = {
        "model": model_sha256(resolve_model(model)),
        "adapter": None if adapter is None else read_adapter_file(adapter).sha256(),
        "chat template": None if template is None else template.to_json(),
    }
    path = folder / _MEASURED
    if not (path.exists() or any((folder / f"{name}.json").exists() for name in task_names())):
        write_json(path, now)
        return
    before = read_json(path) if path.exists() else {}
    if others := [key for key, value in now.items() if before.get(key) != value]:
        raise BenchmarkError(
            f"{folder}: holds results of another {' and another '.join(others)}; name another `out`"
        )


def _read_back(file: Path, task: Task[Any]) -> Result:
    """Read a finished result, if it is of the same questions."""
    result = Result.from_json(read_json(file), str(file))
    asked = task.source(task.load())
    now = (task.name, asked.sha256, asked.n, task.seed)
    if now != (result.benchmark, result.data_sha256, len(result.items), result.seed):
        raise BenchmarkError(f"{file}: is a result of other questions; name another `out`")
    return result


def _judged_gate(gate: Gate, result: Result) -> GateResult:
    metrics = [
        name for name in _judged(gate.benchmark) if all(name in i.scores for i in result.items)
    ]
    metric = gate.metric or next(iter(metrics), "")
    if metric not in metrics:
        raise BenchmarkError(
            f"{gate.benchmark}: {metric} was not measured; there is {', '.join(metrics)}"
        )
    values = np.array([item.scores[metric] for item in result.items], np.float64)
    found = _interval(values)
    answer: Answer = "cannot be told"
    if found.low >= gate.least:
        answer = "passed"
    elif found.high < gate.least:
        answer = "failed"
    return GateResult(
        gate.benchmark,
        metric,
        float(values.mean()),
        *found,
        len(values),
        gate.least,
        answer,
        result.data,
        result.data_sha256,
    )


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
    """Compute the 95% interval of a mean: Wilson's of a share, else a bootstrap over questions."""
    if bool(np.isin(values, (0.0, 1.0)).all()):
        return wilson(int(values.sum()), len(values))
    return bootstrap(values, least=0.0, most=1.0)


def _judged(name: str) -> tuple[str, ...]:
    return task_class(name).judged


def _fields(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(task_class(name))}


def to_json(
    results: Sequence[GateResult], model: str, adapter: str | None, settings: GateSettings
) -> JsonObject:
    """Return gates, answers and summary as JSON."""
    from forty2 import machine

    return {
        "model": model,
        "adapter": adapter,
        "gates": [one._asdict() for one in results],
        "failed": sum(one.answer == "failed" for one in results),
        "sentence": summary(results),
        "n": settings.n,
        "seed": settings.seed,
        "versions": machine.facts(),
    }
