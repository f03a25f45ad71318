"""Commands load when they run; what --help says of them is what they say of themselves."""

from __future__ import annotations

import re

import click
import pytest
from support.cli import forty2, refused

from forty2.cli import COMMANDS, main
from forty2.cli.lazy_group import short_help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_a_command_with_the_first_line_of_its_own_help(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None and command.name == name
    line = short_help(COMMANDS[name], name)
    assert line and command.help is not None
    assert command.help.splitlines()[0] == line
    assert f"  {name} " in forty2("--help").output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_on_one_line(name: str) -> None:
    (line,) = [x for x in forty2("--help").output.splitlines() if x.startswith(f"  {name} ")]
    assert line.split(maxsplit=1)[1] == short_help(COMMANDS[name], name)


def test_an_earlier_name_goes_on_working_and_is_not_listed() -> None:
    assert "bench " not in forty2("--help").output.replace("benchmark", "")
    old, new = forty2("bench", "--help"), forty2("speed", "--help")
    assert old.exit_code == 0
    assert old.output.splitlines()[1:] == new.output.splitlines()[1:]


def test_every_option_of_every_command_has_help() -> None:
    def walk(command: click.Command, path: str) -> list[str]:
        bare = [
            f"{path} {parameter.opts[0]}"
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.help
        ]
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                bare += walk(below, f"{path} {name}")
        return bare

    assert walk(main, "forty2") == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rnu", "run"), ("chta", "chat"), ("data lnit", "lint"), ("benhc", "bench")],
)
def test_a_mistyped_command_names_the_close_ones(typed: str, meant: str) -> None:
    assert re.search(rf"[Dd]id you mean .*\b{meant}\b", refused(*typed.split()))
