"""Where a run and its phases are kept: adapters/NAME/phase1_sft."""

from __future__ import annotations

import re
from pathlib import Path

HOME = Path("adapters")
"""Where runs are written unless the user names another folder."""
_PHASE = re.compile(r"phase(\d+)_(.+)", re.DOTALL)


def run_path(name: str, folder: str | Path | None) -> Path:
    """Return the folder of a run: `folder` if given, else the one of its name."""
    return Path(folder) if folder is not None else HOME / name


def phase_label(number: int, name: str) -> str:
    """Return the name of a phase's folder, and of the stage after it.

    Args:
        number: its place in the recipe, from 1.
    """
    return f"phase{number}_{name}"


def finished_phases(run: Path, file: str = "phase.json") -> dict[Path, str]:
    """Return the folders of a run's finished phases, in order, with the phases' names.

    Args:
        file: a file that each of them holds.
    """
    found = [
        (int(match[1]), path.parent, match[2])
        for path in run.glob(f"phase*/{file}")
        if (match := _PHASE.fullmatch(path.parent.name))
    ]
    return {folder: name for _, folder, name in sorted(found)}
