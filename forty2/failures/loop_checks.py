"""Checks of a loop before its first step, so that no fault stops it hours later at its last one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Container

from forty2.errors import Forty2Error, RecipeError, RunError
from forty2.failures.arms_recipe import FailingModel, recipe_of_arms
from forty2.failures.asking import Limits
from forty2.failures.chat_models import ChatModel
from forty2.failures.kmeans import need_scikit_learn
from forty2.failures.loop_file import LoopFile, ReadLoop, Server
from forty2.failures.sources import BUILTIN
from forty2.failures.training_data import training_files
from forty2.inference.chat_endpoint import Role
from forty2.inference.embedding import load_embedder
from forty2.recipe.document import Location, listed
from forty2.recipe.paths import NO_FILES

_ANY_ROWS = "builtin:spark-sft"
"""Stands for the rows of the arms, which are not there yet."""


def check_loop(read: ReadLoop, done: Container[str]) -> None:
    """Check what the steps need that are not done yet.

    Args:
        done: names of the steps that are.

    Raises:
        RecipeError: listing every problem, one a line.
    """
    file = read.loop
    asks_teacher = "generate" not in done or (file.label.by == "teacher" and "label" not in done)
    asks_judge = any(step not in done for step in ("find", "score", "recover"))
    checks: list[tuple[bool, Location, Callable[[], object]]] = [
        (True, ("limits",), lambda: limits_of(file)),
        (asks_teacher, ("teacher",), lambda: _server(file.teacher, "teacher")),
        (asks_judge, ("judge",), lambda: _server(file.judge, "judge")),
        ("cluster" not in done, ("cluster",), need_scikit_learn),
        ("cluster" not in done, ("cluster", "model"), lambda: load_embedder(file.cluster.model)),
        ("recover" not in done, ("recover", "seeds"), lambda: _check_seeds(file)),
        ("recover" not in done, ("recover", "original"), lambda: _check_original(file)),
        ("recover" not in done, ("recover", "recipe"), lambda: _check_recipe(file)),
    ]
    problems = []
    for needed, at, check in checks:
        try:
            if needed:
                check()
        except RecipeError as error:
            in_file = read.in_recipe(error) if isinstance(file.recover.recipe, dict) else error
            problems.append(read.document.problem(at, "")._replace(text=str(in_file)))
        except Forty2Error as error:
            problems.append(read.document.problem(at, str(error)))
    if problems:
        raise RecipeError(listed(problems))


def limits_of(file: LoopFile) -> Limits:
    """Return how fast servers are asked, and what each step may cost.

    Raises:
        DataError: a budget in money has no prices.
    """
    return Limits(**dataclasses.asdict(file.limits))


def chat_model(server: Server, role: Role) -> ChatModel:
    """Return a server of the file as a model to ask.

    Raises:
        BenchmarkError: the address is none, or the key's variable is not set.
    """
    return ChatModel(
        name=server.name, model=server.model, api_key_env=server.api_key_env, role=role
    )


def _server(server: Server | None, role: Role) -> None:
    if server is not None and server.name != BUILTIN:
        chat_model(server, role)


def _check_seeds(file: LoopFile) -> None:
    from forty2.runs.replicates import check_seeds

    check_seeds(file.recover.seeds)


def _check_original(file: LoopFile) -> None:
    original = file.recover.original
    if original is None:
        return
    for source in training_files(original):
        if not source.source.startswith(NO_FILES) and not os.path.exists(source.source):
            raise RunError(f"{source.source}: no such file or run")


def _check_recipe(file: LoopFile) -> None:
    from forty2.model.base_model import find_model_and_adapter

    name, adapter = find_model_and_adapter(file.model, file.adapter)
    model = FailingModel(name, None if adapter is None else str(adapter))
    recipe_of_arms(file.recover.recipe, (), model, _ANY_ROWS)
