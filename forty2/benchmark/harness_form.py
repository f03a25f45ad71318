"""Our results in the form of lm-evaluation-harness 0.4.13: rows of samples, and the results beside.

TruthfulQA, MMLU, GSM8K and HumanEval get the harness's names, metrics and filters, for their
definitions are the same; every other task is `forty2_NAME`. A result holds neither prompts nor the
options' texts, so `arguments` is empty, and `doc_hash` is of what the result knows of an item: equal
between two results of ours, and never the harness's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from forty2.benchmark.harness_samples import (
    NO_FILTER,
    HarnessSamples,
    Sample,
    SampledTask,
    question_of,
)
from forty2.benchmark.results import Item, Result, Stage
from forty2.benchmark.stats import stderr
from forty2.benchmark.tasks import task_class
from forty2.files import JsonObject

MIN_ITEMS = 2
"""Items that have a standard error."""


@dataclass(frozen=True, slots=True)
class Row:
    """One item under one filter, before it is written as a line."""

    doc_id: int
    doc: JsonObject
    target: str
    replies: list[object]
    """One entry a request: the reply, or its log-probability and whether it is the likeliest, as text."""
    scores: dict[str, float]
    filter: str = NO_FILTER


@dataclass(frozen=True, slots=True)
class Form:
    """A task in the harness's form."""

    version: float | None
    shots: int
    chat: bool
    rows: list[Row] = field(repr=False)
    higher: dict[str, bool | None]


def forms_of(measured: Result | Stage) -> dict[str, Form]:
    """Return every task of a result, or of all results of a stage, by the harness's name."""
    results = [measured] if isinstance(measured, Result) else measured.results.values()
    return {name: form for result in results for name, form in _forms(result).items()}


def as_samples(measured: Result | Stage) -> HarnessSamples:
    """Return a result or stage as if the harness's files of it had been read."""
    first = measured if isinstance(measured, Result) else next(iter(measured.results.values()))
    tasks = {}
    for name, form in forms_of(measured).items():
        items: dict[int, Sample] = {}
        for row in form.rows:
            sample = items.setdefault(
                row.doc_id,
                Sample(
                    row.doc_id,
                    _doc_hash(row.doc),
                    question_of(name, row.doc, row.doc_id),
                    row.target,
                    None,
                ),
            )
            suffix = "" if row.filter == NO_FILTER else f",{row.filter}"
            sample.scores.update({f"{key}{suffix}": score for key, score in row.scores.items()})
        settings = {"version": form.version, "n-shot": form.shots, "chat template": form.chat}
        tasks[name] = SampledTask(
            name=name,
            items=tuple(items.values()),
            settings={key: value for key, value in settings.items() if value is not None},
            higher=form.higher,
        )
    return HarnessSamples(model=first.model_name, tasks=tasks, is_ours=True)


def lines_of(form: Form) -> Iterable[JsonObject]:
    """Yield a task's lines, as `samples_TASK_DATE.jsonl` holds them."""
    for row in form.rows:
        yield {
            "doc_id": row.doc_id,
            "doc": row.doc,
            "target": row.target,
            "arguments": {},
            "resps": [[reply] for reply in row.replies],
            "filtered_resps": row.replies,
            "filter": row.filter,
            "metrics": list(row.scores),
            "doc_hash": _doc_hash(row.doc),
            "prompt_hash": "",
            "target_hash": _sha256(row.target),
            **row.scores,
        }


def results_of(measured: Result | Stage, forms: Mapping[str, Form], name: str) -> JsonObject:
    """Return what `results_DATE.json` holds.

    Args:
        name: the model's name in it.
    """
    first = measured if isinstance(measured, Result) else next(iter(measured.results.values()))
    counts = {task: len({row.doc_id for row in form.rows}) for task, form in forms.items()}
    return {
        "results": {
            task: {"alias": task, "sample_len": counts[task], **_means(form)}
            for task, form in forms.items()
        },
        "group_subtasks": {task: [] for task in forms},
        "configs": {
            task: {"task": task, "num_fewshot": form.shots, "metadata": {"version": form.version}}
            for task, form in forms.items()
        },
        "versions": {task: form.version for task, form in forms.items()},
        "n-shot": {task: form.shots for task, form in forms.items()},
        "higher_is_better": {task: form.higher for task, form in forms.items()},
        "n-samples": {task: {"original": n, "effective": n} for task, n in counts.items()},
        "config": {"model": "forty2", "model_args": first.model_name, "versions": first.versions},
        "model_source": "forty2",
        "model_name": name,
        "model_name_sanitized": name,
        "chat_template": _chat_template(forms),
        "task_hashes": {task: _task_hash(form) for task, form in forms.items()},
    }


def _chat_template(forms: Mapping[str, Form]) -> str | None:
    """Return a text if a chat template was used: the harness writes the template, ours is not kept."""
    return "not recorded" if any(form.chat for form in forms.values()) else None


def _means(form: Form) -> JsonObject:
    """Compute the mean and standard error of each metric, as `METRIC,FILTER`."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in form.rows:
        for name, score in row.scores.items():
            values.setdefault((name, row.filter), []).append(score)
    means: JsonObject = {}
    for (name, filter_), scores in values.items():
        means[f"{name},{filter_}"] = sum(scores) / len(scores)
        error = stderr(scores) if len(scores) >= MIN_ITEMS else "N/A"
        means[f"{name}_stderr,{filter_}"] = error
    return means


def _task_hash(form: Form) -> str:
    return _sha256("".join(_doc_hash(row.doc) + _sha256(row.target) for row in form.rows))


def _doc_hash(doc: JsonObject) -> str:
    return _sha256(json.dumps(doc, indent=2, ensure_ascii=False))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- our tasks ------------------------------------------------------------------------------------


def _forms(result: Result) -> dict[str, Form]:
    return _OURS.get(result.benchmark, _other)(result)


def _form(result: Result, version: float | None, rows: list[Row], shots: int = 0) -> Form:
    task = task_class(result.benchmark)
    names = {name for row in rows for name in row.scores}
    directions = {name: task.metric(name).better for name in names}
    higher = {
        name: None if better == "neither" else better == "higher"
        for name, better in sorted(directions.items())
    }
    return Form(version, shots, bool(result.settings.get("chat_template")), rows, higher)


def _truthfulqa(result: Result) -> dict[str, Form]:
    rows: dict[str, list[Row]] = {"mc1": [], "mc2": []}
    for place, item in enumerate(result.items):
        for kind, of_kind in rows.items():
            labels = item.record[kind]["labels"]
            doc = {
                "question": item.record["question"],
                "category": item.record["category"],
                f"{kind}_targets": {"labels": labels},
            }
            target = str(labels.index(1)) if kind == "mc1" else "0"
            replies = _logliks(item.record[kind]["loglik"])
            of_kind.append(Row(place, doc, target, replies, {"acc": item.scores[kind]}))
    versions = {"mc1": 2.0, "mc2": 3.0}
    return {
        f"truthfulqa_{kind}": _form(result, versions[kind], of_kind)
        for kind, of_kind in rows.items()
    }


def _mmlu(result: Result) -> dict[str, Form]:
    by_subject: dict[str, list[Row]] = {}
    for item in result.items:
        record = item.record
        doc = {key: record[key] for key in ("subject", "number", "answer")}
        row = Row(
            record["number"] - 1,
            doc,
            str(record["answer"]),
            _logliks(record["logps"]),
            {"acc": item.scores["mmlu"]},
        )
        by_subject.setdefault(record["subject"], []).append(row)
    shots = int(result.settings.get("shots", 0))
    return {
        f"mmlu_{subject}": _form(result, 1.0, rows, shots) for subject, rows in by_subject.items()
    }


def _gsm8k(result: Result) -> dict[str, Form]:
    filters = {"strict-match": ("strict", "strict_match")}
    filters["flexible-extract"] = ("flexible", "flexible_extract")
    rows = []
    for name, (found, metric) in filters.items():
        for item in result.items:
            record = item.record
            doc = {"question": record["question"], "answer": record["answer"]}
            scores = {"exact_match": item.scores[metric]}
            rows.append(
                Row(record["number"] - 1, doc, record["answer"], [record[found]], scores, name)
            )
    return {"gsm8k": _form(result, 3.0, rows, int(result.settings.get("shots", 0)))}


def _humaneval(result: Result) -> dict[str, Form]:
    instruct = bool(result.settings.get("instruct"))
    rows = [
        Row(
            place,
            {"task_id": item.record["task_id"]},
            "",
            [[sample["reply"] for sample in item.record["samples"]]],
            item.scores,
            "create_test",
        )
        for place, item in enumerate(result.items)
    ]
    name, version = ("humaneval_instruct", 4.0) if instruct else ("humaneval", 1.0)
    return {name: _form(result, version, rows)}


def _other(result: Result) -> dict[str, Form]:
    task = task_class(result.benchmark)
    rows = []
    for place, item in enumerate(result.items):
        name, facts = task.identify(item.record)
        rows.append(Row(place, {"id": name, "facts": facts}, "", _reply(item), item.scores))
    return {f"forty2_{result.benchmark}": _form(result, None, rows)}


def _reply(item: Item) -> list[object]:
    reply = item.record.get("reply")
    return [reply] if isinstance(reply, str) else []


def _logliks(values: Sequence[float]) -> list[object]:
    """Return log-probabilities as the harness writes them; whether one is the greedy choice is unknown."""
    return [[str(value), "False"] for value in values]


_OURS: Mapping[str, Callable[[Result], dict[str, Form]]] = {
    "truthfulqa": _truthfulqa,
    "mmlu": _mmlu,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
}
"""The tasks that the harness has too, with the same definitions."""
