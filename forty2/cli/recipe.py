"""`forty2 recipe`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe, packaged_recipes, recipe_text


@click.group("recipe")
def recipe_command() -> None:
    """List, show, copy and check recipes."""


@recipe_command.command("list")
def list_command() -> None:
    """The packaged recipes, each with its first line."""
    formatter = click.HelpFormatter()
    formatter.write_dl(
        [(name, recipe_text(name).splitlines()[0].lstrip("# ")) for name in packaged_recipes()]
    )
    click.echo(formatter.getvalue(), nl=False)


@recipe_command.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Print a recipe."""
    click.echo(recipe_text(name), nl=False)


@recipe_command.command("copy")
@click.argument("name")
@click.argument("target", required=False, type=click.Path(path_type=Path))
def copy_command(name: str, target: Path | None) -> None:
    """Copy a packaged recipe to a file, to make it yours."""
    path = target or Path(f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path}: exists already; name another file")
    text = recipe_text(name)
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}") from error
    click.echo(path)


@recipe_command.command("check")
@click.argument("source")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in forty2 run.")
def check_command(source: str, overrides: tuple[str, ...]) -> None:
    """Read a recipe and report every problem at once."""
    recipe = load_recipe(source, overrides)
    click.echo(f"{source}: fine ({', '.join(recipe.phases)})")
