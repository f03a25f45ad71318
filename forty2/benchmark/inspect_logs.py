"""Logs of Inspect (inspect_ai) in their JSON form, item by item.

A log holds one task of one model. Its samples become those of `harness_samples`, and each scorer a
metric: scores C, P, I and N are 1, 0.5, 0 and 0, as Inspect's own accuracy counts them. The epochs of a
sample are repeats of one item, so their scores are averaged.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import TypeGuard

from forty2.benchmark.harness_samples import HarnessSamples, Sample, SampledTask
from forty2.errors import BenchmarkError, first_names, printable
from forty2.files import JsonObject, is_number

_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""Scores that are words: correct, partly correct, incorrect, no answer, and what means the same."""
_Scores = dict[str, list[float | None]]
"""An item's scores by metric, one an epoch; None: it is not one number."""


def refuse_binary_log(path: Path) -> None:
    """Refuse a log in Inspect's other form, a zip file with Zstandard inside.

    Raises:
        BenchmarkError: it is one; the message says how to convert it.
    """
    if path.suffix == ".eval":
        raise BenchmarkError(
            f"{path}: is a log of Inspect in its binary form; turn it into JSON with "
            "`inspect log convert`, and give that file"
        )


def is_inspect(found: object) -> TypeGuard[JsonObject]:
    """Return whether a parsed JSON file is a log of Inspect."""
    return isinstance(found, Mapping) and "status" in found and isinstance(found.get("eval"), dict)


def read_log(found: JsonObject, what: str) -> HarnessSamples:
    """Read a parsed log.

    Args:
        what: name of the file for messages.

    Raises:
        BenchmarkError: the evaluation did not succeed, a sample has no score or is there twice, or the
            log is damaged.
    """
    if found["status"] != "success":
        raise BenchmarkError(
            f"{what}: the evaluation has the status {found['status']}, not success; go on with it by "
            "`inspect eval-retry`"
        )
    if found.get("invalidated"):
        raise BenchmarkError(f"{what}: some of its samples were invalidated; evaluate again")
    spec, samples = found["eval"], found.get("samples")
    if not isinstance(spec.get("task"), str):
        raise BenchmarkError(f"{what}: names no task; the log is damaged")
    if not isinstance(samples, list) or not samples:
        raise BenchmarkError(f"{what}: the log holds no samples; evaluate again with log_samples")
    items = _by_id(samples, what)
    scores = {name: _scores(epochs, f"{what}: sample {name}") for name, epochs in items.items()}
    numeric = _numeric(scores, what)
    if max(map(len, items.values())) > 1:
        _warn_of_reducers(spec, what)
    task = SampledTask(
        name=spec["task"],
        items=tuple(
            _sample(
                place, epochs[0], {m: _mean(v) for m, v in scores[name].items() if m in numeric}
            )
            for place, (name, epochs) in enumerate(items.items())
        ),
        settings={
            "version": spec.get("task_version", 0),
            "task arguments": spec.get("task_args") or {},
        },
        higher={},
        shares=_shares(scores.values()),
    )
    return HarnessSamples(
        model=str(spec.get("model", what)), tasks={task.name: task}, source="inspect"
    )


def _by_id(samples: list[object], what: str) -> dict[str, list[JsonObject]]:
    """Return the epochs of each sample, by its id."""
    found: dict[str, dict[str, JsonObject]] = {}
    for number, sample in enumerate(samples, 1):
        if not isinstance(sample, dict) or not isinstance(sample.get("id"), int | str):
            raise BenchmarkError(f"{what}: sample {number} has no id; the log is damaged")
        name, epoch = printable(str(sample["id"])), str(sample.get("epoch", 1))
        if epoch in found.setdefault(name, {}):
            raise BenchmarkError(
                f"{what}: sample {name} is there twice in epoch {epoch}; evaluate again"
            )
        found[name][epoch] = sample
    return {name: list(epochs.values()) for name, epochs in found.items()}


def _scores(epochs: list[JsonObject], where: str) -> _Scores:
    found: _Scores = {}
    for sample in epochs:
        given, error = sample.get("scores"), sample.get("error")
        if not isinstance(given, dict) or not given:
            failed = (
                f" because of an error: {error.get('message')}" if isinstance(error, dict) else ""
            )
            raise BenchmarkError(
                f"{where}, epoch {sample.get('epoch', 1)}: has no score{printable(failed)[:200]}; "
                + (
                    "go on with the log by `inspect eval-retry`"
                    if failed
                    else "use `inspect score`"
                )
            )
        for scorer, score in given.items():
            value = score.get("value") if isinstance(score, dict) else None
            for metric, number in _numbers(scorer, value):
                found.setdefault(metric, []).append(number)
    return found


def _numbers(scorer: str, value: object) -> Iterator[tuple[str, float | None]]:
    """Yield the score of each metric of a scorer; one that gives several names them itself."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"{scorer}: {key}", _number(part)
    else:
        yield scorer, _number(value)


def _number(value: object) -> float | None:
    if isinstance(value, str):
        if value in _WORDS or value.lower() in _WORDS:
            return _WORDS.get(value, _WORDS.get(value.lower()))
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, bool) or is_number(value) else None


def _mean(values: list[float | None]) -> float:
    """Average the epochs of a metric that is a number in each."""
    return fmean(value for value in values if value is not None)


def _numeric(scores: Mapping[str, _Scores], what: str) -> set[str]:
    """Return the metrics that are one number for every item that has them; warn of the others."""
    without = {
        metric: name
        for name, of_item in scores.items()
        for metric, values in of_item.items()
        if None in values
    }
    numeric = {metric for of_item in scores.values() for metric in of_item} - without.keys()
    reasons = [f"{metric} (sample {name})" for metric, name in without.items()]
    if not numeric:
        raise BenchmarkError(
            f"{what}: no score is one number for each sample: {first_names(reasons, 5)}"
        )
    if reasons:
        warnings.warn(
            f"{what}: left out, because a score is not one number: {first_names(reasons, 5)}",
            stacklevel=3,
        )
    return numeric


def _shares(scores: Iterable[_Scores]) -> frozenset[str]:
    """Return the metrics whose scores are 0, 0.5 or 1, so that no other can lie beyond 0 and 1."""
    within: dict[str, bool] = {}
    for of_item in scores:
        for metric, values in of_item.items():
            within[metric] = within.get(metric, True) and all(v in (0.0, 0.5, 1.0) for v in values)
    return frozenset(metric for metric, is_share in within.items() if is_share)


def _warn_of_reducers(spec: JsonObject, what: str) -> None:
    """Warn if Inspect joined the epochs of a sample in another way than by their mean."""
    config = spec.get("config")
    reducers = config.get("epochs_reducer") if isinstance(config, dict) else None
    others = [str(r) for r in reducers if r != "mean"] if isinstance(reducers, list) else []
    if others:
        warnings.warn(
            f"{what}: the epochs of a sample are averaged here, and not joined by {', '.join(others)} as "
            "in its own results",
            stacklevel=3,
        )


def _sample(place: int, sample: JsonObject, scores: dict[str, float]) -> Sample:
    asked = [_texts(sample.get("input")), sample.get("choices"), sample.get("target")]
    messages = sample.get("messages")
    prompt = None
    if isinstance(messages, list) and messages:
        prompt = _hash(_texts(list(takewhile(lambda message: not _is_reply(message), messages))))
    return Sample(
        doc_id=place,
        doc_hash=_hash(asked),
        question=None,
        target=str(sample.get("target", "")),
        prompt_hash=prompt,
        scores=scores,
    )


def _is_reply(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _texts(messages: object) -> object:
    """Return an input without the ids of its messages, which are new in each evaluation."""
    if not isinstance(messages, list):
        return messages
    return [
        {key: message.get(key) for key in ("role", "content")}
        if isinstance(message, dict)
        else message
        for message in messages
    ]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
