"""Samples that lm-evaluation-harness writes with `--log_samples`, item by item. NumPy only.

A run of the harness leaves `results_DATE.json` and one `samples_TASK_DATE.jsonl` for each task in
one folder; the form is that of release 0.4.13. An item is one line for each filter of its task, e.g.
gsm8k's strict-match and flexible-extract, with the metrics as keys of the line. Rows are not in
order when several processes evaluated, so items are matched by the hash of their document.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forty2.benchmark.task import SHARE, Metric
from forty2.data.sources import read_rows
from forty2.errors import BenchmarkError, first_names
from forty2.files import JsonObject, close_name, is_number, read_json

NO_FILTER = "none"
"""Name that the harness gives to a task's only filter."""
_FILE = re.compile(r"samples_(.+)_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")
_OTHER_KEYS = frozenset(
    {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
    | {"doc_hash", "prompt_hash", "target_hash", "fewshot_context", "prompt"}
)
"""Keys of a line that are no metric; earlier releases do not list the metrics."""
_LOWER = re.compile(r".*perplexity|bits_per_byte|brier_score|likelihood_diff|[twc]er|.*loss")
"""Names of metrics of which less is better, where results_DATE.json does not say it."""
_SHARES = re.compile(
    r"(acc|acc_norm|acc_bytes|acc_mutual_info|acc_all|exact_match|em|f1|contains|pass@\d+|mc[123]"
    r"|prompt_level_(strict|loose)_acc)"
)
"""Names of metrics whose scores lie between 0 and 1."""
_FAMILIES: Mapping[str, Callable[[JsonObject, int], str]] = {
    r"truthfulqa_mc[12]": lambda doc, _: str(doc["question"]).strip(),
    r"gsm8k": lambda doc, _: str(doc["question"]).strip(),
    r"humaneval(_instruct)?": lambda doc, _: str(doc["task_id"]),
    r"mmlu_.*": lambda _, doc_id: str(doc_id),
}
"""The fact by which an item is known to forty2, too, by the pattern of the task's name."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a task."""

    doc_id: int
    doc_hash: str | None
    """sha256 of the document; None: an earlier release of the harness did not record it."""
    question: str | None
    """Its question or id, which both the harness and forty2 record; None: no such fact is known."""
    target: str
    prompt_hash: str | None
    """sha256 of the prompt; None: not recorded."""
    scores: dict[str, float] = field(default_factory=dict)
    """Scores by metric; that of a filter with a name is METRIC,FILTER, as in the harness's results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTask:
    """A task's items."""

    name: str
    items: tuple[Sample, ...] = field(repr=False)
    settings: dict[str, object]
    """Version, number of examples and use of a chat template; what was not recorded is absent."""
    higher: dict[str, bool | None]
    """True if a larger score is better, by the metric's name without its filter; None: neither is."""
    shares: frozenset[str] = frozenset()
    """Metrics whose scores lie between 0 and 1, beside those whose names say so."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of the file."""
        return tuple(dict.fromkeys(name for item in self.items for name in item.scores))

    def metric(self, name: str) -> Metric:
        """Return range and direction of a metric."""
        bare = name.partition(",")[0]
        higher = self.higher.get(bare, not _LOWER.fullmatch(bare))
        is_share = name in self.shares or _SHARES.fullmatch(bare)
        low, high = (SHARE.low, SHARE.high) if is_share else (-math.inf, math.inf)
        return Metric(low, high, "neither" if higher is None else "higher" if higher else "lower")


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessSamples:
    """One model's samples in one or several tasks."""

    model: str
    tasks: dict[str, SampledTask]
    is_ours: bool = False
    """True if forty2 measured them. Their items are matched by the question: the harness's hash is not known."""
    source: str = "lm-eval"
    """Program that evaluated; all its tasks have one verdict together, under this name."""


def is_harness(path: Path) -> bool:
    """Return whether a path may be the harness's output: a folder, or a file of JSON Lines."""
    return path.is_dir() or path.suffix == ".jsonl"


def read_samples(path: Path) -> HarnessSamples:
    """Read a folder that the harness wrote, or one of its samples_TASK_DATE.jsonl.

    Args:
        path: the file; or the folder that holds the files, or holds one folder of a model that does.

    Raises:
        BenchmarkError: it holds no samples, or those of several runs or models; or one is damaged.
        DataError: a file cannot be read.
    """
    files = [path] if path.suffix == ".jsonl" else _files_in(path)
    found: dict[str, Path] = {}
    for file in files:
        task = _name_of(file)[0]
        if task in found:
            raise BenchmarkError(
                f"{file.parent} holds samples of two runs of {task} ({found[task].name} and "
                f"{file.name}); name one of the files"
            )
        found[task] = file
    records = {file: _results_beside(file) for file in files}
    tasks = {task: _read_task(task, file, records[file]) for task, file in found.items()}
    model = next((str(r["model_name"]) for r in records.values() if r.get("model_name")), None)
    return HarnessSamples(model=model or files[0].resolve().parent.name, tasks=tasks)


def _files_in(folder: Path) -> list[Path]:
    """List the files of samples in a folder, or in the only folder below that has some."""
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: there is no such file or folder{close_name(folder)}")
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    by_place = {
        place: sorted(f for f in place.glob("samples_*.jsonl") if _FILE.fullmatch(f.name))
        for place in places
    }
    holding = [place for place, files in by_place.items() if files]
    if folder in holding:
        return by_place[folder]
    if not holding:
        raise BenchmarkError(
            f"{folder}: holds no samples_TASK_DATE.jsonl of lm-evaluation-harness; run it with "
            "log_samples and output_path, or name a log of Inspect by its file"
        )
    if len(holding) > 1:
        names = first_names([place.name for place in holding], 3)
        raise BenchmarkError(f"{folder}: holds samples of several models ({names}); name one")
    return by_place[holding[0]]


def _name_of(file: Path) -> tuple[str, str]:
    """Return the task and the date in a file's name; one that was renamed stands for its task."""
    found = _FILE.fullmatch(file.name)
    return (found[1], found[2]) if found else (file.stem.removeprefix("samples_"), "")


def _results_beside(file: Path) -> JsonObject:
    """Read the results of the same run of the harness; empty if they are not there."""
    results = file.with_name(f"results_{_name_of(file)[1]}.json")
    found = read_json(results) if results.exists() else {}
    if not isinstance(found, dict):
        raise BenchmarkError(
            f"{results}: is no object; it is not a result of lm-evaluation-harness"
        )
    return found


def _read_task(name: str, file: Path, results: JsonObject) -> SampledTask:
    """Read a task's items, those of all filters joined."""
    items: dict[tuple[int, str | None], Sample] = {}
    left_out: dict[str, None] = {}
    for origin, row in read_rows(file):
        sample = _sample(name, row, origin)
        sample = items.setdefault((sample.doc_id, sample.doc_hash), sample)
        for metric, value in _scores(row, origin).items():
            if value is None:
                left_out[metric] = None
            elif metric in sample.scores:
                raise BenchmarkError(
                    f"{origin}: doc_id {sample.doc_id} is there twice with {metric}; evaluate again"
                )
            else:
                sample.scores[metric] = value
    if not any(item.scores for item in items.values()):
        raise BenchmarkError(f"{file}: no metric of it has one number for each item")
    if left_out:
        warnings.warn(
            f"{file}: {first_names(list(left_out), 5)}: left out, because an item has no single number",
            stacklevel=2,
        )
    higher = _of_task(results, "higher_is_better", name) or {}
    settings = {
        "version": _of_task(results, "versions", name),
        "n-shot": _of_task(results, "n-shot", name),
        "chat template": bool(results.get("chat_template")) if results else None,
    }
    return SampledTask(
        name=name,
        items=tuple(items.values()),
        settings={key: value for key, value in settings.items() if value is not None},
        higher=dict(higher) if isinstance(higher, dict) else {},
    )


def _of_task(results: JsonObject, key: str, task: str) -> object:
    section = results.get(key)
    return section.get(task) if isinstance(section, dict) else None


def _sample(task: str, row: JsonObject, origin: str) -> Sample:
    """Read one line's item, without its scores."""
    doc_id, doc = row.get("doc_id"), row.get("doc")
    if not isinstance(doc_id, int) or isinstance(doc_id, bool):
        raise BenchmarkError(
            f"{origin}: has no doc_id, so it is no sample of lm-evaluation-harness"
        )
    return Sample(
        doc_id=doc_id,
        doc_hash=row.get("doc_hash") or None,
        question=question_of(task, doc, doc_id) if isinstance(doc, dict) else None,
        target=str(row.get("target", "")),
        prompt_hash=row.get("prompt_hash") or None,
    )


def question_of(task: str, doc: JsonObject, doc_id: int) -> str | None:
    """Return the fact by which an item is known to forty2 as well; None: the task is not one of ours."""
    for pattern, fact in _FAMILIES.items():
        if re.fullmatch(pattern, task):
            try:
                return fact(doc, doc_id)
            except LookupError:
                return None
    return None


def _scores(row: JsonObject, origin: str) -> dict[str, float | None]:
    """Return a line's scores by metric; None: a metric that is not one number."""
    names = row.get("metrics", [key for key in row if key not in _OTHER_KEYS])
    suffix = "" if row.get("filter", NO_FILTER) == NO_FILTER else f",{row['filter']}"
    found: dict[str, float | None] = {}
    for name in names if isinstance(names, Iterable) else ():
        value = row.get(name)
        if not isinstance(value, int | float):
            found[f"{name}{suffix}"] = None
        elif isinstance(value, bool) or is_number(value):
            found[f"{name}{suffix}"] = float(value)
        else:
            raise BenchmarkError(f"{origin}: {name} is not finite; evaluate again")
    return found
