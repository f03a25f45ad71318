"""The shell's own completion of forty2's commands and options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import forty2, refused


def complete_in_bash(folder: Path, line: str) -> list[str]:
    """What bash offers for the last word of a line, with the script loaded."""
    script = folder / "completion.bash"
    script.write_text(forty2("completion", "bash").output, "utf-8")
    command = folder / "forty2"
    call = "from forty2.cli import main; main(prog_name='forty2')"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{call}"\n', "utf-8")
    command.chmod(0o755)
    asked = f"""
        source "{script}"
        COMP_WORDS=({line}); COMP_CWORD=$(({len(line.split())} - 1))
        _forty2_completion forty2
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", asked],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("forty2 ru", ["run", "runs"]),
        ("forty2 runs sh", ["show"]),
        ("forty2 benchmark eval", ["eval-prompts"]),
        ("forty2 export gguf --ol", ["--ollama"]),
        ("forty2 completion f", ["fish"]),
    ],
)
def test_bash_completes_commands_options_and_choices(
    line: str, offered: list[str], tmp_path: Path
) -> None:
    assert complete_in_bash(tmp_path, line) == offered


@pytest.mark.parametrize(
    ("shell", "begins", "registers"),
    [
        ("zsh", "#compdef forty2", "compdef _forty2_completion forty2"),
        ("fish", "function _forty2_completion", "complete --no-files --command forty2"),
    ],
)
def test_scripts_of_the_other_shells_register_the_command(
    shell: str, begins: str, registers: str
) -> None:
    script = forty2("completion", shell).output
    assert script.startswith(begins) and registers in script


def test_another_shell_is_refused() -> None:
    assert "'bash', 'zsh', 'fish'" in refused("completion", "tcsh")
