"""`forty2 data build`, `format-lock`, `echo` and `operators`: data sets that forty2 composes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from forty2.cli import shared_options
from forty2.cli.data import options
from forty2.cli.data.output import check_folder, echo_written, typed_command
from forty2.cli.echo import echo
from forty2.cli.progress_bars import ProgressBars
from forty2.run_paths import expand_run_name

KNOWLEDGE = "knowledge"
"""Name of the set that is made from what a model knows."""

if TYPE_CHECKING:
    from forty2.data.build import Rows


class _NamesSets(click.Command):
    """A command whose help ends with the names of the built-in sets."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from forty2.data.build import NAMES

        with formatter.section("Names"):
            formatter.write_dl(list(zip(NAMES[::2], NAMES[1::2], strict=True)))
            formatter.write_dl([(KNOWLEDGE, "made from what --model knows")])


@click.command("build", cls=_NamesSets)
@click.argument("name")
@options.output_dir(
    "--out", "-o", required=False, help="Folder to write. Default: training_data/NAME."
)
@options.seed
@click.option(
    "--size", type=click.IntRange(1), help="Number of training rows. Default: as published."
)
@click.option(
    "--balance",
    type=click.FloatRange(0, 0.9),
    help="Share of plain answers (spark-sft only). Default: 0.05.",
)
@shared_options.model_option(
    help="Model to ask (knowledge only): folder, hub name, or smollm2. Default: the model that the "
    "run of --adapter records."
)
@click.option(
    "--adapter", "-a", help="Adapter on the model (knowledge only): its folder, or a run."
)
def build_command(
    name: str,
    output_dir: Path | None,
    seed: int,
    size: int | None,
    balance: float | None,
    model: str | None,
    adapter: str | None,
) -> None:
    """Write a built-in set: NAME as published, or NAME-full with every row.

    NAME may be knowledge: it measures how well a model tells names of real things from invented ones,
    prints that, and writes pairs that answer what this model knows and decline the rest.
    """
    from forty2.data.build import build, write_built

    folder = output_dir or Path("training_data") / name
    check_folder(folder)
    if name == KNOWLEDGE:
        if size is not None or balance is not None:
            raise click.UsageError("knowledge takes neither --size nor --balance.")
        _build_knowledge(folder=folder, model=model, adapter=adapter, seed=seed)
        return
    if model is not None or adapter is not None:
        raise click.UsageError(f"--model and --adapter are for knowledge, not for {name}.")
    built = build(name, seed=seed, size=size, balance=balance)
    echo_written(folder, write_built(built, folder))


@shared_options.runs_model
def _build_knowledge(folder: Path, model: str | None, adapter: str | None, seed: int) -> None:
    """Measure what a model knows, print it, and write the pairs and the scores of every name."""
    from forty2.benchmark.knowledge import (
        format_knowledge,
        measure,
        names_to_ask,
        record_of,
        score_names,
    )
    from forty2.data.build.knowledge import halves, pairs, shares_of
    from forty2.data.sets import write_set
    from forty2.files import write_json
    from forty2.model.loading import load

    if adapter is not None:
        adapter = str(expand_run_name(adapter))
    model = model or shared_options.recorded_model(adapter)
    names = halves()
    loaded = load(model, adapter)
    with ProgressBars() as bars:
        scores = score_names(loaded, names_to_ask(names), seed=seed, progress=bars)
    found = measure(names, scores)
    echo(format_knowledge(found))
    made = pairs(names.choosing, found.known, seed)
    about = {
        "name": KNOWLEDGE,
        "command": typed_command(),
        "seed": seed,
        "model": model,
        "adapter": adapter,
        "shares": shares_of(made.train),
        "knowledge": record_of(found),
    }
    echo_written(folder, write_set(folder, {"train": made.train, "valid": made.valid}, about))
    halves_of = {
        thing.name: {"half": half, "real": thing.real} | scores[thing.name]
        for half, things in names._asdict().items()
        for thing in things
        if thing.name in scores
    }
    write_json(folder / "scores.json", halves_of)


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
