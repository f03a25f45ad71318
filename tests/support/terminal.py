"""Commands on a terminal of some width."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Sequence


def on_terminal(command: Sequence[str], columns: int, **environment: str) -> str:
    """Run a command whose output goes to a terminal, and return all that was written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**inherited, **environment}
    )
    os.close(theirs)
    parts = []
    with contextlib.suppress(OSError):  # how Linux says that the terminal has closed
        while part := os.read(ours, 65536):
            parts.append(part)
    process.wait()
    os.close(ours)
    return b"".join(parts).decode()
