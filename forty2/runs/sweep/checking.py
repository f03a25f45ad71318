"""Checks of all configurations before the first run: what they measure, and the rows of their phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from forty2.errors import Forty2Error, RecipeError
from forty2.recipe.grid import Grid
from forty2.runs.planning import plan
from forty2.runs.sweep.configurations import Configuration, in_grid, in_words
from forty2.runs.sweep.metrics import objective_of, row_kinds_of

_NOT_OF_ROWS = (
    *("lr", "tags_lr", "beta", "weight_decay", "schedule", "clip_norm", "optimizer"),
    *("label_smoothing", "f_divergence", "gamma_beta_ratio", "sft_weight", "length_desensitise"),
    *("desirable_weight", "undesirable_weight", "dropout", "scale"),
)
"""Keys that change neither the rows of a phase nor their order, so that one check serves all values."""


def check_metrics(grid: Grid, every: Sequence[Configuration]) -> None:
    """Refuse a metric that one of the configurations does not measure.

    Raises:
        RecipeError: naming the configuration.
    """
    _check_each(grid, every, lambda one: objective_of(grid, one.recipe))


def check_rows(
    grid: Grid, every: Sequence[Configuration], path: Path, *, trust_remote_code: bool
) -> None:
    """Plan each configuration, to find what its rows or the model do not allow.

    Args:
        path: folder of the sweep.

    Raises:
        RecipeError: naming the configuration.
    """
    different = {
        in_words({key: v for key, v in one.settings.items() if _may_concern_rows(key)}): one
        for one in reversed(every)
    }
    _check_each(
        grid,
        [*reversed(different.values())],
        lambda one: _check_rows(grid, one, path, trust_remote_code=trust_remote_code),
    )


def _check_rows(grid: Grid, one: Configuration, path: Path, *, trust_remote_code: bool) -> None:
    """Plan a configuration, and refuse a metric of held-out rows if there are fewer than two.

    Raises:
        RecipeError: such a metric, or whatever planning finds.
    """
    recipe = one.recipe
    forecast = plan(recipe, run_dir=path, quick=True, trust_remote_code=trust_remote_code)
    objective = objective_of(grid, recipe)
    kinds = row_kinds_of(objective.metric)
    rows = sum(
        phase.valid_rows + phase.hold_out_rows
        for phase in forecast.phases
        if recipe.phases[phase.name].row_kind.name in kinds
    )
    if kinds and rows < 2:
        raise RecipeError(
            f"{grid.place}:{grid.metric_line}: metric.name: {objective.name} has {rows} held-out "
            f"row{'' if rows == 1 else 's'}, and an interval needs two; add validation rows"
        )


def _may_concern_rows(key: str) -> bool:
    return key.rpartition(".")[2] not in _NOT_OF_ROWS


def _check_each(
    grid: Grid, every: Sequence[Configuration], check: Callable[[Configuration], object]
) -> None:
    """Check each configuration, and report every problem with the first that has it.

    Raises:
        RecipeError: there is a problem; without settings where all configurations have it.
    """
    problems: dict[str, list[Configuration]] = {}
    for one in every:
        try:
            check(one)
        except Forty2Error as error:
            problems.setdefault(str(error), []).append(one)
    if problems:
        raise RecipeError(
            "\n".join(
                _placed(grid, those[0], text, by_settings=len(those) < len(every))
                for text, those in problems.items()
            )
        )


def _placed(grid: Grid, one: Configuration, text: str, *, by_settings: bool) -> str:
    """Say of a problem where in the grid it is, or else which settings have it, if not all do."""
    problem = in_grid(grid, one.settings, text)
    return problem.text if problem.line or by_settings else text
