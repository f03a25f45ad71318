"""`forty2 data mix`, `stratify`, `split`, `prepare`, `convert` and `decontaminate`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from forty2.cli import shared_options
from forty2.cli.data import options
from forty2.cli.data.options import MultiValueCommand
from forty2.cli.data.output import check_file, check_folder, echo_written, typed_command
from forty2.cli.echo import echo
from forty2.cli.progress_bars import ProgressBars
from forty2.errors import DataError

if TYPE_CHECKING:
    from forty2.data.mixing import Row
    from forty2.model.chat_template import TemplateSettings
    from forty2.recipe.tags import TagSettings
    from forty2.text.encoder import TrainOn


class _Unit(NamedTuple):
    """The unit in which shares and sizes of a mixture are counted."""

    name: str
    measure: Callable[[Row], int]


def _unit(function: shared_options.Command) -> shared_options.Command:
    """Add --by and --model; the command gets the `unit` to count in."""

    @functools.wraps(function)
    def with_unit(*, by: str, model: str, **others: object) -> None:
        measure = _tokens_of_row(model) if by == "tokens" else lambda row: 1
        function(unit=_Unit(by, measure), **others)

    return shared_options.combined(
        click.option(
            "--by",
            type=click.Choice(["rows", "tokens"]),
            default="rows",
            show_default=True,
            help="Unit of shares and size.",
        ),
        options.tokenizer_of(),
    )(with_unit)


def _tokens_of_row(model: str) -> Callable[[Row], int]:
    from forty2.data.formats import parse
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder

    encoder = Encoder(load_tokenizer(model))
    return lambda row: encoder.measure(parse(row, "mix"))[0]


@click.command("mix", cls=MultiValueCommand)
@click.option("--inputs", multiple=True, required=True, help="Files to mix, one after another.")
@click.option(
    "--weights",
    multiple=True,
    type=float,
    help="Share of the output for each input. Default: every row is taken.",
)
@_unit
@click.option("--size", type=click.IntRange(1), help="Size of the output, in rows or tokens.")
@click.option("--shuffle", is_flag=True, help="Mix the rows of all inputs.")
@click.option("--repeat", is_flag=True, help="Use the rows of an input that is used up again.")
@options.seed
@options.output
def mix_command(
    inputs: tuple[str, ...],
    weights: tuple[float, ...],
    unit: _Unit,
    size: int | None,
    shuffle: bool,
    repeat: bool,
    seed: int,
    output: Path,
) -> None:
    """Mix files, so that each makes up its share of the output.

    Without --weights every row is taken, and the resulting shares are printed.
    """
    from forty2.data.mixing import mix
    from forty2.data.sets import write_file

    check_file(output, *inputs)
    mixed = mix(
        inputs,
        weights or None,
        size=size,
        measure=unit.measure,
        repeat=repeat,
        shuffle=shuffle,
        seed=seed,
    )
    about = {
        "command": typed_command(),
        "seed": seed,
        "asked": size,
        "by": unit.name,
        "shares": mixed.shares,
    }
    echo_written(output, write_file(output, mixed.rows, about))
    for name, share in mixed.shares.items():
        times = mixed.repeats.get(name)
        echo(f"  {share:>6.1%} {name}" + (f" (each row {times:g} times)" if times else ""))


@click.command("stratify", cls=MultiValueCommand)
@options.source
@click.option(
    "--by-keys", "keys", multiple=True, required=True, help="Keys of a row, e.g. domain complexity."
)
@click.option(
    "--size",
    type=click.IntRange(1),
    help="Number of rows. Default: from every stratum as many as the smallest one has.",
)
@options.seed
@options.output
def stratify_command(
    source: str, keys: tuple[str, ...], size: int | None, seed: int, output: Path
) -> None:
    """Draw rows evenly over strata, the easiest first.

    Each row gets `order`, from 0 (easiest) to 1.
    """
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_file
    from forty2.data.sources import read_rows
    from forty2.data.strata import stratify

    check_file(output, source)
    rows = [to_row(parse(row, origin)) for origin, row in read_rows(source)]
    found = stratify(rows, keys, size, seed)
    about = {"command": typed_command(), "seed": seed, "asked": size}
    echo_written(output, write_file(output, found.rows, about))
    least, most = min(found.drawn.values()), max(found.drawn.values())
    echo(f"  {len(found.drawn)} strata of {least} to {most} rows")
    if found.empty:
        echo(f"  {len(found.empty)} strata are empty: {' '.join(found.empty[0])} …")


@click.command("split")
@options.source
@options.output_dir()
@options.val_split
@click.option("--by", help="Key whose values stay together. Default: entity, else prompt.")
@options.seed
@click.option("--replace", is_flag=True, help="Replace a set that is there already.")
def split_command(
    source: str, output_dir: Path, val_split: float, by: str | None, seed: int, replace: bool
) -> None:
    """Split off validation rows; rows with the same prompt or entity stay together.

    A run may have been trained on a set that is there already, so it is not replaced unasked.
    """
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_set
    from forty2.data.sources import MANIFEST, read_rows
    from forty2.data.splitting import split

    check_folder(output_dir, source)
    if not replace and (output_dir / MANIFEST).exists():
        raise DataError(
            f"{output_dir}: holds a set; name another folder, or replace it with --replace"
        )
    held_out = split(source, val_split, by=by, seed=seed)

    def rows(valid: bool) -> Iterator[Row]:
        for (origin, row), is_valid in zip(read_rows(source), held_out, strict=True):
            if is_valid == valid:
                yield to_row(parse(row, origin))

    about = {"command": typed_command(), "seed": seed, "asked": {"val_split": val_split}}
    splits = {"train": rows(False)} | ({"valid": rows(True)} if any(held_out) else {})
    echo_written(output_dir, write_set(output_dir, splits, about))


@click.command("prepare")
@options.source
@options.output_dir()
@options.val_split
@options.tokenizer_of(help="Model whose tokenizer is used.")
@shared_options.max_length
@click.option(
    "--pack", type=click.IntRange(2), help="Pack rows into sequences of this many tokens."
)
@click.option(
    "--workers", type=click.IntRange(1), help="Number of processes. Default: one for each core."
)
@options.seed
@click.option(
    "--train-on",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Assistant turns of a conversation that are learned.",
)
@options.tags
@shared_options.template
def prepare_command(
    source: str,
    output_dir: Path,
    val_split: float,
    model: str,
    max_length: int,
    pack: int | None,
    workers: int | None,
    seed: int,
    train_on: TrainOn,
    tags: TagSettings | None,
    template: TemplateSettings | None,
) -> None:
    """Tokenize conversations once, into a folder that a recipe can name as `data`."""
    from forty2.model.loading import load_tokenizer
    from forty2.text.preparing import Preparation, prepare

    check_folder(output_dir, source)
    with ProgressBars() as bars:
        manifest = prepare(
            source,
            output_dir,
            model,
            functools.partial(load_tokenizer, template=template, tags=tags),
            Preparation(
                valid_share=val_split,
                max_length=pack or max_length,
                pack=pack is not None,
                seed=seed,
                train_on=train_on,
            ),
            workers=workers,
            about={"command": typed_command()},
            progress=bars,
        )
    echo_written(output_dir, manifest)
    for name, tokens in manifest["tokens"].items():
        share = manifest["supervised"][name] / tokens if tokens else 0.0
        packs = f", {manifest['packs'][name]:,} packs" if manifest["packs"] else ""
        echo(f"  {name}: {tokens:,} tokens, {share:.0%} supervised{packs}")
    if manifest["dropped"]:
        origins = ", ".join(manifest["dropped"][:3])
        echo(f"  {len(manifest['dropped']):,} rows dropped, too long: {origins} …")


@click.command("convert")
@options.source
@options.output
def convert_command(source: str, output: Path) -> None:
    """Convert rows of any supported format to JSON Lines in forty2's own format."""
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_file
    from forty2.data.sources import no_rows, read_rows

    check_file(output, source)

    def rows() -> Iterator[Row]:
        origin = ""
        for origin, row in read_rows(source):
            yield to_row(parse(row, origin))
        if not origin:
            raise no_rows(source)

    echo_written(output, write_file(output, rows(), {"command": typed_command()}))


@click.command("decontaminate")
@options.source
@options.against(required=True)
@options.output
def decontaminate_command(source: str, against: tuple[str, ...], output: Path) -> None:
    """Drop rows that hold texts of benchmark files: a question, or 13 words in a row."""
    from forty2.data.checks.contamination import ContaminationFinder, benchmark_of
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_file
    from forty2.data.sources import read_rows

    check_file(output, source, *against)
    benchmarks = [benchmark_of(path) for path in against]
    finder = ContaminationFinder(benchmarks, near_copies=False)
    dropped: list[str] = []

    def clean() -> Iterator[Row]:
        for origin, row in read_rows(source):
            record = parse(row, origin)
            if hits := finder.find(record):
                dropped.append(f"{origin}: overlaps with {hits[0].benchmark} ({hits[0].how})")
            else:
                yield to_row(record)

    echo_written(output, write_file(output, clean(), {"command": typed_command()}))
    for line in dropped:
        echo(line)
    echo(f"{len(dropped):,} rows dropped")
