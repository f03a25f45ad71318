"""Options that several `forty2 data` commands share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options

if TYPE_CHECKING:
    from forty2.recipe.tags import TagSettings


def _tags(_: click.Context, __: click.Parameter, text: str | None) -> TagSettings | None:
    if text is None:
        return None
    from forty2.recipe.tags import BUILT_IN, TagSettings, check_tags, starts_of

    named = text if text in BUILT_IN else text.split(",")
    try:
        check_tags(named)
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("tags: ")) from error
    return TagSettings(starts=starts_of(named))


output_dir = partial(
    click.option,
    "--output-dir",
    "--output_dir",
    required=True,
    type=shared_options.FOLDER,
    help="Folder to write.",
)
output = click.option(
    "--output", "-o", required=True, type=shared_options.FILE, help="JSON Lines file to write."
)
source = click.option(
    "--input", "-i", "source", required=True, help="File or folder to read, or hub:OWNER/NAME."
)
seed = shared_options.seed_option(help="Seed of all random choices.")
against = partial(
    click.option,
    "--against",
    multiple=True,
    help="Benchmark file; rows must not overlap with it. Repeatable.",
)
val_split = click.option(
    "--val-split",
    "--val_split",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 0.9),
    help="Share of the rows to hold out for validation.",
)
tags = click.option(
    "--tags",
    callback=_tags,
    metavar="NAMES",
    help="Tags that a recipe adds to the model: mypt, or names separated by commas.",
)
tokenizer_of = partial(
    shared_options.model_option,
    default="smollm2",
    show_default=True,
    help="Model whose tokenizer counts the tokens.",
)


class MultiValueCommand(click.Command):
    """A command in which some options take all words up to the next option: --inputs A B C."""

    multi_value = ("--inputs", "--weights", "--by-keys")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        current = ""
        for word in args:
            if word.startswith("-") and not word[1:2].isdigit():  # -o, but not a weight of -1
                current = word if word in self.multi_value else ""
                if not current:
                    spread.append(word)
            elif current:
                spread += [current, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)
