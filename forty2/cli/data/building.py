"""`forty2 data build`, `format-lock`, `echo` and `operators`: data sets that forty2 composes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from forty2.cli.data import options
from forty2.cli.data.output import check_folder, echo_written, typed_command
from forty2.cli.echo import echo

if TYPE_CHECKING:
    from forty2.data.build import Rows


class _NamesSets(click.Command):
    """A command whose help ends with the names of the built-in sets."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from forty2.data.build import NAMES

        with formatter.section("Names"):
            formatter.write_dl(list(zip(NAMES[::2], NAMES[1::2], strict=True)))


@click.command("build", cls=_NamesSets)
@click.argument("name")
@options.output_dir(required=False, help="Folder to write. Default: training_data/NAME.")
@options.seed
@click.option(
    "--size", type=click.IntRange(1), help="Number of training rows. Default: as published."
)
@click.option(
    "--balance",
    type=click.FloatRange(0, 0.9),
    help="Share of plain answers (spark-sft only). Default: 0.05.",
)
def build_command(
    name: str, output_dir: Path | None, seed: int, size: int | None, balance: float | None
) -> None:
    """Write a built-in set: NAME as published, or NAME-full with every row."""
    from forty2.data.build import build, write_built

    folder = output_dir or Path("training_data") / name
    check_folder(folder)
    built = build(name, seed=seed, size=size, balance=balance)
    echo_written(folder, write_built(built, folder))


@click.command("format-lock")
@click.option(
    "--mode",
    type=click.Choice(["full", "minimal"]),
    default="full",
    show_default=True,
    help="full: small talk, facts and arithmetic; minimal: small talk and some arithmetic.",
)
@click.option(
    "--math",
    type=click.Choice(["include", "exclude", "only", "minimal"]),
    default="include",
    show_default=True,
    help="Whether to include arithmetic; minimal: at most 5% of the rows.",
)
@options.output_dir()
@options.seed
def format_lock_command(
    mode: Literal["full", "minimal"],
    math: Literal["include", "exclude", "only", "minimal"],
    output_dir: Path,
    seed: int,
) -> None:
    """Write short questions with one short answer each, in English and German."""
    from forty2.data.build.curriculum import format_lock

    _write(output_dir, {"train": format_lock(mode, math, seed)}, seed)


@click.command("echo")
@click.option(
    "--gibberish",
    type=click.Choice(["include", "exclude", "only"]),
    default="exclude",
    show_default=True,
    help="Whether to include pseudo-words; only: no real text.",
)
@click.option(
    "--max-examples",
    "--max_examples",
    type=click.IntRange(1),
    help="Largest number of rows. Default: all.",
)
@options.output_dir()
@options.seed
def echo_command(
    gibberish: Literal["include", "exclude", "only"],
    max_examples: int | None,
    output_dir: Path,
    seed: int,
) -> None:
    """Write instructions to copy a text, and instructions that only look like it."""
    from forty2.data.build.curriculum import echo

    rows = echo(gibberish, max_examples, seed)
    _write(output_dir, {"train": rows}, seed, asked=max_examples)


@click.command("operators")
@options.output_dir()
@options.seed
def operators_command(output_dir: Path, seed: int) -> None:
    """Write tasks of copying, wrapping and extracting, with validation rows.

    Training and validation rows share no template and no text. The validation rows are also written
    to eval_prompts.json, for `eval_prompts` in a recipe.
    """
    from forty2.data.build.curriculum import eval_prompts, operators
    from forty2.files import write_json

    made = operators(seed)
    _write(output_dir, {"train": made.train, "valid": made.valid}, seed)
    file = output_dir / "eval_prompts.json"
    write_json(file, eval_prompts(made.valid))
    echo(f"{file}: {len(made.valid):,} eval prompts")


def _write(
    output_dir: Path, splits: Mapping[str, Rows], seed: int, asked: int | None = None
) -> None:
    from forty2.data.sets import write_set

    check_folder(output_dir)
    about = {"command": typed_command(), "seed": seed, "asked": asked}
    echo_written(output_dir, write_set(output_dir, splits, about))
