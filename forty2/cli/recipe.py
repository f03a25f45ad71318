"""`forty2 recipe`: the packaged recipes, the keys of recipes, and checks of the user's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import Group
from forty2.cli.json_output import echo_json
from forty2.errors import RecipeError
from forty2.recipe.reading import (
    load_recipe,
    load_translation,
    packaged_recipes,
    recipe_text,
)


@click.group("recipe", cls=Group)
def recipe_command() -> None:
    """List, show, copy and check recipes, and look up their keys."""


@recipe_command.command("list")
@shared_options.as_json
def list_command(as_json: bool) -> None:
    """List the packaged recipes, each with its summary."""
    names = packaged_recipes()
    summaries = {name: recipe_text(name).splitlines()[0].lstrip("# ") for name in names}
    if as_json:
        echo_json("recipe.list", {"recipes": summaries})
        return
    formatter = click.HelpFormatter()
    formatter.write_dl([*summaries.items()])
    click.echo(formatter.getvalue(), nl=False)


@recipe_command.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Print a recipe."""
    click.echo(recipe_text(name), nl=False)


@recipe_command.command("keys")
@click.argument("section", required=False)
def keys_command(section: str | None) -> None:
    """Print every recipe key with its values, default and meaning.

    SECTION is recipe (the top), an objective (sft, dpo, kto, orpo, simpo, cpo), adapter, its
    phase_attention, tags_init, fuse, benchmark, its tasks and cost, best, until, curriculum, replay,
    kl or red_lines, or a key, such as lr in each section that has it, or phases.sft.lr. Default: all
    sections.
    """
    from forty2.recipe.keys import as_text

    echo(as_text(section))


@recipe_command.command("copy")
@click.argument("name")
@click.argument("target", required=False, type=click.Path(path_type=Path))
def copy_command(name: str, target: Path | None) -> None:
    """Copy a packaged recipe to a file that you can change.

    TARGET is the file to write. Default: NAME.yaml.
    """
    path = target or Path(f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path}: already exists; name another file")
    text = recipe_text(name)
    if name not in packaged_recipes():
        raise RecipeError(
            f"{name}: is not packaged; copy the file yourself, and mind that its paths are relative to it"
        )
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}") from error
    echo(path)


@recipe_command.command("convert")
@click.argument("source")
@shared_options.training_flags
def convert_command(
    source: str, overrides: tuple[str, ...], lr: float | None, kl_weight: float | None
) -> None:
    """Print a recipe in the schema of PhaseGPT v1.4, or a configuration of MyPT, as one of ours.

    Comments name the key that each comes from, the values that had to change and why, and the keys
    that have no counterpart. `forty2 run` takes such a file, too.
    """
    from forty2.recipe.commented import commented_yaml

    found = load_translation(source, overrides, lr=lr, kl_weight=kl_weight)
    if found is None:
        raise RecipeError(f"{source}: is a recipe of ours already; nothing to convert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the comments say it all
        load_recipe(source, overrides, lr=lr, kl_weight=kl_weight)  # checks the values
    click.echo(commented_yaml(found, source), nl=False)


@recipe_command.command("check")
@click.argument("source")
@shared_options.training_flags
def check_command(
    source: str, overrides: tuple[str, ...], lr: float | None, kl_weight: float | None
) -> None:
    """Check every key and value of a recipe, without reading data."""
    recipe = load_recipe(source, overrides, lr=lr, kl_weight=kl_weight)
    if recipe.benchmark is not None:
        from forty2.benchmark.recipe_tasks import check_tasks

        check_tasks(recipe.benchmark)
    echo(
        f"{source}: every key and value is valid, and every file it names exists "
        f"(phases: {', '.join(recipe.phases)})"
    )
    echo(f"Neither data nor model was read. To check them too: forty2 plan {source}")
