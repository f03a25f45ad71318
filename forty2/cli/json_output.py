"""The output of `--json`: one object, whose `schema` names the form and its version.

A version changes when a key goes away or changes its meaning; new keys do not change it. Every key is
described here, the manual's page is made from it, and a key that is missing here is a bug that stops
the command.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import click


class Schema(NamedTuple):
    """The form of what a command prints with `--json`."""

    commands: str
    version: int
    keys: Mapping[str, str]
    """Meaning of each key at the top."""


_ENTRY = {
    "path": "the run folder",
    "name": "the recipe's name",
    "state": "finished, stopped, running, failed or damaged",
    "started": "UTC, ISO 8601; empty if the record is damaged",
    "model": "the base model as the recipe names it",
    "model_path": "its folder",
    "init_from": "adapter that the run went on from, or null",
    "phases": "objective of each phase by name, in order",
    "finished_phases": "how many of them are finished",
    "metrics": "figures of the last measured stage, `valid_…` of the last phase, and `minutes` at work",
    "base_metrics": "figures of the base model",
    "verdict": "verdict on the last stage, or empty",
    "size": "bytes of the folder",
    "fused": "folders of the fused model and its quantized copy",
    "notes": "notes, each with `time` and `text`",
    "tags": "tags",
    "problem": "the error that ended the run, or null",
}
_SWEEP = {
    "name": "the folder's name",
    "method": "how configurations were chosen",
    "grid": "the keys tried, as written",
    "recipe": "the recipe, as YAML",
    "parameters": "names of the keys tried",
    "metric": "the metric that is optimised, with its `goal`",
    "seeds": "seeds of each configuration",
    "early_stop": "whether bad configurations get no more seeds",
    "questions": "the questions measured",
    "statistics": "level, resamples and seed of the intervals",
    "base": "scores of the base model",
    "configurations": "each with `name`, `settings`, `seeds`, `state`, `scores` and `seconds`",
    "shared_seconds": "seconds of work that several configurations share",
    "best": "name of the configuration with the best mean, or null",
    "winner": "name of the one that is better beyond doubt, or null",
    "against": "change of the best against each other",
    "sentence": "the finding in a sentence",
    "confirmed": "what `sweep confirm` found, or null",
    "run": "model and versions",
    "items": "scores of every item, by configuration and metric",
}
SCHEMAS: Mapping[str, Schema] = {
    "ablate": Schema(
        "ablate",
        1,
        {
            "name": "the recipe's name",
            "seeds": "the seeds",
            "margin": "largest loss that counts as no tax",
            "statistics": "level, resamples and seed of the intervals",
            "notes": "what could not be measured",
            "variants": "by variant and metric: the score over seeds",
            "changes": "each `variant` `against` another, with changes, verdict and sentence",
            "insight": "whether DPO mends what SFT costs, or null",
            "dose": "with --dose: the SFT `phase`, the `preference` phase or null, `points` (each `dose` with "
            "its variants), `harms` (each with its first `dose` and whether it is `restored`), `sentence`; or null",
            "recipe": "the recipe, as YAML",
            "items": "scores of every item, by variant and metric",
            "questions": "the questions measured",
            "run": "model and versions",
        },
    ),
    "benchmark": Schema(
        "benchmark NAME",
        1,
        {
            "benchmark": "name of the benchmark",
            "model": "the model as named",
            "adapter": "adapter folder, or null",
            "seed": "seed of the sample and of sampled answers, or null",
            "data": "name or path of the questions",
            "data_sha256": "sha256 of the questions",
            "settings": "settings of the measurement",
            "figures": "means by metric, `stderr` by metric, `n`, and the benchmark's other figures",
            "versions": "device and versions",
            "out": "file with every item, or null",
        },
    ),
    "benchmark.base": Schema(
        "benchmark base",
        1,
        {
            "model": "the model as named",
            "adapter": "its adapter, or null",
            "gates": "each with `benchmark`, `metric`, `score`, `low` and `high` (95% interval), `n`, `least`, "
            "`answer` (passed, failed or cannot be told), `data`, `data_sha256`",
            "failed": "number of gates that failed",
            "sentence": "which failed, and which cannot be told",
            "n": "questions asked for of each benchmark, or null for all",
            "seed": "seed of the samples",
            "versions": "device and versions",
            "out": "folder of the results, or null",
        },
    ),
    "benchmark.judge": Schema(
        "benchmark judge",
        1,
        {
            "result": "all of the file but its `items`: mode, counts, `score`, `interval`, `agreement`, …",
            "out": "file with every reply",
        },
    ),
    "compare": Schema(
        "compare",
        1,
        {
            "questions": "name of the questions that the benefit is over",
            "n": "their number",
            "before": "the model before",
            "after": "the model after",
            "margin": "largest loss that counts as no tax",
            "metrics": "by metric: `before`, `after`, `difference`, `low` and `high` (95% interval), `stderr`, "
            "`detectable`, `n`, `better`, `worse`, `p`, `p_holm`, `verdict`",
            "judged": "metrics that the verdict is over",
            "categories": "mean change by category",
            "kl": "KL(after ‖ before) in nats a token, or null",
            "changed": "share of items judged otherwise",
            "tasks": "by benchmark: metrics `judged` and `verdict`",
            "verdict": "no change, gain, no tax, tax, inconclusive, or gain, cost unclear",
            "costs": "changes in what the base could do, each with `where`, `name`, `before`, `after`, `n`, "
            "`margin`, `answer`, `better`",
            "sentence": "benefit and cost in a sentence",
            "left_out": "what only one of two stages measured, a sentence for each benchmark",
        },
    ),
    "data.lint": Schema(
        "data lint",
        1,
        {
            "findings": "each with `check`, `level` (error, warning or info), `message`, `count` of rows, and "
            "`origins` of the first few",
            "ignored": "keys that nothing reads, in a sentence, or empty",
        },
    ),
    "data.stats": Schema(
        "data stats",
        1,
        {
            "rows": "readable rows",
            "tokens": "tokens of all rows",
            "supervised": "share of supervised tokens",
            "unreadable": "rows that cannot be read",
            "unreadable_because": "each `reason` with its `rows` and the `first` few",
            "ignored": "keys that nothing reads, in a sentence, or empty",
            "near_duplicates": "share of rows that nearly repeat an earlier one",
            "histogram": "pairs of a range of tokens a row, and the rows in it",
            "strata": "by key: rows of each value",
        },
    ),
    "failures.cluster": Schema(
        "failures cluster",
        1,
        {
            "sentence": "the finding in a sentence",
            "text": "what of an item was embedded",
            "model": "the embedding model as named",
            "model_sha256": "sha256 of its files",
            "items": "number of scored items",
            "failures": "how many of them failed",
            "strata": "each with `name`, `passed`, `failed`, `unscored` and the pass rate's `interval`",
            "stability": "`rand`, `jaccard` by cluster, `resamples`, `drawn` and `least_rand`",
            "least_jaccard": "smallest Jaccard index of a stable cluster",
            "stable": "whether the clusters as a whole are stable",
            "clusters": "each with number, size, failures, rates, `interval`, `p`, `p_holm`, `worse`, `terms`, …",
            "k_asked": "number of clusters asked for, or auto",
            "k": "number of clusters",
            "silhouettes": "silhouette by k, or null if k was given",
            "seed": "seed of the clusters and resamples",
        },
    ),
    "failures.find": Schema(
        "failures find",
        1,
        {
            "model": "the model as named",
            "adapter": "adapter as named, or null",
            "max_tokens": "longest reply in tokens",
            "batch_size": "replies generated at a time",
            "scoring": "settings of the judge's scores, or null",
            "judge": "`name` and `model` of the judge, or null",
            "testset_sha256": "sha256 of each half of the test set",
            "weights": "hashes of the weights",
            "template_date": "day that the chat template got, or null",
            "trained_on": "the run and the files that were searched for the questions, or null",
            "strata": "by stratum: counts, `pass_rate` and its `interval`",
            "all": "the same over all strata",
            "replies": "their number, how many stopped, how many failed and were cut, and their tokens",
            "by": "number of verdicts by verifier and by judge",
            "unscored": "number of unscored replies by reason",
            "judged": "requests, agreement, verdicts that another threshold would change, `tokens` and `cost`; null "
            "without a judge",
        },
    ),
    "failures.generate": Schema(
        "failures generate",
        1,
        {
            "teacher": "the teacher as named",
            "teacher_model": "model on the server, or null",
            "size": "rows wanted of each arm",
            "seed": "seed of all random choices",
            "temperature": "sampling temperature of a chat model, or null",
            "max_tokens": "longest reply of a chat model, or null",
            "testset_sha256": "sha256 of each half of the test set",
            "verdicts_sha256": "sha256 of the verdicts",
            "clusters_sha256": "sha256 of the clusters",
            "labels_sha256": "sha256 of the labels, or null",
            "sentence": "the result in a sentence",
            "complete": "false if the budget ended",
            "arms": "for `targeted` and `random`: `wanted`, `asked`, `made`, `refused` by reason, `kept`, `strata`",
            "targets": "the same for each worse cluster, and for the random arm",
            "notes": "what could not be done",
            "tokens": "of prompts and replies, and how many answers are `estimated`",
            "cost": "in money, or null without prices",
            "estimate": "of a dry run: `requests`, and at most so many `tokens` and `cost`; or null",
            "generated_sha256": "sha256 of the rows, or null in a dry run",
        },
    ),
    "failures.label": Schema(
        "failures label",
        1,
        {
            "sentence": "the finding in a sentence",
            "source": "what made the labels: terms, or the teacher as named",
            "teacher_model": "model on the server, or null",
            "requests": "number `sent`, `failed` and `unreadable`, or null",
            "clusters_sha256": "sha256 of the clusters that they are of",
            "labels": "each with `cluster`, `label`, `sorted`, `right`, `p`, `p_holm`, `weak`",
        },
    ),
    "failures.recover": Schema(
        "failures recover",
        1,
        {
            "verdict": "helps more than random, helps like random, helps less than random, does not help, harms "
            "elsewhere, or cannot be told",
            "sentence": "the verdict with its intervals",
            "warnings": "what to know of it, in sentences",
            "model": "the model whose failures were found",
            "adapter": "its adapter, or null",
            "model_sha256": "sha256 of the model's weights",
            "seeds": "seeds of the runs",
            "items": "number of untouched items with a verdict in every arm and seed",
            "groups": "groups of near duplicates that they are in",
            "unscored": "number of untouched items without",
            "rates": "mean pass rate over seeds and these items, by arm",
            "differences": "each with `arm`, `than`, `difference`, `low` and `high` (95% interval)",
            "costs": "by trained arm: changes in what the base could do, as in `compare`",
            "arms": "by arm: verdicts by seed and pass rate, over `all` and by stratum; `stop_rate` by seed",
            "rows": "by arm: rows, tokens, `original_share`, and what was left out; the `original` data; "
            "`budget_tokens`",
            "steps": "optimizer steps by arm and seed",
            "runs": "folders of the runs by arm",
            "statistics": "level, resamples and seed of the intervals",
            "testset_sha256": "sha256 of each half of the test set",
            "accepted_sha256": "sha256 of the accepted rows",
            "recipe": "the recipe with every default",
            "versions": "device and versions",
        },
    ),
    "failures.run": Schema(
        "failures run",
        1,
        {
            "folder": "folder of the loop",
            "steps": "by step: done, kept (from before) or left out",
            "sentence": "what came out",
            "recovered": "what `failures recover` prints, or null if nothing was trained",
            "report": "the page",
        },
    ),
    "failures.score": Schema(
        "failures score",
        1,
        {
            "generated_sha256": "sha256 of the rows that were scored",
            "judge": "the judge as named, or null",
            "judge_model": "model on the server, or null",
            "seed": "seed of the requests",
            "at_least": "smallest mean score that is accepted",
            "repeats": "times that the judge scores a row",
            "temperature": "sampling temperature of the judge",
            "max_tokens": "longest reply of the judge",
            "sentence": "the result in a sentence",
            "arms": "for `targeted` and `random`: `rows`, `accepted`, `refused` and `unscored` by reason",
            "clusters": "rows and accepted rows of each cluster",
            "by": "accepted rows by verifier and by judge",
            "judged": "requests, agreement, and verdicts that another threshold would change, or null",
            "complete": "false if the budget ended",
            "tokens": "of prompts and replies, and how many answers are `estimated`; null without a judge",
            "cost": "in money, or null without prices",
            "accepted_sha256": "sha256 of the accepted rows",
        },
    ),
    "failures.testset": Schema(
        "failures testset",
        1,
        {
            "items": "number of items",
            "seed": "seed of all random choices",
            "strata": "by stratum: items `asked`, `items`, in each half, and `with_verifier`",
            "sources": "each source with its rows",
            "sha256": "sha256 of each half",
            "dropped": "duplicates and near duplicates by stratum, and what each file of training data held",
            "disjoint_from": "training data as named",
            "groups": "`number` of groups of similar questions, and the `largest`",
            "versions": "versions of packages",
        },
    ),
    "generate": Schema(
        "generate",
        1,
        {
            "replies": "each with `prompt`, or `origin` and `messages`, or `id` and `prompt`; and with `reply`, "
            "`tokens`, and `stopped` (false: cut at --max-tokens)",
        },
    ),
    "logprobs": Schema(
        "logprobs",
        1,
        {
            "out": "the file written",
            "rows": "pairs in it",
            "chosen": "mean summed log-probability of the chosen responses, in nats",
            "rejected": "the same of the rejected ones",
            "right": "share of pairs whose chosen response is the likelier one; a tie counts half",
        },
    ),
    "model.info": Schema(
        "model info",
        1,
        {"facts": "label and value of each line, numbers as numbers"},
    ),
    "plan": Schema(
        "plan",
        1,
        {
            "name": "the recipe's name",
            "model": "the base model",
            "parameters": "its parameters",
            "trainable": "parameters that a phase trains; of several, the most",
            "init_from": "adapter to go on from, or null",
            "phases": "each with `rows`, `valid_rows`, `dropped`, `shortened`, tokens, `steps`, `exposures`, "
            "`peak_memory_gb`, `stored_gb`, `kept_bytes`, `checkpoint_bytes`, …",
            "peak_memory_gb": "estimated peak",
            "machine_memory_gb": "memory of this machine",
            "warnings": "what deserves a look",
            "disk": "`run`, bytes `kept` and `working`, and `fused` by folder",
            "seconds": "estimated time, or null if it was not measured",
            "longest": "what takes the longest, or empty",
        },
    ),
    "recipe.list": Schema(
        "recipe list", 1, {"recipes": "summary of each packaged recipe, by name"}
    ),
    "run": Schema(
        "run, train, demo",
        1,
        {
            "run": "the run folder",
            "adapter": "folder of the last phase",
            "fused": "folder of the fused model, or null",
            "report": "the HTML report",
            "stages": "by stage and benchmark: its figures",
            "verdict": "verdict on the last stage, or empty",
            "sentence": "benefit and cost in a sentence",
            "next_steps": "what phases lost of what the ones before had reached, and what to try, in sentences",
            "verdicts": "verdict of each benchmark",
            "contamination": "sentences about benchmark questions among the training rows",
            "warnings": "warnings about data, training and fusing",
        },
    ),
    "runs.compare": Schema(
        "runs compare",
        1,
        {
            "runs": "the runs as named",
            "differences": "settings that differ: value in each run, by key",
            "measured": "each run against the first: `before`, `after`, `comparison` (as of compare) or "
            "`reason`",
            "replies": "prompts that all answered: `task`, `prompt`, `replies`",
        },
    ),
    "runs.list": Schema("runs list", 1, {"runs": "the runs, each with the keys of runs show"}),
    "runs.show": Schema("runs show", 1, _ENTRY),
    "sweep": Schema("sweep run, show, confirm", 1, _SWEEP),
}


def schema_id(name: str) -> str:
    """Return the value of `schema`, e.g. `forty2.compare/1`."""
    return f"forty2.{name}/{SCHEMAS[name].version}"


def echo_json(name: str, content: Mapping[str, object]) -> None:
    """Print what a command found, as one line of strict JSON.

    Args:
        name: key in `SCHEMAS`.
        content: a value for each key that the schema describes.

    Raises:
        TypeError: the keys are not those of the schema: a bug.
    """
    described = SCHEMAS[name].keys
    if content.keys() != described.keys():
        raise TypeError(
            f"{name}: keys {sorted(content.keys() ^ described.keys())} are not described"
        )
    found = {"schema": schema_id(name), **{key: plain(content[key]) for key in described}}
    click.echo(json.dumps(found, ensure_ascii=False, allow_nan=False))


def plain(value: object) -> object:
    """Return a value as JSON has it: records as objects, paths as text, infinite and NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def as_markdown() -> str:
    """Describe every schema, for the manual."""
    parts = []
    for name, schema in SCHEMAS.items():
        commands = ", ".join(
            f"`forty2 {command.strip()}`" for command in schema.commands.split(",")
        )
        head = f"## {schema_id(name)}\n\nPrinted by {commands}.\n\n| key | holds |\n|---|---|\n"
        parts.append(head + "\n".join(f"| `{key}` | {text} |" for key, text in schema.keys.items()))
    return "\n\n".join(parts)
