"""Errors and warnings of the command line: one message, an exit code, no traceback."""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import IO, Any

import click

from forty2.cli.echo import echo
from forty2.cli.flags import TYPED, goes_on, with_flags
from forty2.cli.signals import Terminated
from forty2.errors import Forty2Error, OtherProcessEnded, first_line, is_out_of_memory
from forty2.text_layout import fit, terminal_width


class CommandError(click.ClickException):
    """An error that ends a command: click prints its message and exits with its code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable in click

    def show(self, file: IO[Any] | None = None) -> None:
        echo(f"Error: {self.format_message()}", err=True)


class Group(click.Group):
    """A group of commands whose errors end in one line, which names options that the command has."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with plain_errors():
            return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta.setdefault(TYPED, tuple(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        with plain_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors that a user can act on, and signals, into a `CommandError`. Bugs keep their traceback.

    Exit codes: 2 for wrong use, for an error of ours and when memory runs out, 130 for SIGINT, 143 for
    SIGTERM.
    """
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise CommandError(_usage_error(error), error.exit_code) from error
    except OtherProcessEnded as ended:
        raise click.exceptions.Exit(ended.exit_code) from ended
    except Forty2Error as error:
        raise CommandError(with_flags(str(error)), error.exit_code) from error
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        after = "to go on: `resume=True`" if goes_on() else "to try again, give the same command"
        stopped = f"stopped by {number.name}; no file is half-written; {after}"
        raise CommandError(with_flags(stopped), 128 + number) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise CommandError(
            f"memory ran out ({first_line(error)}); close other programs, or use a smaller or quantized model",
            Forty2Error.exit_code,
        ) from error


def _usage_error(error: click.UsageError) -> str:
    """Return click's message as one line, with the command that shows the help; click prints four."""
    message = " ".join(error.format_message().split())
    if error.ctx is None:
        return message
    end = "" if message.endswith((".", "?")) else "."
    return f"{message}{end} See {error.ctx.command_path} --help"


def warn(message: str) -> None:
    """Print a warning on standard error."""
    click.echo(_as_warning(message), err=True)


def _as_warning(message: str) -> str:
    return fit(f"warning: {with_flags(message)}", terminal_width(sys.stderr))


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as one line each, without the line of code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"{_as_warning(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
