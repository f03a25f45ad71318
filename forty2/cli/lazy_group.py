"""A click group that imports a command's module only when the command runs."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from forty2.cli.errors import Group, plain_errors, plain_warnings
from forty2.cli.signals import terminable


class LazyGroup(Group):
    """Commands in modules beside this one; --help reads their docstrings without importing them."""

    modules: ClassVar[Mapping[str, str]] = {}
    """Module of each command; its function there is named NAME_command."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Earlier names of commands, which still work but are not listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self.aliases.get(cmd_name, cmd_name)
        if name not in self.modules:
            return None
        module = importlib.import_module(f"forty2.cli.{self.modules[name]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        close = difflib.get_close_matches(name, [*self.modules, *self.aliases], 2)
        if close and name not in (*self.modules, *self.aliases) and not name.startswith("-"):
            raise click.UsageError(
                f"No such command {name!r}; did you mean {' or '.join(close)}?", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, short_help(module, name)) for name, module in self.modules.items()]
            )

    def invoke(self, ctx: click.Context) -> object:
        with plain_errors(), terminable(), plain_warnings():
            return super().invoke(ctx)


def short_help(module: str, command: str) -> str:
    """Read the first line of a command's docstring without importing its module."""
    return _first_lines(module)[f"{command}_command"]


@functools.cache
def _first_lines(module: str) -> dict[str, str]:
    """Return the first docstring line of each function in a module beside this one."""
    folder = Path(__file__).parent
    file = folder / f"{module}.py"
    source = (file if file.exists() else folder / module / "__init__.py").read_text("utf-8")
    return {
        node.name: (ast.get_docstring(node) or "").partition("\n")[0]
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
