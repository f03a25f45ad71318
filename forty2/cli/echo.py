"""Writing for people: everything that the commands say goes through here, and fits the terminal.

`click.echo` writes JSON, YAML and HTML, which programs read, without a change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from forty2.text_layout import LineBreaker, fit, terminal_width


def echo(text: object = "", *, err: bool = False) -> None:
    """Write a text and a line break, laid out for the terminal, unchanged for a pipe.

    Args:
        err: write to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    click.echo(fit(str(text), terminal_width(stream)), err=err)


def echo_pieces(pieces: Iterable[str]) -> None:
    """Write a text as its pieces come, and a line break."""
    breaker = LineBreaker(terminal_width(sys.stdout))
    for piece in pieces:
        click.echo(breaker.feed(piece), nl=False)
    click.echo(breaker.end())
