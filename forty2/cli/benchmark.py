"""`forty2 benchmark` and `compare`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from forty2.benchmark.tasks import task_class, task_names
from forty2.cli import options
from forty2.cli.progress_bars import Bars
from forty2.errors import DataError
from forty2.files import JsonObject


def _check_out(_: click.Context, __: click.Parameter, out: Path | None) -> Path | None:
    """Refuse a file that could not be written before hours have gone into it."""
    if out is not None:
        from forty2.benchmark.partial_results import check_out

        check_out(out)
    return out


_MODEL = options(
    click.option("--model", "-m", required=True, help="Model folder, hub name, or smollm2."),
    click.option("--adapter", "-a", help="Adapter folder, or a run folder (its last phase)."),
    click.option(
        "--out",
        "-o",
        type=click.Path(path_type=Path),
        callback=_check_out,
        help="JSON to write, with every item.",
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Let the model run architecture code that it brings along.",
    ),
)
_DATA = options(
    click.option(
        "--data", "-d", required=True, type=click.Path(path_type=Path), help="File or folder."
    ),
    click.option("--n", type=click.IntRange(1), help="Questions to sample; absent: all."),
    click.option(
        "--limit", type=click.IntRange(1), help="Only the first ones, as lm-eval's --limit."
    ),
    click.option("--seed", default=42, show_default=True, help="Of what is sampled."),
)
_RESUME = click.option(
    "--resume", is_flag=True, help="Go on with a measurement that stopped before --out was written."
)
_HOW = options(
    click.option("--chat", is_flag=True, help="Put prompts through the chat template."), _RESUME
)
_SHOTS = options(
    click.option(
        "--shots", default=5, show_default=True, type=click.IntRange(0), help="Examples before."
    ),
    click.option(
        "--one-turn", is_flag=True, help="With --chat: examples in the user's turn, not as turns."
    ),
)


def _answers(max_tokens: int) -> Callable[[Any], Any]:
    """Options of benchmarks that generate."""
    return options(
        click.option(
            "--max-tokens",
            default=max_tokens,
            show_default=True,
            type=click.IntRange(1),
            help="Longest answer.",
        ),
        click.option(
            "--batch-size",
            default=16,
            show_default=True,
            type=click.IntRange(1),
            help="Answers at a time; the answers stay the same.",
        ),
    )


class _Benchmarks(click.Group):
    """The commands below, and for every other task one whose options are the task's fields."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = {name.replace("_", "-") for name in task_names()} - _WITHOUT_COMMAND
        return [*self.commands, *sorted(names - self.commands.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        written = super().get_command(ctx, cmd_name)
        if written is not None or cmd_name not in self.list_commands(ctx):
            return written
        return _command_of(cmd_name.replace("-", "_"))


_WITHOUT_COMMAND = {"divergence"}
"""Tasks that need more than a model: a run measures them."""


@click.group("benchmark", cls=_Benchmarks)
def benchmark_command() -> None:
    """Measure a model."""


def _command_of(name: str) -> click.Command:
    """Make the command of a task, with an option for each of its fields."""
    kind = task_class(name)
    hints = get_type_hints(kind)

    def measure(**arguments: Any) -> None:
        _measure(name, **arguments)

    command = click.command(name.replace("_", "-"), help=inspect.getdoc(kind))(_MODEL(measure))
    for field in dataclasses.fields(kind):
        option = f"--{field.name.replace('_', '-')}"
        required = field.default is dataclasses.MISSING
        if field.default is False:
            command.params.append(click.Option([option], is_flag=True))
            continue
        alternatives = get_args(hints[field.name]) or (hints[field.name],)
        of = next((t for t in (int, float, Path) if t in alternatives), str)
        default = None if required else field.default
        command.params.append(
            click.Option([option], type=of, required=required, default=default, show_default=True)
        )
    return command


@benchmark_command.command("truthfulqa")
@_MODEL
@click.option("--questions", "-q", help="mc_task.json or CSV; `probe`: our own. Absent: the hub's.")
@click.option("--n", type=click.IntRange(1), help="Questions to sample, stratified; absent: all.")
@click.option("--seed", default=42, show_default=True, help="Of the sample.")
@_HOW
def truthfulqa_command(chat: bool, **arguments: Any) -> None:
    """TruthfulQA by log-likelihood: MC1, MC2, MC3."""
    _measure("truthfulqa", chat_template=chat, **arguments)


@benchmark_command.command("mmlu")
@_MODEL
@_DATA
@_HOW
@_SHOTS
@click.option(
    "--subjects",
    "-s",
    multiple=True,
    help="A subject, or stem, humanities, social_sciences, other; again for more. Absent: all.",
)
def mmlu_command(chat: bool, one_turn: bool, **arguments: Any) -> None:
    """MMLU by log-likelihood of four letters, by subject, group and in all."""
    _measure("mmlu", chat_template=chat, multiturn=not one_turn, **arguments)


@benchmark_command.command("gsm8k")
@_MODEL
@_DATA
@_HOW
@_SHOTS
@_answers(256)
def gsm8k_command(chat: bool, one_turn: bool, **arguments: Any) -> None:
    """GSM8K: sums answered at length, strict match and flexible extract."""
    _measure("gsm8k", chat_template=chat, multiturn=not one_turn, **arguments)


@benchmark_command.command("humaneval")
@_MODEL
@_DATA
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Put prompts through the chat template; absent: with --instruct.",
)
@_RESUME
@_answers(1024)
@click.option("--instruct", is_flag=True, help="Ask for the function, as humaneval_instruct does.")
@click.option(
    "--samples", default=1, show_default=True, type=click.IntRange(1), help="Answers to a problem."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    help="Absent: 0 (greedy) for one sample, 0.2 for more.",
)
@click.option(
    "--top-p", default=0.95, show_default=True, type=click.FloatRange(0, 1, min_open=True)
)
@click.option(
    "--run-untrusted-code",
    is_flag=True,
    help="Required: the programs that the model writes are run, in a sandbox.",
)
def humaneval_command(chat: bool | None, **arguments: Any) -> None:
    """HumanEval: pass@k of functions that the model writes; runs them."""
    from forty2.benchmark import sandbox

    if arguments["run_untrusted_code"] and (gaps := sandbox.gaps()):
        click.echo(f"warning: the sandbox cannot ensure here that {'; '.join(gaps)}", err=True)
    _measure("humaneval", chat_template=chat, **arguments)


def _measure(
    name: str,
    *,
    model: str,
    adapter: str | None,
    out: Path | None,
    trust_remote_code: bool,
    resume: bool = False,
    **settings: Any,
) -> JsonObject:
    """Measure a model in a benchmark, print the result and return its JSON."""
    from forty2.benchmark.runner import run

    if resume and out is None:
        raise click.UsageError("--resume needs the --out that was being written")
    kind = task_class(name)
    task = kind(**settings)
    with Bars() as bars:
        result = run(
            task,
            model,
            adapter,
            out=out,
            resume=resume,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    click.echo(kind.text(result))
    return result.figures


@benchmark_command.command("behaviour")
@_MODEL
def behaviour_command(**arguments: Any) -> None:
    """Held-out behaviour gates, each judged by likelihood and by generation."""
    _measure("behaviour", **arguments)


@benchmark_command.command("judge")
@click.option(
    "--before",
    "-b",
    type=click.Path(path_type=Path),
    help="Behaviour result to compare with; absent: each reply is judged by itself.",
)
@click.option(
    "--after", "-a", required=True, type=click.Path(path_type=Path), help="Result to be judged."
)
@click.option("--endpoint", "-e", required=True, help="OpenAI-compatible server, http://HOST/v1.")
@click.option("--judge-model", "-m", required=True, help="The judge, as the server calls it.")
@click.option("--api-key-env", help="Environment variable that holds the key.")
@click.option(
    "--criterion", help="What to look at; absent: true, direct, and open where it must be."
)
@click.option(
    "--repeats", default=2, show_default=True, type=click.IntRange(1), help="Times each is asked."
)
@click.option("--temperature", default=0.7, show_default=True, type=click.FloatRange(0))
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1))
@click.option(
    "--timeout",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for a reply.",
)
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    callback=_check_out,
    help="JSON to write, with every reply.",
)
@click.option("--resume", is_flag=True, help="Go on with what stopped before --out was whole.")
def judge_command(
    before: Path | None,
    after: Path,
    endpoint: str,
    judge_model: str,
    api_key_env: str | None,
    criterion: str | None,
    repeats: int,
    temperature: float,
    max_tokens: int,
    timeout: float,
    out: Path,
    resume: bool,
) -> None:
    """A judge model's opinion of the replies in a result, asked in both orders, several times."""
    from forty2.benchmark.judge import CRITERION, Judging, format_judged, judge
    from forty2.files import read_json
    from forty2.inference.chat_endpoint import ChatEndpoint

    server = ChatEndpoint(endpoint, judge_model, api_key_env=api_key_env, timeout=timeout)
    how = Judging(
        criterion=criterion or CRITERION,
        repeats=repeats,
        temperature=temperature,
        max_tokens=max_tokens,
    )
    with Bars() as bars:
        result = judge(
            read_json(after),
            server,
            before=None if before is None else read_json(before),
            how=how,
            out=out,
            resume=resume,
            progress=bars,
        )
    click.echo(format_judged(result))


@benchmark_command.command("eval-prompts")
@_MODEL
@click.option(
    "--prompts",
    "-p",
    required=True,
    type=click.Path(path_type=Path),
    help="JSON of prompts and expected_outputs, by id.",
)
@_answers(64)
def eval_prompts_command(**arguments: Any) -> None:
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
    for fault in _measure("eval_prompts", **arguments)["faults"]:
        click.echo(f"warning: {fault}", err=True)


@benchmark_command.command("perplexity")
@_MODEL
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def perplexity_command(files: tuple[Path, ...], **arguments: Any) -> None:
    """Perplexity on neutral prose, or on text FILES."""
    try:
        texts = {str(file): file.read_text("utf-8") for file in files} or None
    except UnicodeDecodeError as error:
        file = next(file for file in files if file.read_bytes() == error.object)
        raise DataError(f"{file}: not UTF-8; save the file as UTF-8") from error
    _measure("perplexity", texts=texts, **arguments)


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
    from forty2.benchmark.compare import compare, format_comparison
    from forty2.benchmark.results import read_measured
    from forty2.files import read_json

    old = read_measured(read_json(before), "the result before")
    new = read_measured(read_json(after), "the result after")
    click.echo(format_comparison(compare(old, new, margin=margin)))
