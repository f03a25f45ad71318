"""`forty2 benchmark` and `compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from forty2.cli import shared_options
from forty2.cli.progress_bars import ProgressBars
from forty2.cli.shared_options import Decorator, combined
from forty2.errors import DataError

_MODEL = combined(
    shared_options.model_and_adapter(),
    shared_options.json_out(help="JSON file to write, with every item."),
    shared_options.trust_remote_code,
)
_DATA = combined(
    shared_options.data,
    shared_options.n_questions,
    shared_options.limit,
    shared_options.seed_option(help="Seed of what is sampled."),
)
_HOW = combined(
    click.option("--chat", is_flag=True, help="Put prompts through the chat template."),
    click.option("--resume", is_flag=True, help="Go on with a measurement that stopped."),
)
_SHOTS = combined(
    click.option(
        "--shots",
        default=5,
        show_default=True,
        type=click.IntRange(0),
        help="Number of examples before the question.",
    ),
    click.option(
        "--one-turn",
        is_flag=True,
        help="With --chat: put the examples into the user's message, not into turns.",
    ),
)


def _answers(max_tokens: int) -> Decorator:
    """Options of benchmarks that generate."""
    return combined(
        click.option(
            "--max-tokens",
            default=max_tokens,
            show_default=True,
            type=click.IntRange(1),
            help="Longest answer in tokens.",
        ),
        click.option(
            "--batch-size",
            default=16,
            show_default=True,
            type=click.IntRange(1),
            help="Answers generated at a time. Does not change them.",
        ),
    )


@click.group("benchmark")
def benchmark_command() -> None:
    """Measure a model."""


@benchmark_command.command("truthfulqa")
@_MODEL
@click.option(
    "--questions", "-q", help="mc_task.json, CSV, or probe for our own. Default: the hub's."
)
@shared_options.n_questions
@shared_options.seed_option(help="Seed of the sample.")
@_HOW
def truthfulqa_command(chat: bool, resume: bool, out: Path | None, **arguments: Any) -> None:
    """TruthfulQA by log-likelihood: MC1, MC2, MC3."""
    from forty2.benchmark.tasks.truthfulqa import truthfulqa

    _check_resume(out, resume)
    with ProgressBars() as bars:
        result = truthfulqa(**arguments, chat_template=chat, out=out, resume=resume, progress=bars)
    click.echo(f"{result['questions']}, {result['n']} questions")
    for name in ("mc1", "mc2", "mc3"):
        click.echo(f"{name.upper()}  {result[name]:.4f} ± {result['stderr'][name]:.4f}")


@benchmark_command.command("mmlu")
@_MODEL
@_DATA
@_HOW
@_SHOTS
@click.option(
    "--subjects",
    "-s",
    multiple=True,
    help="A subject, or stem, humanities, social_sciences, other. Repeatable. Default: all.",
)
def mmlu_command(
    chat: bool, one_turn: bool, resume: bool, out: Path | None, **arguments: Any
) -> None:
    """MMLU by log-likelihood of four letters, by subject, group and in all."""
    from forty2.benchmark.tasks.mmlu import mmlu

    _check_resume(out, resume)
    with ProgressBars() as bars:
        result = mmlu(
            **arguments,
            chat_template=chat,
            multiturn=not one_turn,
            out=out,
            resume=resume,
            progress=bars,
        )
    for name, part in {**result["subjects"], **result["groups"], "MMLU": result}.items():
        click.echo(f"{name:<36}{_figure(part['acc'], part['stderr'])}  {part['n']:>6} questions")


@benchmark_command.command("gsm8k")
@_MODEL
@_DATA
@_HOW
@_SHOTS
@_answers(256)
def gsm8k_command(
    chat: bool, one_turn: bool, resume: bool, out: Path | None, **arguments: Any
) -> None:
    """GSM8K: sums answered at length, strict match and flexible extract."""
    from forty2.benchmark.tasks.gsm8k import METRICS, gsm8k

    _check_resume(out, resume)
    with ProgressBars() as bars:
        result = gsm8k(
            **arguments,
            chat_template=chat,
            multiturn=not one_turn,
            out=out,
            resume=resume,
            progress=bars,
        )
    _echo_answers(result, METRICS)


@benchmark_command.command("humaneval")
@_MODEL
@_DATA
@_HOW
@_answers(1024)
@click.option("--instruct", is_flag=True, help="Ask for the function, as humaneval_instruct does.")
@click.option(
    "--samples",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Number of answers to a problem.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    help="Sampling temperature. Default: 0 (greedy) for one sample, 0.2 for more.",
)
@click.option(
    "--top-p",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the likeliest tokens to sample from.",
)
@click.option(
    "--run-untrusted-code",
    is_flag=True,
    help="Allow it to run the programs that the model writes, in a sandbox. Required.",
)
def humaneval_command(chat: bool, resume: bool, out: Path | None, **arguments: Any) -> None:
    """HumanEval: pass@k of functions that the model writes; runs them."""
    from forty2.benchmark import sandbox
    from forty2.benchmark.tasks.humaneval import humaneval

    _check_resume(out, resume)
    if arguments["run_untrusted_code"] and (gaps := sandbox.gaps()):
        click.echo(f"warning: the sandbox cannot see to it here that {'; '.join(gaps)}", err=True)
    with ProgressBars() as bars:
        result = humaneval(**arguments, chat_template=chat, out=out, resume=resume, progress=bars)
    _echo_answers(result, [name for name in result if name.startswith("pass@")])


def _check_resume(out: Path | None, resume: bool) -> None:
    if resume and out is None:
        raise click.UsageError("--resume needs the --out that was being written")


def _echo_answers(result: Mapping[str, Any], metrics: Sequence[str]) -> None:
    click.echo(f"{result['n']} questions")
    for name in metrics:
        click.echo(f"{name:<18}{_figure(result[name], result['stderr'][name])}")
    click.echo(f"{'stopped':<18}{result['stop_rate']:.1%} of answers, the others cut at the limit")


def _figure(value: float, stderr: float | None) -> str:
    return f"{value:.4f} ± {stderr:.4f}" if stderr is not None else f"{value:.4f}         "


@benchmark_command.command("behaviour")
@_MODEL
def behaviour_command(
    model: str, adapter: str | None, out: Path | None, trust_remote_code: bool
) -> None:
    """Held-out behaviour gates, each judged by likelihood and by generation."""
    from forty2.benchmark.tasks.behaviour import behaviour, format_gates
    from forty2.files import write_json
    from forty2.model.loading import load

    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    with ProgressBars() as bars:
        result = behaviour(loaded, progress=bars)
    if out is not None:
        write_json(out, result)
    click.echo(format_gates(result))
    click.echo(f"\nplain factual prompts: right {result['right_rate']:.1%}")


@benchmark_command.command("judge")
@click.option(
    "--before",
    "-b",
    type=click.Path(path_type=Path),
    help="Behaviour result to compare with. Default: each reply is judged by itself.",
)
@click.option(
    "--after", "-a", required=True, type=click.Path(path_type=Path), help="Result to judge."
)
@click.option("--endpoint", "-e", required=True, help="OpenAI-compatible server, http://HOST/v1.")
@click.option("--judge-model", "-m", required=True, help="Name of the judge model on the server.")
@click.option("--api-key-env", help="Environment variable that holds the key.")
@click.option(
    "--criterion", help="What to judge by. Default: true, direct, and open where it must be."
)
@click.option(
    "--repeats",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Number of times to ask about each reply.",
)
@click.option(
    "--temperature",
    default=0.7,
    show_default=True,
    type=click.FloatRange(0),
    help="Sampling temperature of the judge.",
)
@click.option(
    "--max-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Longest reply of the judge in tokens.",
)
@click.option(
    "--timeout",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for a reply.",
)
@shared_options.json_out(required=True, help="JSON file to write, with every reply.")
@click.option("--resume", is_flag=True, help="Go on with a measurement that stopped.")
def judge_command(
    before: Path | None,
    after: Path,
    endpoint: str,
    judge_model: str,
    api_key_env: str | None,
    criterion: str | None,
    timeout: float,
    **arguments: Any,
) -> None:
    """A judge model's opinion of the replies in a result, asked in both orders, several times."""
    from forty2.benchmark.judge import CRITERION, Endpoint, format_judged, judge
    from forty2.files import read_json

    server = Endpoint(endpoint, judge_model, api_key_env=api_key_env, timeout=timeout)
    with ProgressBars() as bars:
        result = judge(
            read_json(after),
            server,
            before=None if before is None else read_json(before),
            criterion=criterion or CRITERION,
            progress=bars,
            **arguments,
        )
    click.echo(format_judged(result))


@benchmark_command.command("eval-prompts")
@_MODEL
@click.option(
    "--prompts",
    "-p",
    required=True,
    type=click.Path(path_type=Path),
    help="JSON file of prompts and expected_outputs, by id.",
)
@_answers(64)
def eval_prompts_command(out: Path | None, **arguments: Any) -> None:
    """Prompts of your own with expected outputs: exact, contained or by pattern.

    \b
    {"prompts":          {"say_1": "Say hello.", ...},
     "expected_outputs": {"say_1": "hello.", ...},
     "system_prompt":    "You are brief.",
     "match":            "exact",
     "gates":            {"say": 0.8, "all": 0.75}}

    The last three may be absent. match is exact (but for white space around the reply), contains or
    regex, of all prompts or by id. A gate is the least share of the ids before the last "_".
    """
    from forty2.benchmark.tasks.eval_prompts import eval_prompts

    with ProgressBars() as bars:
        result = eval_prompts(**arguments, out=out, progress=bars)
    click.echo(f"{result['n']} prompts, read as {result['form']}; {result['distinct']} replies")
    click.echo(f"{'passed':<18}{_figure(result['passed'], result['stderr'])}")
    for name, bucket in result["buckets"].items():
        click.echo(f"  {name:<16}{bucket['passed']:.4f}  {bucket['n']:>6} prompts")
    click.echo(f"{'stopped':<18}{result['stop_rate']:.1%} of replies, the others cut at the limit")
    for name, gate in result["gates"].items():
        verdict = "passed" if gate["passed"] else "FAILED"
        click.echo(f"gate {name:<13}{gate['share']:.1%}, at least {gate['least']:.0%}: {verdict}")
    for fault in result["faults"]:
        click.echo(f"warning: {fault}", err=True)


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
    from forty2.benchmark.tasks.perplexity import perplexity
    from forty2.files import write_json
    from forty2.model.loading import load

    try:
        texts = {str(file): file.read_text("utf-8") for file in files} or None
    except UnicodeDecodeError as error:
        file = next(file for file in files if file.read_bytes() == error.object)
        raise DataError(f"{file}: not UTF-8; save the file as UTF-8") from error
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
    help="Largest drop of a score that still counts as unchanged.",
)
def compare_command(before: Path, after: Path, margin: float) -> None:
    """Compare two results of the same questions: statistics, verdict."""
    from forty2.benchmark.compare import compare, format_comparison
    from forty2.files import read_json

    click.echo(format_comparison(compare(read_json(before), read_json(after), margin=margin)))
