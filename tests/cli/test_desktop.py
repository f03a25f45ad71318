"""A long command keeps the machine awake and announces its end, and does not fail where it cannot."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from forty2.cli.desktop import attended
from forty2.cli.run import demo_command, run_command, train_command

SYSTEMS = ["Darwin", "Linux"]
KEEPERS = {"Darwin": "caffeinate", "Linux": "systemd-inhibit"}
NOTIFIERS = {"Darwin": "osascript", "Linux": "notify-send"}


@click.command("long")
@click.option("--fail", is_flag=True)
@attended
def long_command(fail: bool) -> None:
    """Stand for a run: say that it runs, and end or fail."""
    if fail:
        raise ValueError("the disk is full\nof rows")
    click.echo("working")


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system whose programs are those of a folder, which is empty at first."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: request.param)
    return str(request.param)


def program(path: Path, then: str) -> None:
    """Write a program that notes its arguments, one a line, in a file beside it, and goes on so."""
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{path}.called"\n{then}\n')
    path.chmod(0o755)


def called(path: Path) -> list[str]:
    return Path(f"{path}.called").read_text("utf-8").splitlines()


def invoke(*options: str) -> Result:
    return CliRunner().invoke(long_command, options)


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_machine_is_kept_awake_until_the_command_ends(system: str, tmp_path: Path) -> None:
    keeper = tmp_path / KEEPERS[system]
    program(keeper, f"echo $$ > {tmp_path}/number; exec /bin/sleep 60")
    begun = time.monotonic()
    result = invoke("--keep-awake")
    assert (result.exit_code, result.output) == (0, "working\n")
    assert any(str(os.getpid()) in word for word in called(keeper))
    assert not alive(int((tmp_path / "number").read_text())) and time.monotonic() - begun < 30


@pytest.mark.parametrize("there", [False, True])
def test_a_command_that_cannot_keep_the_machine_awake_says_so_and_runs(
    there: bool, system: str, tmp_path: Path
) -> None:
    if there:
        program(tmp_path / KEEPERS[system], "exit 1")
    result = invoke("--keep-awake")
    assert result.exit_code == 0 and result.stdout == "working\n"
    assert result.stderr.startswith("warning: nothing here keeps the machine awake")
    assert result.stderr.count("\n") == 1


def test_the_end_is_announced(system: str, tmp_path: Path) -> None:
    notifier = tmp_path / NOTIFIERS[system]
    program(notifier, "exit 0")
    assert invoke("--notify").output == "working\n"
    assert "forty2 long has finished" in called(notifier)
    failed = invoke("--notify", "--fail")
    assert isinstance(failed.exception, ValueError)
    assert "forty2 long failed: the disk is full" in called(notifier)


@pytest.mark.parametrize("there", [False, True])
def test_the_bell_rings_where_no_notification_can_be_shown(
    there: bool, system: str, tmp_path: Path
) -> None:
    if there:
        program(tmp_path / NOTIFIERS[system], "exit 1")
    result = invoke("--notify")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "working\n", "\a")


@pytest.mark.usefixtures("system")
def test_without_the_options_nothing_is_started() -> None:
    result = invoke()
    assert (result.exit_code, result.output) == (0, "working\n")


@pytest.mark.parametrize("command", [run_command, train_command, demo_command])
def test_commands_that_train_have_both_options(command: click.Command) -> None:
    names = {option for parameter in command.params for option in parameter.opts}
    assert {"--keep-awake", "--notify"} <= names
