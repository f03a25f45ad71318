"""`forty2 init`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forty2.cli import shared_options
from forty2.cli.data.options import MultiValueCommand
from forty2.cli.echo import echo
from forty2.cli.flags import with_flags

if TYPE_CHECKING:
    from forty2.data.columns import UnknownColumns
    from forty2.runs.new_recipe import Started


class _ManyFiles(MultiValueCommand):
    multi_value = ("--chats", "--pairs", "--thumbs")


@click.command("init", cls=_ManyFiles)
@click.argument("folder", type=shared_options.PATH, metavar="DIR")
@click.option("--chats", multiple=True, help="Files of conversations to imitate, one or more.")
@click.option(
    "--pairs", multiple=True, help="Files of prompts with a better and a worse answer, one or more."
)
@click.option(
    "--thumbs", multiple=True, help="Files of answers, each rated good or bad, one or more."
)
@shared_options.model_option(
    default="smollm2", show_default=True, help="Model folder, hub name, or smollm2."
)
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="COLUMN=NAME,...",
    help="What the columns of your tables hold: prompt, completion, chosen, rejected, label or system.",
)
@click.option("--system", help="System prompt for the rows that have none.")
@click.option("--yes", is_flag=True, help="Take the columns that are guessed, without asking.")
@click.option("--replace", is_flag=True, help="Write over what an earlier init wrote.")
def init_command(
    folder: Path,
    chats: tuple[str, ...],
    pairs: tuple[str, ...],
    thumbs: tuple[str, ...],
    model: str,
    mapping: tuple[str, ...],
    system: str | None,
    yes: bool,
    replace: bool,
) -> None:
    """Make a recipe from your own files.

    Looks at the files and writes DIR/recipe.yaml with the reason for each choice, training rows and
    held-out rows in DIR/data/, and eval prompts. Nothing is trained.

    \b
    forty2 init shop --chats chats.json --pairs pairs.jsonl
    forty2 init shop --chats faq.csv --map question=prompt
    """
    if not chats + pairs + thumbs:
        raise click.UsageError("Give at least one file: --chats, --pairs or --thumbs.")
    if system is not None and not system.strip():
        raise click.UsageError("--system is empty; give a text, or leave it out.")
    from forty2.data.columns import UnknownColumns, read_mapping
    from forty2.model.starter import is_fetched
    from forty2.recipe.paths import STARTER
    from forty2.runs.new_recipe import Files, start

    if model == STARTER and not is_fetched():
        echo("fetching the starter model, once: 93 MB, on disk 0.5 GB")
    named = read_mapping(mapping)
    while True:
        files = Files(chats=chats, pairs=pairs, thumbs=thumbs, mapping=named, system=system)
        try:
            started = start(folder, files, model=model, replace=replace)
            break
        except UnknownColumns as unknown:
            answers = unknown.guess if yes else _ask(unknown) if _on_terminal() else {}
            if not answers.keys() - named.keys():  # nothing new is known
                raise
            named = {**named, **answers}
    _echo(started)


def _on_terminal() -> bool:
    return sys.stdin.isatty()


class _Column(click.Choice[str]):
    """A column of a table, in any case where only one is called so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from forty2.data.columns import named_in

        return super().convert(named_in(str(value), self.choices) or value, param, ctx)


def _ask(unknown: UnknownColumns) -> dict[str, str]:
    """Ask on the terminal which column holds what; the guess is the default."""
    from forty2.data.columns import MEANING, NEEDED

    echo(f"{unknown.file} has the columns {', '.join(unknown.columns)}.")
    likely = {ours: theirs for theirs, ours in unknown.guess.items()}
    columns = _Column(unknown.columns)
    return {
        click.prompt(f"Which is {MEANING[name]}?", type=columns, default=likely.get(name)): name
        for name in (*NEEDED[unknown.kind], *({"system"} & likely.keys()))
    }


def _echo(started: Started) -> None:
    """Print what was written, what deserves a look, and the next commands."""
    for one in started.materials:
        echo(
            f"{one.kind}: {one.training:,} rows to train on, {one.held_out:,} held out "
            f"(median {one.median:,} tokens, longest {one.longest:,})"
        )
    if started.eval_prompts:
        echo(f"eval prompts: {started.eval_prompts}, proposed from held-out rows")
    else:
        echo("eval prompts: none; no held-out row has an answer that is easily checked")
    for note in started.notes:
        echo(f"note: {with_flags(note)}")
    folder = shlex.quote(str(started.folder))
    echo(f"\nWritten: {started.folder / 'recipe.yaml'}, with the reason for each choice. Next:")
    echo(f"  forty2 plan {folder}")
    echo(f"  forty2 run {folder}")
    echo(f"  forty2 chat {folder}")
