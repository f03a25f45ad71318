"""`forty2 benchmark` and `compare`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import options
from forty2.cli.bars import Bars

_MODEL = options(
    click.option("--model", "-m", required=True, help="Model folder, hub name, or smollm2."),
    click.option("--adapter", "-a", help="Adapter folder, or a run folder (its last phase)."),
    click.option(
        "--out", "-o", type=click.Path(path_type=Path), help="JSON to write, with every item."
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Let the model run architecture code that it brings along.",
    ),
)


@click.group("benchmark")
def benchmark_command() -> None:
    """Measure a model."""


@benchmark_command.command("truthfulqa")
@_MODEL
@click.option("--questions", "-q", help="mc_task.json or CSV; `probe`: our own. Absent: the hub's.")
@click.option("--n", type=click.IntRange(1), help="Questions to sample, stratified; absent: all.")
@click.option("--seed", default=42, show_default=True, help="Of the sample.")
def truthfulqa_command(
    model: str,
    adapter: str | None,
    out: Path | None,
    trust_remote_code: bool,
    questions: str | None,
    n: int | None,
    seed: int,
) -> None:
    """TruthfulQA by log-likelihood: MC1, MC2, MC3."""
    from forty2.benchmark.truthfulqa import truthfulqa

    with Bars() as bars:
        result = truthfulqa(
            model,
            adapter,
            questions=questions,
            n=n,
            seed=seed,
            out=out,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    click.echo(f"{result['questions']}, {result['n']} questions")
    for name in ("mc1", "mc2", "mc3"):
        click.echo(f"{name.upper()}  {result[name]:.4f} ± {result['stderr'][name]:.4f}")


@benchmark_command.command("behaviour")
@_MODEL
def behaviour_command(
    model: str, adapter: str | None, out: Path | None, trust_remote_code: bool
) -> None:
    """Held-out behaviour gates: leaks, myths, invented things, anachronisms, activation."""
    from forty2.benchmark.behaviour import behaviour
    from forty2.model import load
    from forty2.rundir import write_json

    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    with Bars() as bars:
        result = behaviour(loaded, progress=bars)
    if out is not None:
        write_json(out, result)
    click.echo(f"leaks     {result['leak_rate']:.1%} of plain factual prompts")
    click.echo(f"right     {result['right_rate']:.1%} of them")
    for gate, share in result["preference"].items():
        click.echo(
            f"{gate:<12} prefers the good answer {share:.1%}, margin {result['margin'][gate]:+.3f}"
        )


@benchmark_command.command("perplexity")
@_MODEL
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def perplexity_command(
    model: str,
    adapter: str | None,
    out: Path | None,
    trust_remote_code: bool,
    files: tuple[Path, ...],
) -> None:
    """Perplexity on neutral prose, or on text FILES."""
    from forty2.benchmark.perplexity import perplexity
    from forty2.model import load
    from forty2.rundir import write_json

    texts = {str(file): file.read_text("utf-8") for file in files} or None
    result = perplexity(load(model, adapter, trust_remote_code=trust_remote_code), texts)
    if out is not None:
        write_json(out, result)
    click.echo(f"perplexity {result['perplexity']:.3f} over {result['tokens']} tokens")


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--margin",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Largest loss that still counts as no tax.",
)
def compare_command(before: Path, after: Path, margin: float) -> None:
    """Paired statistics and a verdict on two results of the same questions."""
    from forty2.benchmark.stats import compare, format_comparison
    from forty2.rundir import read_json

    click.echo(format_comparison(compare(read_json(before), read_json(after), margin=margin)))
