"""The desktop around a long command: the machine is kept awake, and its end is announced.

Both use programs of the system, and neither can make the command fail.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence

import click

from forty2.cli.errors import warn
from forty2.cli.shared_options import Command, combined
from forty2.errors import first_line

_BEGUN = 0.3
"""Seconds after which a program that keeps the machine awake has begun, or has failed."""
_PATIENCE = 5.0
"""Most seconds that a notification may take."""
_SCRIPT = (
    "on run argv",
    "display notification (item 1 of argv) with title (item 2 of argv)",
    "end",
)
_TITLE = "forty2"


def attended(function: Command) -> Command:
    """Add `--keep-awake` and `--notify` to a long command."""

    @functools.wraps(function)
    def with_desktop(*, awake: bool, notify: bool, **others: object) -> None:
        with contextlib.ExitStack() as stack:
            if notify:
                stack.enter_context(_announced_end())
            if awake:
                stack.enter_context(kept_awake())
            function(**others)

    return combined(
        click.option(
            "--keep-awake", "awake", is_flag=True, help="Let the machine not sleep until the end."
        ),
        click.option("--notify", is_flag=True, help="Show a notification at the end."),
    )(with_desktop)


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """Keep the machine from sleeping while the block runs; warn if that is not possible here."""
    process = _start(_inhibitor())
    if process is None:
        warn(
            "nothing here keeps the machine awake (caffeinate on macOS, systemd-inhibit on Linux); "
            "turn its sleep off until the command ends"
        )
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def _inhibitor() -> list[str]:
    """Return the command that keeps this system awake until this process ends, however it ends."""
    own = str(os.getpid())
    if platform.system() == "Darwin":
        return ["caffeinate", "-i", "-w", own]
    why = ["--what=idle:sleep", f"--who={_TITLE}", "--why=a command is running"]
    return ["systemd-inhibit", *why, "tail", f"--pid={own}", "-f", "/dev/null"]


def _start(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """Start a program that goes on in the background; None: it is missing, or has failed."""
    silent = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent)
    except OSError:
        return None
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_BEGUN)
        return None
    return process


@contextlib.contextmanager
def _announced_end() -> Iterator[None]:
    """Show a notification when the block ends or fails; one who presses Ctrl-C needs none."""
    name = " ".join(filter(None, (_TITLE, click.get_current_context().info_name)))
    try:
        yield
    except Exception as error:
        show_notification(f"{name} failed: {first_line(error)}")
        raise
    show_notification(f"{name} has finished")


def show_notification(text: str) -> None:
    """Show a notification on the desktop, or ring the terminal's bell where that does not work."""
    command = ["notify-send", f"--app-name={_TITLE}", _TITLE, text]
    if platform.system() == "Darwin":
        command = ["osascript", *(word for line in _SCRIPT for word in ("-e", line)), text, _TITLE]
    try:
        subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        click.echo("\a", err=True, nl=False)
