"""Commands run in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from forty2.cli import main


def forty2(*arguments: str | Path) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(*arguments: str | Path) -> str:
    """The message of a command that must fail with exit code 2 and without a traceback."""
    result = forty2(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output
