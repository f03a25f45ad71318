"""`forty2 completion`: a script that lets a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from forty2.cli import main
from forty2.errors import Forty2Error

_VARIABLE = "_FORTY2_COMPLETE"
"""The variable by which the script asks forty2; click derives it from the name of the command."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print a script that completes commands in your shell.

    \b
    forty2 completion bash > FILE

    FILE is ~/.local/share/bash-completion/completions/forty2 for bash, ~/.zfunc/_forty2 for zsh (with
    ~/.zfunc in $fpath, before compinit), and ~/.config/fish/completions/forty2.fish for fish.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise Forty2Error(f"click knows no completion of {shell}")
    source = kind(main, {}, "forty2", _VARIABLE)
    script = source.source_template % source.source_vars()
    click.echo(script)
