"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.run_paths import expand_run_name

if TYPE_CHECKING:
    from forty2.recipe.schema import Recipe

Command = Callable[..., None]
"""Function of a command."""
Decorator = Callable[[Command], Command]

_WORTH_SAYING = 1.5
"""Slowdown by the BLAS that is reported. Less is within what a busy machine measures."""
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

model_option = partial(click.option, "--model", "-m")
"""Option `--model`; the command gives its help text or default."""
trust_remote_code = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Allow running the architecture code in the model's folder.",
)
run_dir = click.option("--run-dir", type=PATH, help="Folder of the run. Default: adapters/NAME.")
out_option = partial(click.option, "--out", "-o", type=PATH)
"""Option `--out`; the command gives its help text."""
seed_option = partial(click.option, "--seed", default=42, show_default=True)
"""Option `--seed`; the command gives its help text."""


def whole_numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    """Read whole numbers that are separated by commas."""
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise click.BadParameter("give whole numbers separated by commas, e.g. 1,2,3") from error


seeds_option = partial(
    click.option,
    "--seeds",
    show_default=True,
    callback=whole_numbers,
    help="Two or more seeds, separated by commas; all is trained once with each.",
)
"""Option `--seeds`; the command gives its default."""
temperature = click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Sampling temperature. With 0, always the likeliest token.",
)
data = click.option("--data", "-d", required=True, type=PATH, help="File or folder to read.")
limit = click.option(
    "--limit",
    type=click.IntRange(1),
    help="Number of questions to take, from the first, as with lm-eval's --limit. Default: all.",
)
n_questions = click.option(
    "--n", type=click.IntRange(1), help="Number of questions to sample. Default: all."
)
max_length = click.option(
    "--max-length",
    default=1024,
    show_default=True,
    type=click.IntRange(2),
    help="Longest row in tokens.",
)
as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON; see docs/reference/json.md.",
)
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, e.g. phases.dpo.lr=2e-6. Repeatable.",
)


def confirmed(question: str, done: str = "deleted", do: str = "delete") -> bool:
    """Ask the user, and say so if the answer is no.

    Args:
        done: what is then not done, after "nothing".
        do: what --yes does without asking.

    Raises:
        UsageError: there is nobody to answer.
    """
    try:
        if click.confirm(question):
            return True
    except click.Abort as error:
        raise click.UsageError(f"Nothing {done}: no answer. Give --yes to {do}.") from error
    echo(f"nothing {done}")
    return False


def template(function: Command) -> Command:
    """Add the options of the chat template; the command gets `template`, None without any of them."""

    @functools.wraps(function)
    def with_template(
        *,
        chat_template: Path | None,
        template_options: tuple[str, ...],
        system_turn: Literal["keep", "fold"] | None,
        template_date: datetime | None,
        **others: object,
    ) -> None:
        given = (chat_template, template_options, system_turn, template_date)
        if not any(given):
            function(template=None, **others)
            return
        from forty2.model.chat_template import TemplateSettings, read_template

        settings = TemplateSettings(
            source=(
                read_template(chat_template, "--chat-template")
                if chat_template is not None
                else None
            ),
            options=dict(map(_option, template_options)),
            system_turn=system_turn,
            date=template_date.date().isoformat() if template_date is not None else None,
        )
        function(template=settings, **others)

    return combined(
        click.option(
            "--chat-template",
            type=FILE,
            help="File with a chat template, or mypt, in place of the model's own.",
        ),
        click.option(
            "--template-option",
            "template_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="Variable of the chat template, e.g. enable_thinking=false. Repeatable.",
        ),
        click.option(
            "--system-turn",
            type=click.Choice(["keep", "fold"]),
            help="fold: merge a system turn into the user turn after it. Default: keep, or the run's of "
            "--adapter.",
        ),
        click.option(
            "--template-date",
            type=click.DateTime(["%Y-%m-%d"]),
            help="Day that the chat template takes for today. Default: today, or the run's of "
            "--adapter.",
        ),
    )(with_template)


def _option(text: str) -> tuple[str, object]:
    """Split KEY=VALUE; the value is YAML, as in a recipe."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--template-option {text}: write KEY=VALUE.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise click.UsageError(f"--template-option {text}: the value is not readable.") from error


def combined(*decorators: Decorator) -> Decorator:
    """Join options into one decorator; --help lists them in this order."""

    def apply(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def runs_model(function: Command) -> Command:
    """Have the first line say so if the command would run a model on a slow BLAS."""

    @functools.wraps(function)
    def with_warning(**arguments: object) -> None:
        _warn_of_slow_blas()
        function(**arguments)

    return with_warning


def _warn_of_slow_blas() -> None:
    from forty2 import blas

    problem = blas.load().problem
    if problem is None:
        return
    from forty2.machine import on_gpu

    if not on_gpu() and (slowdown := blas.slowdown()) > _WORTH_SAYING:
        echo(
            f"warning: matrix products take {slowdown:.0f} times as long as numpy's on this "
            f"machine: {problem}",
            err=True,
        )


def training_flags(function: Command) -> Command:
    """Add --set, --lr and --lambda, which change a recipe; the command gets their values."""
    return combined(
        set_option,
        click.option(
            "--lr",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            help="Learning rate, of the phase of preferences or of the only phase.",
        ),
        click.option(
            "--lambda",
            "--kto_lambda",
            "--kto-lambda",
            "kl_weight",
            type=click.FloatRange(0),
            help="Weight λ of a phase's term λ·KL.",
        ),
    )(function)


def recipe(function: Command) -> Command:
    """Add RECIPE, --model, --set, --lr and --lambda; the command gets the loaded `recipe`.

    A recipe in another schema may say where its run is kept. A command with `run_dir` gets that folder
    where none is given, and one with `folders` the others as well.
    """
    wants_folders = "folders" in inspect.signature(inspect.unwrap(function)).parameters

    @functools.wraps(function)
    def with_recipe(
        *,
        recipe: str,
        model: str | None,
        overrides: tuple[str, ...],
        lr: float | None,
        kl_weight: float | None,
        **others: object,
    ) -> None:
        from forty2.recipe.reading import read_recipe

        loaded, notes, folders = read_recipe(recipe, overrides, lr=lr, kl_weight=kl_weight)
        for note in notes:
            warn(note)
        if model is not None:
            loaded = dataclasses.replace(loaded, model=model)
        if "run_dir" in others and others.get("resume", "phase" in others) and folders is None:
            _check_settings(loaded, recipe, others["run_dir"], overrides, (model, lr, kl_weight))
        if folders is not None and "run_dir" in others and others["run_dir"] is None:
            others["run_dir"] = folders.run
        if wants_folders:
            others["folders"] = folders
        function(recipe=loaded, **others)

    return combined(
        click.argument("recipe"),
        model_option(help="Model folder, hub name, or smollm2. Default: the recipe's."),
        training_flags,
    )(with_recipe)


def _check_settings(
    recipe: Recipe,
    source: str,
    run_dir: object,
    overrides: Sequence[str],
    flags: tuple[str | None, float | None, float | None],
) -> None:
    """Refuse to go on with a run without the options that it began with.

    Args:
        flags: values of --model, --lr and --lambda; None: not given.
    """
    from forty2.recipe.reading import recipe_file
    from forty2.run_paths import run_path
    from forty2.runs.missing_settings import refuse_missing_settings

    keys = [override.partition("=")[0].strip() for override in overrides]
    model, lr, kl_weight = flags
    keys += ["model"] * (model is not None)
    for name in recipe.phases:
        keys += [f"phases.{name}.lr"] * (lr is not None)
        keys += [f"phases.{name}.kl"] * (kl_weight is not None)
    path = run_path(recipe.name, run_dir if isinstance(run_dir, Path) else None)
    refuse_missing_settings(path, recipe, recipe_file(source), keys)


def model_and_adapter(*, adapter_required: bool = False) -> Decorator:
    """Add --model and --adapter, for a command that runs the model.

    --model may be left out if the adapter's run records its model.
    """

    def decorate(function: Command) -> Command:
        @runs_model
        @functools.wraps(function)
        def with_model(*, model: str | None, adapter: str | None, **others: object) -> None:
            if adapter is not None:
                adapter = str(expand_run_name(adapter))
            function(model=model or recorded_model(adapter), adapter=adapter, **others)

        return combined(
            model_option(
                help="Model folder, hub name, or smollm2. Default: the model that the run of "
                "--adapter records."
            ),
            click.option(
                "--adapter",
                "-a",
                required=adapter_required,
                help="Adapter folder, or a run (its last phase) by its folder, its recipe's folder or its name.",
            ),
        )(with_model)

    return decorate


def recorded_model(adapter: str | None) -> str:
    """Return the model that an adapter was trained on, from the record of its run."""
    if adapter is None:
        raise click.UsageError(
            "Missing option '--model' / '-m'. It may be left out only if --adapter is part of a run."
        )
    from forty2.model.adapter import adapter_dir
    from forty2.model.base_model import find_base_model

    adapter_dir(adapter)  # says what is wrong where there is no adapter
    model = find_base_model(adapter)
    if model is None:
        raise click.UsageError(f"{adapter} does not say which model it is for: give --model.")
    return model


def _check_out(_: click.Context, __: click.Parameter, out: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before hours are spent on its contents."""
    if out is not None:
        from forty2.benchmark.partial_results import check_out

        check_out(out)
    return out


json_out = partial(out_option, callback=_check_out)
"""Option `--out` of a long measurement, checked before the measurement begins."""
