"""`forty2 data`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from forty2.errors import DataError


@click.group("data")
def data_command() -> None:
    """Build and look at training data."""


@data_command.command("build")
@click.argument("name")
@click.option(
    "--output-dir",
    "--output_dir",
    type=click.Path(path_type=Path),
    help="Folder to write; default training_data/NAME.",
)
@click.option("--seed", default=42, show_default=True)
@click.option("--size", type=click.IntRange(1), help="Training rows; default the published count.")
def build_command(name: str, output_dir: Path | None, seed: int, size: int | None) -> None:
    """Write a built-in set: spark-sft, spark-dpo or spark-boost; with -full, all there is."""
    from forty2.data.build import build, write_set

    folder = output_dir or Path("training_data") / name
    if folder.exists() and not (folder / "manifest.json").exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: exists and is no data set of ours; name another --output-dir")
    data = build(name, seed=seed, size=size)
    write_set(data, folder)
    click.echo(f"{folder}: {len(data.train)} training and {len(data.valid)} validation rows")


@data_command.command("show")
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--model", "-m", default="smollm2", show_default=True, help="Whose chat template.")
@click.option("--rows", "count", default=3, show_default=True, type=click.IntRange(1))
@click.option("--max-length", default=1024, show_default=True, type=click.IntRange(2))
def show_command(file: Path, model: str, count: int, max_length: int) -> None:
    """Show rows as the model sees them: supervised tokens green, prompt dim.

    Where nothing can be coloured, supervised text stands in «guillemets».
    """
    from itertools import islice

    from forty2.data.formats import parse
    from forty2.data.records import Chat, Pair, Rated, Text
    from forty2.data.sources import read_rows
    from forty2.model.door import load_tokenizer
    from forty2.tokens import Encoder, fit

    tokenizer = load_tokenizer(model)
    encoder = Encoder(tokenizer)

    def paint(ids: list[int], supervised: bool) -> str:
        text = tokenizer.decode(ids)
        if not sys.stdout.isatty():
            return f"«{text}»" if supervised else text
        return click.style(text, fg="green") if supervised else click.style(text, dim=True)

    def runs(ids: list[int], mask: list[bool]) -> str:
        parts, start = [], 0
        for i in range(1, len(ids) + 1):
            if i == len(ids) or mask[i] != mask[start]:
                parts.append(paint(ids[start:i], mask[start]))
                start = i
        return "".join(parts)

    for origin, raw in islice(read_rows(file), count):
        record = parse(raw, origin)
        click.secho(f"── {origin}", bold=True)
        if isinstance(record, Chat | Text):
            rows = fit([encoder.imitated(record)], max_length).rows
            click.echo(runs(rows[0].ids, rows[0].mask) if rows else "dropped: too long")
        elif isinstance(record, Pair):
            pairs = fit([encoder.pair(record)], max_length).rows
            for side in ("chosen", "rejected") if pairs else ():
                click.secho(f"{side}:", bold=True)
                click.echo(paint(pairs[0].prompt, False) + paint(getattr(pairs[0], side), True))
            if not pairs:
                click.echo("dropped: too long")
        elif isinstance(record, Rated):
            prompt, response = encoder.rated(record)
            click.secho("desirable:" if record.desirable else "undesirable:", bold=True)
            click.echo(paint(prompt, False) + paint(response, True))
