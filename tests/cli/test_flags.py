"""Messages name arguments below the command line, and options on it."""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner

import forty2
from forty2.cli import main
from forty2.cli.errors import CommandError, Group, plain_errors, plain_warnings
from forty2.cli.flags import ARGUMENTS, flag, with_flags
from forty2.cli.progress_bars import ProgressBars
from forty2.errors import RunError

PACKAGE = Path(forty2.__file__).parent
COMMAND = re.compile(
    r"(pip install|mlx\.launch|mlx_lm\.generate|llama-gguf-split|tensorboard|forty2 \w+ [\w{}]+) .*"
)
"""A whole command to type in a shell: there, options are right."""
OPTION = re.compile(r"--[a-z]")
NAMED = re.compile(rf"`({'|'.join(ARGUMENTS)})\b")


def options(command: click.Command = main) -> Iterator[str]:
    """Every option of every command."""
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options(below)


def _body(node: ast.AST) -> list[ast.stmt]:
    body = getattr(node, "body", [])
    return body if isinstance(body, list) else []  # a lambda's is an expression


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a module but docstrings; a value in an f-string is {}."""
    tree = ast.parse(source)
    passed = {
        id(statement.value)
        for node in ast.walk(tree)
        for statement in _body(node)
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            passed |= {id(part) for part in node.values}
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in passed:
            yield node.lineno, node.value if isinstance(node.value, str) else ""


def names_option(text: str) -> bool:
    """Whether a message names an option outside a command to type."""
    is_argument_list = " " not in text and text.startswith("--")  # of another program
    return not is_argument_list and bool(OPTION.search(COMMAND.sub("", text)))


@functools.cache
def messages() -> list[tuple[str, str]]:
    """Place and text of every string below the command line, in modules where one may name either."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module, source = path.relative_to(PACKAGE), path.read_text("utf-8")
        if module.parts[0] != "cli" and (OPTION.search(source) or NAMED.search(source)):
            found += [(f"{module}:{line}", text) for line, text in texts(source)]
    return found


def test_no_message_below_the_command_line_names_an_option() -> None:
    found = [f"{place}: {text}" for place, text in messages() if names_option(text)]
    assert not found, "name the argument in backticks; forty2/cli/flags.py turns it into its option"


def test_messages_name_every_argument_of_the_list() -> None:
    named = {name for _, text in messages() for name in NAMED.findall(text)}
    assert named == set(ARGUMENTS), "remove these from ARGUMENTS: no message names them"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise ValueError(f"{x}: go on with --resume")', True),
        ('"""A docstring about --resume."""', False),
        ('f"convert it: forty2 model import {x} --out FOLDER"', False),
        ('["pip", "--quiet"]', False),
    ],
)
def test_an_option_in_a_message_is_found(source: str, found: bool) -> None:
    assert any(names_option(text) for _, text in texts(source)) is found


def test_every_argument_has_an_option() -> None:
    known = set(options())
    assert not [argument for argument in ARGUMENTS if flag(argument) not in known]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "go on with `resume=True`, or name another `run_dir`",
            "go on with --resume, or name another --run-dir",
        ),
        ("prepare it again with `train_on=last`", "prepare it again with --train-on last"),
        ("`overrides`: phases.dpo.lr: is 0", "--set: phases.dpo.lr: is 0"),
        ("`overrides` a=b: `git lfs pull`", "--set a=b: `git lfs pull`"),
        ("mark it `train: false`", "mark it `train: false`"),
        ("resume=True", "resume=True"),
    ],
)
def test_arguments_in_backticks_become_options_and_nothing_else_does(
    message: str, shown: str
) -> None:
    assert with_flags(message) == shown


def leaves(command: click.Command = main, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that lead to it."""
    if not isinstance(command, click.Group):
        yield path.strip(), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from leaves(below, f"{path} {name}")


ONLY_THERE = {"adapter", "overrides", "replace", "system", "trust_remote_code"}
"""Arguments of messages that only commands with the option can give."""


@pytest.mark.parametrize(("path", "command"), [*leaves()], ids=[path for path, _ in leaves()])
def test_no_message_advises_an_option_that_the_command_does_not_have(
    path: str, command: click.Command
) -> None:
    has = {option for parameter in command.params for option in parameter.opts}
    elsewhere = re.compile(r"forty2 [a-z]+( [a-z]+)?( [A-Z{}]+)* --[a-z-]+")
    exempt = {flag(argument) for argument in ONLY_THERE}
    with click.Context(command, info_name=path):
        for place, text in messages():
            if NAMED.search(text):
                shown = elsewhere.sub("", with_flags(text))
                named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", COMMAND.sub("", shown)))
                assert named - exempt <= has, f"{place}: {shown}"


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("run", "go on with `resume=True`", "go on with --resume"),
        ("train", "go on with `resume=True`", "go on with the same command"),
        ("report", "go on with `resume=True`, or", "go on with forty2 run --resume, or"),
        ("fuse", "make room, then start again with `resume=True`", "make room, then start again"),
        ("run", "then start again with `resume=True`", "then start again with --resume"),
        ("ablate", "in another `run_dir`, lower lr", "in another folder, lower lr"),
        (
            "run",
            "prepare it with `train_on=last`",
            "prepare it with forty2 data prepare --train-on last",
        ),
        ("run", "(fold in a recipe, else `system_turn=fold`)", "(fold in the recipe)"),
        (
            "chat",
            "(fold in a recipe, else `system_turn=fold`)",
            "(fold in a recipe, else --system-turn fold)",
        ),
        ("chat", "give the model as `model`", "give the model as RUN|MODEL"),
    ],
)
def test_a_message_fits_the_command_at_hand(command: str, message: str, shown: str) -> None:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    with click.Context(found):
        assert with_flags(message) == shown


def test_an_error_of_a_command_in_a_group_is_told_in_its_options() -> None:
    """Its context is gone when the message is made."""

    @click.group(cls=Group)
    def outer() -> None: ...

    @outer.group("inner", cls=Group)
    def inner() -> None: ...

    @inner.command("with")
    @click.option("--resume", is_flag=True)
    def with_option(resume: bool) -> NoReturn:
        raise RunError("x: go on with `resume=True`")

    @inner.command("without")
    def without_option() -> NoReturn:
        raise RunError("x: go on with `resume=True`")

    for name, said in (
        ("with", "go on with --resume\n"),
        ("without", "with forty2 run --resume\n"),
    ):
        result = CliRunner().invoke(outer, ["inner", name])
        assert (result.exit_code, result.output[-len(said) :]) == (2, said)


@pytest.mark.parametrize(
    ("typed", "message", "said"),
    [
        (
            ["run", "a b.yaml", "--set", "phases.sft.steps=20"],
            "to go on: `resume=True`",
            "to go on: forty2 run 'a b.yaml' --set phases.sft.steps=20 --resume",
        ),
        (
            ["run", "shop", "--resume", "--reuse", "other", "--set=a=1"],
            "to go on: `resume=True`",
            "to go on: forty2 run shop --resume --set=a=1",
        ),
        (
            ["run", "--reuse=other", "--", "shop"],
            "to go on as it began: `resume=True` `overrides=a=[1, 2]` `overrides=b=2`; or not",
            "to go on as it began: forty2 run --set 'a=[1, 2]' --set b=2 --resume -- shop; or not",
        ),
        (["train", "shop"], "to go on: `resume=True`", "to go on: forty2 train shop"),
        (["other", "shop"], "to go on: `resume=True`", "to go on: forty2 run --resume"),
    ],
)
def test_a_stopped_command_names_the_whole_command_that_goes_on(
    typed: list[str], message: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its options, quoted for a shell, without those that only begin a run."""
    outer = Group("outer")

    def fail(**_: object) -> NoReturn:
        raise RunError(message)

    common: list[click.Parameter] = [
        click.Argument(["recipe"]),
        click.Option(["--set"], multiple=True),
        click.Option(["--reuse"]),
    ]
    for name in ("run", "train", "other"):
        resume = [click.Option(["--resume"], is_flag=True)] * (name == "run")
        outer.add_command(click.Command(name, callback=fail, params=[*common, *resume]))
    assert CliRunner().invoke(outer, typed).output == f"Error: {said}\n"
    monkeypatch.setenv("MLX_RANK", "0")  # started by another program, whose words are not known
    assert "shop" not in CliRunner().invoke(outer, typed).output.replace("; or not", "")


def test_errors_warnings_and_notices_are_printed_with_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> NoReturn:
        raise RunError("run: holds a run already; go on with `resume=True`")

    with pytest.raises(CommandError, match=r"go on with --resume$"), plain_errors():
        fail()
    with plain_warnings():
        line = warnings.formatwarning(UserWarning("name another `out`"), UserWarning, "", 0)
    assert line == "warning: name another --out\n"
    with ProgressBars() as bars:
        bars("data", 0, 1, {"warning": "name another `out`"})
    assert capsys.readouterr().err == line
