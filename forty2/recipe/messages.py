"""Messages about the problems of a recipe: pydantic's errors, missing files, secrets."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_core import ErrorDetails

from forty2.errors import redact
from forty2.recipe.document import Document, Location, Problem, yaml_type
from forty2.recipe.paths import NO_FILES, replay_sources
from forty2.recipe.schema import SECTIONS, keys_of
from forty2.recipe.templates import packaged_templates
from forty2.training.objectives import OBJECTIVES

if TYPE_CHECKING:
    from forty2.text.row_kinds import RowKind

_KEYS = {name: [*keys_of(kind).values()] for name, kind in SECTIONS.items()}
_OTHER_NAMES = {
    theirs: ours
    for ours, names in {
        "lr": "learning_rate",
        "steps": "iters max_iters max_steps num_steps",
        "epochs": "num_train_epochs num_epochs",
        "batch_size": "per_device_train_batch_size micro_batch_size",
        "accumulate": "gradient_accumulation_steps grad_accumulation_steps accumulation_steps",
        "schedule": "lr_scheduler_type lr_scheduler lr_schedule",
        "warmup_steps": "warmup num_warmup_steps",
        "eval_every_steps": "eval_steps steps_per_eval",
        "save_every_steps": "save_steps save_every",
        "grad_checkpoint": "gradient_checkpointing",
        "max_length": "max_seq_length max_seq_len sequence_len cutoff_len model_max_length",
        "model": "base_model model_name model_name_or_path model_path",
        "data": "dataset datasets train_data train_file",
        "valid": "eval_dataset validation valid_data val_data",
        "layers": "num_layers lora_layers",
        "rank": "r lora_r lora_rank",
        "dropout": "lora_dropout",
        "keys": "target_modules lora_target_modules lora_keys",
        "clip_norm": "max_grad_norm grad_clip gradient_clipping",
        "optimizer": "optim",
        "objective": "train_mode training_type",
    }.items()
    for theirs in names.split()
}
"""Names that other packages give to our keys."""
_ALPHA = {"alpha", "lora_alpha", "use_rslora"}
"""Keys of other packages for the strength of an adapter."""
_FILES = ("data", "valid", "eval_prompts")
"""Keys of a phase that name a file."""
_PLAIN = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "list_type": "should be a list",
    "dict_type": "should be a mapping of keys to values",
    "dataclass_type": "should be a mapping of keys to values",
    "too_short": "should have at least one entry",
    "string_pattern_mismatch": (
        "should be 1 to 64 letters, digits, '_', '-' or '.', the first a letter or digit"
    ),
}
"""Messages in place of pydantic's, by its name for the error."""
_TYPES = frozenset(name for name in _PLAIN if name.endswith("_type"))
"""Errors about the type of a value."""


def explain_all(errors: Sequence[ErrorDetails], document: Document) -> list[Problem]:
    """Say what pydantic's errors mean, each with its line.

    For a value that may be of several types pydantic has one error for each of them: that is one
    problem, or none where a part of the value, or the right type of it, has a problem of its own.
    """
    places = [_locate(error["loc"], document.tree) for error in errors]
    types: dict[Location, list[ErrorDetails]] = {}
    for error, at in zip(errors, places, strict=True):
        if error["type"] in _TYPES:
            types.setdefault(at, []).append(error)
    problems: list[Problem] = []
    for error, at in zip(errors, places, strict=True):
        if error["type"] not in _TYPES:
            problems.append(explain(error, document))
        elif error is types[at][0]:
            within = sum(place[: len(at)] == at for place in places)
            if within == len(types[at]):
                problems.append(_one_of(types[at], at, document))
    return problems


def _one_of(errors: Sequence[ErrorDetails], at: Location, document: Document) -> Problem:
    """Say which types a value may have."""
    if len(errors) == 1:
        return explain(errors[0], document)
    *names, last = (_PLAIN[error["type"]].removeprefix("should be ") for error in errors)
    given = errors[0]["input"]
    said = "" if isinstance(given, dict | list) else f", not {given!r}"
    return document.problem(at, f"should be {', '.join(names)} or {last}{said}")


def explain(error: ErrorDetails, document: Document) -> Problem:
    """Say what one of pydantic's errors means, with its line."""
    at = _locate(error["loc"], document.tree)
    kind, given = error["type"], error["input"]
    if kind == "unexpected_keyword_argument":
        return document.problem(at, _unknown_key(str(at[-1]), _section(error["loc"])))
    if kind == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        message = f"{tag!r} is not an objective; use one of {', '.join(OBJECTIVES)}"
        return document.problem((*at, "objective"), message)
    if kind == "union_tag_not_found":
        message = f"missing; use one of {', '.join(OBJECTIVES)}"
        return document.problem((*at, "objective"), message)
    if kind in ("missing", "missing_argument"):
        return document.problem(at, "missing")
    if kind == "value_error":  # from a validator of ours, which names the key
        key, _, message = str(error["ctx"]["error"]).partition(": ")
        return document.problem((*at[:-1], key), message)
    message = _PLAIN.get(kind) or error["msg"].replace("Input should", "should")
    if not isinstance(given, dict | list):
        message += f", not {given!r}"
    if isinstance(given, str) and _needs_no_quotes(error, given):
        message += "; remove the quotes"
    return document.problem(at, message)


def missing_files(document: Document) -> Iterator[Problem]:
    """Report files that a recipe names and that do not exist."""
    phases = document.tree.get("phases")
    for name, section in phases.items() if isinstance(phases, dict) else ():
        for key in _FILES:
            value = section.get(key) if isinstance(section, dict) else None
            if isinstance(value, str) and not value.startswith(NO_FILES):
                path = Path(os.path.expanduser(value))
                if not os.path.exists(path):
                    message = f"{value}: no such file or folder"
                    yield document.problem(("phases", name, key), message)
                elif path.is_dir() and not any(path.iterdir()):
                    yield document.problem(("phases", name, key), f"{value}: holds no data")
        yield from _sources_of_replay(document, name)
    template = document.tree.get("chat_template")
    is_file = isinstance(template, str) and template not in packaged_templates()
    if is_file and not os.path.isfile(os.path.expanduser(str(template))):
        yield document.problem(("chat_template",), f"{template}: no such file")
    benchmark = document.tree.get("benchmark")
    if isinstance(benchmark, dict):
        questions, tasks = benchmark.get("questions"), benchmark.get("tasks")
        if isinstance(questions, str) and questions != "probe" and not os.path.isfile(questions):
            yield document.problem(("benchmark", "questions"), f"{questions}: no such file")
        for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
            data = task.get("data") if isinstance(task, dict) else None
            if isinstance(data, str) and data != "probe" and not os.path.exists(data):
                at = ("benchmark", "tasks", number, "data")
                yield document.problem(at, f"{data}: no such file or folder")


def _sources_of_replay(document: Document, name: str) -> Iterator[Problem]:
    """Report what a phase cannot replay: phases that come later or have other rows, missing files."""
    phases = document.tree["phases"]
    before = list(phases)[: list(phases).index(name)]
    for number, source in replay_sources(phases[name]):
        message = ""
        if source in before:
            ours, theirs = (_row_kind(phases[one]) for one in (name, source))
            if ours is not None and theirs is not None and theirs not in (ours, *ours.takes_also):
                message = f"{source} has {theirs.name}, and {name} learns from {ours.name}"
        elif source in phases:
            message = f"{source} is not trained before {name}; a phase replays earlier ones"
        elif not source.startswith(NO_FILES) and not os.path.exists(os.path.expanduser(source)):
            there = f"before {name} there is {', '.join(before)}" if before else "it is the first"
            message = f"{source}: no such file or folder, and no phase; {there}"
        if message:
            yield document.problem(("phases", name, "replay", number, "from"), message)


def _row_kind(phase: object) -> RowKind | None:
    """Return the kind of rows of a phase; None: it has no objective that there is."""
    objective = phase.get("objective") if isinstance(phase, dict) else None
    kind = OBJECTIVES.get(objective) if isinstance(objective, str) else None
    return kind.row_kind if kind is not None else None


def secrets(document: Document) -> Iterator[Problem]:
    """Report passwords and tokens: a recipe is copied into its run and its report."""
    message = "holds a password or token; take it out, and log in with `hf auth login`"
    for at, text in _texts(document.tree, ()):
        if redact(text) != text:
            yield document.problem(at, message)


def _texts(value: object, at: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(part, (*at, key))


def _section(loc: Sequence[str | int]) -> str:
    """Return the section that holds the key at pydantic's location."""
    return next((str(key) for key in reversed(loc[:-1]) if key in SECTIONS), "recipe")


def _unknown_key(key: str, section: str) -> str:
    """Say to which section a misplaced key belongs, or which key was probably meant."""
    if section == "adapter" and key in _ALPHA:
        return "unknown key; set scale instead: scale is alpha / rank (rsLoRA: alpha / √rank)"
    known = _OTHER_NAMES.get(key, key)
    owners = [name for name, keys in _KEYS.items() if known in keys]
    if section == "recipe" and owners and {*owners} <= {*OBJECTIVES}:
        return f"is a key of phases, phases.NAME.{known}; move it or remove it"
    if owners and section not in owners:
        names = ["the recipe" if name == "recipe" else name for name in (*owners, section)]
        joined = " and ".join(", ".join(names[:-1]).rsplit(", ", 1))
        return f"belongs to {joined}, not to {names[-1]}; move it or remove it"
    if section == "recipe" and key in OBJECTIVES:
        return f"unknown key; did you mean phases.{key}?"
    close = [known] if owners else difflib.get_close_matches(key, _KEYS[section], 1)
    return f"unknown key{f'; did you mean {close[0]}?' if close else ''}"


def _needs_no_quotes(error: ErrorDetails, given: str) -> bool:
    """Return whether a quoted text would have the expected type without its quotes."""
    kind = error["type"]
    if kind == "literal_error":
        return given in re.split(", | or ", error["ctx"]["expected"])
    found = yaml_type(given)
    return kind == f"{found}_type" or (kind, found) == ("float_type", "int")


def _locate(loc: Sequence[str | int], tree: object) -> Location:
    """Return pydantic's location without the tags that it adds for unions."""
    at: list[str | int] = []
    here = tree
    for i, key in enumerate(loc):
        if isinstance(here, dict) and key in here:  # noqa: SIM114  # as one, mypy cannot follow
            here = here[key]
        elif isinstance(here, list) and isinstance(key, int):
            here = here[key]
        elif i < len(loc) - 1 or not isinstance(here, dict) or key == "[key]" or key in OBJECTIVES:
            continue
        at.append(key)
    return tuple(at)
