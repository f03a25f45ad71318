"""`forty2 demo`, `run`, `train`, `ablate`, `plan` and `report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from forty2.cli import options
from forty2.cli.progress_bars import Bars
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Recipe

_RECIPE = options(
    click.argument("recipe"),
    click.option(
        "--model", "-m", help="Model folder, hub name, or smollm2; instead of the recipe's."
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a field, e.g. phases.dpo.lr=2e-6. Repeatable.",
    ),
)
_RUN_DIR = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Where the run is written; default adapters/NAME.",
)
_TRUST = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the model run architecture code that it brings along.",
)


def _load(recipe: str, model: str | None, overrides: tuple[str, ...]) -> Recipe:
    loaded = load_recipe(recipe, overrides)
    return dataclasses.replace(loaded, model=model) if model is not None else loaded


@click.command("run")
@_RECIPE
@_RUN_DIR
@click.option("--resume", is_flag=True, help="Go on with a run that stopped.")
@_TRUST
def run_command(
    recipe: str,
    model: str | None,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    resume: bool,
    trust_remote_code: bool,
) -> None:
    """Run a recipe: its phases in order, fusing, measuring, reporting.

    RECIPE is a YAML file or the name of a packaged recipe (`forty2 recipe list`).
    """
    _run(
        _load(recipe, model, overrides), run_dir, resume=resume, trust_remote_code=trust_remote_code
    )


@click.command("train")
@_RECIPE
@click.option("--phase", required=True, help="The last phase to run.")
@_RUN_DIR
@_TRUST
def train_command(
    recipe: str,
    model: str | None,
    overrides: tuple[str, ...],
    phase: str,
    run_dir: Path | None,
    trust_remote_code: bool,
) -> None:
    """Run a recipe as far as one phase: those before it first, as far as they are not done yet."""
    loaded = _load(recipe, model, overrides)
    path = run_dir or Path("adapters") / loaded.name
    resume = (path / "run.json").exists()
    _run(loaded, path, resume=resume, only=phase, trust_remote_code=trust_remote_code)


@click.command("demo")
@_RUN_DIR
@click.option("--resume", is_flag=True, help="Go on with a demo that stopped.")
def demo_command(run_dir: Path | None, resume: bool) -> None:
    """The whole job on the starter model: data, three phases, fuse, benchmark, report."""
    path = run_dir or _free(Path("adapters") / "demo") if not resume else run_dir or _latest()
    _run(load_recipe("demo"), path, resume=resume)


def _free(path: Path) -> Path:
    """The path itself, or with the first number that is not taken: a demo never overwrites."""
    number = 2
    free = path
    while free.exists():
        free = path.with_name(f"{path.name}-{number}")
        number += 1
    return free


def _latest() -> Path:
    runs = sorted(Path("adapters").glob("demo*"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise click.UsageError("no demo to resume in adapters/")
    return runs[-1]


def _run(
    recipe: Recipe,
    run_dir: Path | None,
    *,
    resume: bool = False,
    only: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    from forty2.runs.pipeline import run

    with Bars() as bars:
        result = run(
            recipe,
            run_dir=run_dir,
            resume=resume,
            only=only,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if result.stages:
        click.echo(
            f"\n{result.table}\n\nTruthfulQA, {result.stages[0]['truthfulqa']['questions']}: "
            f"{result.verdict}\n"
        )
    click.echo(f"adapter   {result.adapter}")
    if result.fused is not None:
        click.echo(f"fused     {result.fused}")
    click.echo(f"report    {result.report}")
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)


def _seeds(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise click.BadParameter("give whole numbers with commas between, e.g. 1,2,3") from error


@click.command("ablate")
@_RECIPE
@click.option(
    "--seeds", default="1,2,3", show_default=True, callback=_seeds, help="Two or more, of the runs."
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="Folder; default adapters/NAME-ablation."
)
@click.option("--resume", is_flag=True, help="Go on with what stopped, or with more seeds.")
@_TRUST
def ablate_command(
    recipe: str,
    model: str | None,
    overrides: tuple[str, ...],
    seeds: list[int],
    out: Path | None,
    resume: bool,
    trust_remote_code: bool,
) -> None:
    """What each phase of a recipe bought and cost, over several seeds.

    Measures the base, every phase after those before it, and the first preference phase alone.
    """
    from forty2.runs.ablation import ablate

    with Bars() as bars:
        found = ablate(
            _load(recipe, model, overrides),
            seeds,
            out=out,
            resume=resume,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    for note in found.record["notes"]:
        click.echo(note)
    click.echo(f"\n{found.table}\n")
    if found.insight is not None:
        click.echo(f"{found.insight.sentence}\n")
    click.echo(f"report    {found.report}")


@click.command("plan")
@_RECIPE
@_TRUST
def plan_command(
    recipe: str, model: str | None, overrides: tuple[str, ...], trust_remote_code: bool
) -> None:
    """What a recipe would do: steps, exposures, evaluations, memory. Runs nothing."""
    from forty2.runs.planning import format_plan, plan

    loaded = _load(recipe, model, overrides)
    click.echo(format_plan(plan(loaded, trust_remote_code=trust_remote_code)))


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report_command(run_dir: Path) -> None:
    """Write a run's report again, from what the run directory holds."""
    from forty2.report.run import write_report

    click.echo(write_report(run_dir))
