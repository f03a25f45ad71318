"""`forty2 benchmark` and `compare`."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from forty2.benchmark.tasks import task_class, task_names
from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import Group, warn
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars
from forty2.cli.shared_options import Decorator, combined
from forty2.errors import DataError
from forty2.files import JsonObject

if TYPE_CHECKING:
    from forty2.model.chat_template import TemplateSettings

_MODEL = combined(
    shared_options.model_and_adapter(),
    shared_options.json_out(help="JSON file to write, with every item."),
    shared_options.as_json,
    shared_options.template,
    shared_options.trust_remote_code,
)
_DATA = combined(
    shared_options.data,
    shared_options.n_questions,
    shared_options.limit,
    shared_options.seed_option(help="Seed of the sample of questions."),
)
_RESUME = click.option(
    "--resume", is_flag=True, help="Go on with a measurement that stopped before --out was written."
)
_CHAT_AND_RESUME = combined(
    click.option("--chat", is_flag=True, help="Put prompts through the chat template."), _RESUME
)
_SHOTS = combined(
    click.option(
        "--shots",
        default=5,
        show_default=True,
        type=click.IntRange(0),
        help="Number of solved examples before the question.",
    ),
    click.option(
        "--one-turn",
        is_flag=True,
        help="With --chat, put the examples into one user message, not into turns of their own.",
    ),
)


def _answers(max_tokens: int) -> Decorator:
    """Return the options of benchmarks that generate answers."""
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
            help="Number of answers generated at a time. Does not change the answers.",
        ),
    )


class _Benchmarks(Group):
    """The commands in this file, and one for every other task, with the task's fields as options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = {name.replace("_", "-") for name in task_names()} - _WITHOUT_COMMAND
        return [*self.commands, *sorted(names - self.commands.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        written = super().get_command(ctx, cmd_name)
        if written is not None or cmd_name not in self.list_commands(ctx):
            return written
        return _command_of(cmd_name.replace("-", "_"))


_WITHOUT_COMMAND = {"divergence", "held-out"}
"""Tasks that need more than a model, so that only a run can measure them."""


@click.group("benchmark", cls=_Benchmarks)
def benchmark_command() -> None:
    """Measure a model."""


def _command_of(name: str) -> click.Command:
    """Make the command of a task, with an option for each of its fields."""
    from forty2.recipe.keys import field_docs

    kind = task_class(name)
    hints, about = get_type_hints(kind), field_docs(kind)

    def measure(**arguments: Any) -> None:
        _measure(name, **arguments)

    command = click.command(name.replace("_", "-"), help=inspect.getdoc(kind))(_MODEL(measure))
    for field in dataclasses.fields(kind):
        option = f"--{field.name.replace('_', '-')}"
        required = field.default is dataclasses.MISSING
        if field.default is False:
            command.params.append(click.Option([option], is_flag=True, help=about.get(field.name)))
            continue
        alternatives = get_args(hints[field.name]) or (hints[field.name],)
        of = next((t for t in (int, float, Path) if t in alternatives), str)
        default = None if required else field.default
        command.params.append(
            click.Option(
                [option],
                type=of,
                required=required,
                default=default,
                show_default=True,
                help=about.get(field.name, "").replace("; None:", ". Default:"),
            )
        )
    return command


_LEAVE_OUT = click.option(
    "--leave-out",
    multiple=True,
    metavar="CATEGORY",
    help="Category to leave out; isotopes or practised: those whose kind of question the built-in "
    "conversations, or all built-in sets, ask too. Repeatable.",
)


@benchmark_command.command("truthfulqa")
@_MODEL
@click.option(
    "--questions",
    "-q",
    "data",
    help="File of questions, mc_task.json or CSV, or probe for forty2's own. Default: the hub's.",
)
@shared_options.n_questions
@_LEAVE_OUT
@shared_options.seed_option(help="Seed of the sample.")
@_CHAT_AND_RESUME
def truthfulqa_command(chat: bool, **arguments: Any) -> None:
    """Measure TruthfulQA by log-likelihood: MC1, MC2, MC3."""
    _measure("truthfulqa", chat_template=chat, **arguments)


@benchmark_command.command("truthfulqa-binary")
@_MODEL
@click.option(
    "--questions",
    "-q",
    "data",
    required=True,
    help="File of questions of 2025, mc_task.json or CSV; earlier ones do not have this setting.",
)
@shared_options.n_questions
@_LEAVE_OUT
@shared_options.seed_option(help="Seed of the sample.")
@_CHAT_AND_RESUME
def truthfulqa_binary_command(chat: bool, **arguments: Any) -> None:
    """Measure TruthfulQA's binary setting: two options shown, each question in both orders."""
    _measure("truthfulqa_binary", chat_template=chat, **arguments)


@benchmark_command.command("mmlu")
@_MODEL
@_DATA
@_CHAT_AND_RESUME
@_SHOTS
@click.option(
    "--subjects",
    "-s",
    multiple=True,
    help="Subject, or group: stem, humanities, social_sciences, other. Repeatable. Default: all.",
)
def mmlu_command(chat: bool, one_turn: bool, **arguments: Any) -> None:
    """Measure MMLU by log-likelihood of four letters, by subject and group."""
    _measure("mmlu", chat_template=chat, multiturn=not one_turn, **arguments)


@benchmark_command.command("gsm8k")
@_MODEL
@_DATA
@_CHAT_AND_RESUME
@_SHOTS
@_answers(256)
def gsm8k_command(chat: bool, one_turn: bool, **arguments: Any) -> None:
    """Measure GSM8K: word problems, scored by strict match and flexible extract."""
    _measure("gsm8k", chat_template=chat, multiturn=not one_turn, **arguments)


@benchmark_command.command("humaneval")
@_MODEL
@_DATA
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Put prompts through the chat template. Default: only with --instruct.",
)
@_RESUME
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
    help="Allow running the programs that the model writes, in a sandbox. Required.",
)
def humaneval_command(chat: bool | None, **arguments: Any) -> None:
    """Measure HumanEval: pass@k of functions that the model writes; runs them."""
    from forty2.benchmark import sandbox

    if arguments["run_untrusted_code"] and (gaps := sandbox.gaps()):
        warn(f"the sandbox cannot ensure here that {'; '.join(gaps)}")
    _measure("humaneval", chat_template=chat, **arguments)


def _measure(
    name: str,
    *,
    model: str,
    adapter: str | None,
    out: Path | None,
    template: TemplateSettings | None,
    trust_remote_code: bool,
    as_json: bool,
    resume: bool = False,
    **settings: Any,
) -> JsonObject:
    """Measure a model in a benchmark, print the result and return its JSON."""
    from forty2.benchmark.runner import run

    if resume and out is None:
        raise click.UsageError("--resume needs the --out of the measurement that stopped")
    kind = task_class(name)
    task = kind(**settings)
    with ProgressBars() as bars:
        result = run(
            task,
            model,
            adapter,
            out=out,
            resume=resume,
            template=template,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if as_json:
        named = ("benchmark", "model", "adapter", "seed", "data", "data_sha256", "settings")
        content = {key: getattr(result, key) for key in (*named, "figures", "versions")}
        echo_json("benchmark", {**content, "out": out})
    else:
        echo(kind.text(result))
    return result.figures


@benchmark_command.command("behaviour")
@_MODEL
def behaviour_command(**arguments: Any) -> None:
    """Measure held-out behaviour gates, each by likelihood and by generation."""
    _measure("behaviour", **arguments)


@benchmark_command.command("judge")
@click.option(
    "--before",
    "-b",
    type=click.Path(path_type=Path),
    help="Behaviour result, or stage of a run (RUN/benchmarks/base.json), to compare with. Default: "
    "judge each reply by itself.",
)
@click.option(
    "--after", "-a", required=True, type=click.Path(path_type=Path), help="Result to judge."
)
@click.option("--endpoint", "-e", required=True, help="OpenAI-compatible server, http://HOST/v1.")
@click.option("--judge-model", "-m", required=True, help="Name of the judge model on the server.")
@click.option("--api-key-env", help="Environment variable that holds the key.")
@click.option(
    "--criterion",
    help="Criterion to judge by. Default: true, direct, and open where it must be.",
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
@shared_options.as_json
def judge_command(
    before: Path | None,
    after: Path,
    endpoint: str,
    judge_model: str,
    api_key_env: str | None,
    timeout: float,
    out: Path,
    resume: bool,
    as_json: bool,
    **judging: Any,
) -> None:
    """Ask a judge model about the replies in a result, in both orders, several times."""
    from forty2.benchmark.judge import CRITERION, Judging, format_judged, judge
    from forty2.files import read_json
    from forty2.inference.chat_endpoint import ChatEndpoint

    server = ChatEndpoint(endpoint, judge_model, api_key_env=api_key_env, timeout=timeout)
    judging["criterion"] = judging["criterion"] or CRITERION
    with ProgressBars() as bars:
        result = judge(
            read_json(after),
            server,
            before=None if before is None else read_json(before),
            how=Judging(**judging),
            out=out,
            resume=resume,
            progress=bars,
        )
    if as_json:
        figures = {key: value for key, value in result.items() if key != "items"}
        echo_json("benchmark.judge", {"result": figures, "out": out})
    else:
        echo(format_judged(result))


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
def eval_prompts_command(**arguments: Any) -> None:
    """Measure prompts of your own with expected outputs: exact, contained or by pattern.

    \b
    {"prompts":          {"say_1": "Say hello.", ...},
     "expected_outputs": {"say_1": "hello.", ...},
     "system_prompt":    "You are brief.",
     "match":            "exact",
     "gates":            {"say": 0.8, "all": 0.75}}

    The last three keys are optional. match is exact (except for white space around the reply),
    contains or regex, for all prompts or by id. A gate is the smallest share of passed prompts, for
    all prompts or for those with the same id before the last "_".
    """
    for fault in _measure("eval_prompts", **arguments)["faults"]:
        warn(fault)


@benchmark_command.command("perplexity")
@_MODEL
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def perplexity_command(files: tuple[Path, ...], **arguments: Any) -> None:
    """Measure perplexity on neutral prose, or on text FILES."""
    try:
        texts = {str(file): file.read_text("utf-8") for file in files} or None
    except UnicodeDecodeError as error:
        file = next(file for file in files if file.read_bytes() == error.object)
        raise DataError(f"{file}: not UTF-8; save the file as UTF-8") from error
    _measure("perplexity", texts=texts, **arguments)


@benchmark_command.command("base")
@shared_options.model_and_adapter()
@click.option(
    "--gate",
    "-g",
    "gates",
    required=True,
    multiple=True,
    metavar="NAME[:METRIC]=SHARE",
    help="Least score in a benchmark, e.g. mmlu=0.60. Repeatable.",
)
@click.option(
    "--data",
    "-d",
    multiple=True,
    metavar="NAME=PATH",
    help="File or folder of a benchmark's questions. Default: its folder in FORTY2_BENCH_DATA.",
)
@click.option(
    "--n", type=click.IntRange(1), help="Number of questions of each benchmark. Default: all."
)
@shared_options.seed_option(help="Seed of the samples of questions.")
@click.option(
    "--run-untrusted-code",
    is_flag=True,
    help="Allow running the programs that the model writes, in a sandbox. Required for humaneval.",
)
@shared_options.out_option(help="Folder for the results, with every item.")
@click.option("--resume", is_flag=True, help="Go on with what stopped in the folder --out.")
@shared_options.as_json
@shared_options.template
@shared_options.trust_remote_code
def base_command(
    model: str,
    adapter: str | None,
    gates: tuple[str, ...],
    data: tuple[str, ...],
    n: int | None,
    seed: int,
    run_untrusted_code: bool,
    out: Path | None,
    resume: bool,
    as_json: bool,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Measure a model in several benchmarks, each against the least score that it must reach.

    A gate is passed or failed if the whole 95% interval of the score is on one side of it. The exit code is
    1 if one failed.
    """
    from forty2.benchmark import sandbox
    from forty2.benchmark.base_gates import (
        GateSettings,
        measure_gates,
        parse_gate,
        summary,
        to_json,
    )

    if resume and out is None:
        raise click.UsageError("--resume needs the --out of the measurement that stopped")
    if run_untrusted_code and (gaps := sandbox.gaps()):
        warn(f"the sandbox cannot ensure here that {'; '.join(gaps)}")
    named = dict(map(_named_data, data))
    settings = GateSettings(data=named, n=n, seed=seed, run_untrusted_code=run_untrusted_code)
    with ProgressBars() as bars:
        results = measure_gates(
            [*map(parse_gate, gates)],
            model,
            adapter,
            settings=settings,
            out=out,
            resume=resume,
            template=template,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if as_json:
        echo_json("benchmark.base", {**to_json(results, model, adapter, settings), "out": out})
    else:
        for one in results:
            echo(str(one))
        echo(summary(results))
    if any(one.answer == "failed" for one in results):
        raise SystemExit(1)


def _named_data(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise click.UsageError(f"--data {text}: write NAME=PATH.")
    return name, path


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True),
    help="Largest drop of a score that still counts as unchanged. Default: what the run's recipe "
    "states, else 0.01.",
)
@shared_options.as_json
def compare_command(before: Path, after: Path, margin: float | None, as_json: bool) -> None:
    """Compare two results of the same questions, with a verdict.

    BEFORE and AFTER are JSON files of `forty2 benchmark` or of RUN/benchmarks, folders that
    lm-evaluation-harness wrote with --log_samples, or JSON logs of Inspect. Of two stages of a run, the
    margins are those of its recipe.
    """
    from forty2.benchmark.compare import format_comparison
    from forty2.runs.archive.comparison import compare

    comparison = compare(before, after, margin=margin)
    if as_json:
        echo_json("compare", comparison.record())
    else:
        echo(format_comparison(comparison))
