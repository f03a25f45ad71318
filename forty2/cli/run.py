"""`forty2 demo`, `run` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.before_and_after import before_and_after
from forty2.cli.desktop import attended
from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.cli.flags import with_flags
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars
from forty2.files import JsonObject
from forty2.run_paths import HOME

if TYPE_CHECKING:
    from forty2.recipe.schema import Recipe
    from forty2.recipe.translation import Folders
    from forty2.runs.pipeline import RunResult


@click.command("run")
@shared_options.runs_model
@shared_options.recipe
@shared_options.run_dir
@click.option(
    "--resume", is_flag=True, help="Go on with a run that stopped, or with a changed recipe."
)
@click.option(
    "--reuse",
    type=shared_options.FOLDER,
    metavar="RUN",
    help="Take over the finished phases of another run that this one would train alike.",
)
@click.option(
    "--until-phase",
    metavar="NAME",
    help="Stop when this phase is trained and measured; --resume then goes on with the rest.",
)
@shared_options.as_json
@shared_options.trust_remote_code
@attended
def run_command(
    recipe: Recipe,
    run_dir: Path | None,
    resume: bool,
    reuse: Path | None,
    until_phase: str | None,
    as_json: bool,
    trust_remote_code: bool,
    folders: Folders | None,
) -> None:
    """Run a recipe: train, fuse, measure, report.

    RECIPE is a YAML file, a folder that holds recipe.yaml, or the name of a packaged recipe (`forty2
    recipe list`). A file in the schema of PhaseGPT v1.4 is translated (`forty2 recipe convert`
    shows how), and its run is written to the folders that PhaseGPT uses.
    """
    from forty2.runs.log_and_results import LoggedProgress, write_results
    from forty2.runs.pipeline import run

    with ProgressBars() as bars:
        result = run(
            recipe,
            run_dir=run_dir,
            resume=resume,
            reuse=reuse,
            only=until_phase,
            trust_remote_code=trust_remote_code,
            progress=bars if folders is None else LoggedProgress(bars, folders.log),
        )
    _echo(result, as_json)
    if folders is not None:
        write_results(result.path, folders.results)
        if not as_json:
            echo(f"log       {folders.log}\nresults   {folders.results}")


@click.command("train")
@shared_options.runs_model
@shared_options.recipe
@click.option("--phase", required=True, help="Last phase to run.")
@shared_options.run_dir
@shared_options.as_json
@shared_options.trust_remote_code
@attended
def train_command(
    recipe: Recipe, phase: str, run_dir: Path | None, as_json: bool, trust_remote_code: bool
) -> None:
    """Run a recipe up to one phase.

    Phases before it run first, unless they are finished.
    """
    from forty2.runs.pipeline import train_phase

    with ProgressBars() as bars:
        result = train_phase(
            recipe, phase, run_dir=run_dir, trust_remote_code=trust_remote_code, progress=bars
        )
    _echo(result, as_json)


@click.command("demo")
@shared_options.runs_model
@shared_options.run_dir
@click.option("--resume", is_flag=True, help="Go on with a demo that stopped.")
@shared_options.as_json
@attended
def demo_command(run_dir: Path | None, resume: bool, as_json: bool) -> None:
    """Try everything on the starter model, from data to report.

    Builds the data, trains three phases, fuses, measures and reports, in minutes.
    """
    from forty2.recipe.reading import load_recipe
    from forty2.runs.pipeline import run

    path = run_dir or (_latest_demo() if resume else _unused(HOME / "demo"))
    with ProgressBars() as bars:
        result = run(load_recipe("demo"), run_dir=path, resume=resume, progress=bars)
    _echo(result, as_json, replies=5)
    if not as_json:
        echo(f"\nTalk to it: forty2 chat {path}. Your own data: forty2 init --help.")


def _unused(path: Path) -> Path:
    """Return the path, with the first free number if it exists: a demo never overwrites another."""
    number = 2
    free = path
    while free.exists():
        free = path.with_name(f"{path.name}-{number}")
        number += 1
    return free


def _latest_demo() -> Path:
    runs = sorted(HOME.glob("demo*"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise click.UsageError(f"no demo to resume in {HOME}/")
    return runs[-1]


def _echo(result: RunResult, as_json: bool, replies: int = 3) -> None:
    if as_json:
        echo_json("run", _content(result))
        return
    if shown := before_and_after(result.stages, replies):
        echo(f"\n{shown}")
    echo(with_flags(str(result)))
    for warning in result.warnings:
        warn(warning)


def _content(result: RunResult) -> JsonObject:
    same = ("adapter", "fused", "report", "verdict", "sentence", "verdicts", "contamination")
    stages = {
        stage.name: {task: measured.figures for task, measured in stage.results.items()}
        for stage in result.stages
    }
    content = {key: getattr(result, key) for key in (*same, "warnings")}
    steps = [with_flags(line) for line in result.next_steps]
    return {**content, "next_steps": steps, "run": result.path, "stages": stages}
