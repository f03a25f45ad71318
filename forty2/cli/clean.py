"""`forty2 clean`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.report.units import file_size
from forty2.run_paths import HOME

_KINDS = ("models", "base", "reference", "bench", "group", "states", "index")


@click.command("clean")
@click.argument("kinds", nargs=-1, type=click.Choice(_KINDS), metavar="[KIND]...")
@click.option(
    "--runs",
    "folders",
    multiple=True,
    type=shared_options.FOLDER,
    help="Folder with runs, for their stored states. Repeatable. Default: adapters/.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@shared_options.yes
def clean_command(
    kinds: tuple[str, ...], folders: tuple[Path, ...], dry_run: bool, yes: bool
) -> None:
    """Delete caches, which are made again when needed.

    Says what that frees, and asks.

    \b
    models     downloaded and imported models
    base       base models' log-probabilities on neutral texts
    reference  log-probabilities before DPO and KTO
    bench      other trainers, for forty2 speed
    group      what processes that train together left behind
    states     frozen blocks' output in stopped runs
    index      index of runs

    Default: all of them. Runs, data sets and fused models are no caches, and stay.
    """
    from forty2.runs.caches import clean, find_caches, unknown_files

    found = find_caches(folders or ([HOME] if HOME.is_dir() else []))
    caches = [cache for cache in found if not kinds or cache.name in kinds]
    for cache in caches:
        echo(f"{cache.name:<10} {file_size(cache.size):>8}  {cache.meaning}")
    for path in unknown_files():
        echo(f"left alone: {path}, which this release does not know", err=True)
    frees = file_size(sum(cache.size for cache in caches))
    if not caches:
        echo("nothing to clean")
    elif dry_run:
        echo(f"would free {frees}")
    elif yes or shared_options.confirmed(f"Delete this and free {frees}?"):
        clean(caches)
        echo(f"deleted, {frees} freed")
