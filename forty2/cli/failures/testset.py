"""`forty2 failures testset`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars
from forty2.files import JsonObject


@click.command("testset")
@shared_options.out_option(required=True, help="Folder to write.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    default=("builtin",),
    show_default=True,
    help="File, folder or hub:OWNER/NAME of questions; builtin; or mmlu, gsm8k, humaneval, each "
    "also with :PATH. Repeatable.",
)
@click.option(
    "--size",
    type=click.IntRange(2),
    help="Number of items, divided among the strata in proportion. Default: 50,000, or the sum of --strata.",
)
@click.option(
    "--strata",
    multiple=True,
    metavar="NAME=COUNT|FILE",
    help="Number of items of a stratum, or a YAML file of them. Repeatable. Default: code 12,000, "
    "reasoning 15,000, mathematics 8,000, tools 6,000, other 9,000.",
)
@click.option(
    "--disjoint-from",
    multiple=True,
    metavar="FILE|RUN",
    help="Training data, or a run for all of its own: its questions are left out. Repeatable.",
)
@shared_options.seed_option(help="Seed of all random choices.")
@shared_options.as_json
def testset_command(
    out: Path,
    sources: tuple[str, ...],
    size: int | None,
    strata: tuple[str, ...],
    disjoint_from: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Make a test set of several strata, in two halves, disjoint from training data."""
    from forty2.failures.testset import STRATA, TestsetSettings, make_testset

    settings = TestsetSettings(
        sources=sources,
        strata=_strata(strata) or STRATA,
        size=size,
        disjoint_from=disjoint_from,
        seed=seed,
    )
    with ProgressBars() as bars:
        about = make_testset(out, settings, bars)
    if as_json:
        echo_json("failures.testset", about)
    else:
        echo(_summary(about))
    for name, part in about["strata"].items():
        if part["items"] < part["asked"]:
            warn(
                f"{name}: {part['items']:,} of {part['asked']:,} items; the sources hold no more that may "
                "be used; name others with --from"
            )
    if not disjoint_from:
        warn("compared with no training data; name it, or the model's run, with --disjoint-from")
    if not as_json:
        echo(out)


def _strata(given: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in given:
        name, equals, count = text.rpartition("=")
        if not equals:
            found |= _strata_file(Path(text))
        elif name and count.isdecimal():
            found[name] = int(count)
        else:
            raise click.UsageError(f"--strata {text}: write NAME=COUNT, or name a YAML file.")
    return found


def _strata_file(path: Path) -> dict[str, int]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise click.UsageError(f"--strata {path}: cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--strata {path}: is not readable as YAML.") from error
    named = isinstance(found, dict) and all(
        isinstance(name, str) and type(count) is int for name, count in found.items()
    )
    if not named:
        raise click.UsageError(f"--strata {path}: write lines NAME: COUNT.")
    return dict(found)


def _summary(about: JsonObject) -> str:
    lines = [f"{'stratum':<18}{'items':>8}{'find':>8}{'untouched':>11}{'verifier':>10}"]
    for name, part in about["strata"].items():
        halves = f"{part['items']:>8}{part['find']:>8}{part['untouched']:>11}"
        lines.append(f"{name:<18}{halves}{part['with_verifier']:>10}")
    dropped = about["dropped"]
    lines.append(
        f"dropped: {sum(dropped['duplicates'].values()):,} duplicates, "
        f"{sum(dropped['near_duplicates'].values()):,} near duplicates"
    )
    for file in dropped["in_training_data"]:
        how = ", ".join(f"{count:,} by {name}" for name, count in file["dropped"].items()) or "none"
        lines.append(f"in {file['name']} ({file['rows']:,} rows): {how}")
    groups = about["groups"]
    lines.append(
        f"{groups['number']:,} groups of similar questions, the largest of {groups['largest']}, each in one half"
    )
    return "\n".join(lines)
