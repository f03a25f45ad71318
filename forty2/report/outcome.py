"""The outcome of a run as a table for the terminal: what each phase changed, its time and its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from forty2.files import read_json
from forty2.report.records import read_run
from forty2.report.run_types import PhaseRecord, Run
from forty2.report.units import duration, file_size
from forty2.run_paths import phase_label

_FIGURES = {
    "validation loss": ("valid_loss", ".3f"),
    "accuracy": ("valid_accuracy", ".0%"),
    "held-out loss": ("valid_hold_out_loss", ".3f"),
    "held-out accuracy": ("valid_hold_out_accuracy", ".0%"),
    "prompts passed": ("valid_passed", ".0%"),
}
"""Columns of figures, each with its key in the metrics and its form."""
_TRAINING_LOSS = "training loss"
_COLUMNS = ("phase", *_FIGURES, _TRAINING_LOSS, "kept step", "time", "size")
_KINDS = {"measure": "measuring", "read": "reading"}
"""Rows of the stages that are neither trained nor fused, by the kind of their work."""


def outcome_table(folder: Path, fused: Sequence[Path] = ()) -> str:
    """Format what each phase of a run changed, from before its first step to the step that it kept.

    Args:
        fused: folders of the fused models.
    """
    run = read_run(folder)
    rows = [
        _phase_row(run, phase, folder / phase_label(number, phase.name))
        for number, phase in enumerate(run.phases, 1)
    ]
    for number, model in enumerate(fused):
        time = _time_of(run, "fuse") if number == 0 else ""
        name = "fused" if number == 0 else f"fused, {model.name.rpartition('-')[2]}"
        rows.append({"phase": name, "time": time, "size": file_size(_bytes_in(model))})
    rows += [{"phase": name, "time": _time_of(run, kind)} for kind, name in _KINDS.items()]
    rows = [row for row in rows if len(row) > 2 or row["time"]]
    if run.times:
        reused = read_json(folder / "run.json").get("reused")
        name = f"in all, with {' and '.join(reused['phases'])} taken over" if reused else "in all"
        rows.append({"phase": name, "time": duration(sum(time.seconds for time in run.times))})
    return _in_columns(rows)


def _phase_row(run: Run, phase: PhaseRecord, folder: Path) -> dict[str, str]:
    row = {
        "phase": phase.name,
        "kept step": f"{phase.adapter_step:,} of {phase.steps:,}",
        "time": duration(sum(time.seconds for time in run.times if time.phase == phase.name))
        if any(time.phase == phase.name for time in run.times)
        else "",
        "size": file_size(_bytes_in(folder)),
    }
    for column, (key, form) in _FIGURES.items():
        values = _by_step(run, phase, key)
        if 0 in values and phase.adapter_step in values:
            row[column] = f"{values[0]:{form}} → {values[phase.adapter_step]:{form}}"
    losses = list(_by_step(run, phase, "loss").values())
    if "validation loss" not in row and losses:
        row[_TRAINING_LOSS] = f"{losses[0]:.3f} → {losses[-1]:.3f}"
    return row


def _by_step(run: Run, phase: PhaseRecord, key: str) -> dict[int, float]:
    return {
        line.step: line.values[key]
        for line in run.log
        if line.phase == phase.name and key in line.values
    }


def _time_of(run: Run, kind: str) -> str:
    times = [time.seconds for time in run.times if time.kind == kind]
    return duration(sum(times)) if times else ""


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Set rows in columns, without the columns that no row has a text for."""
    shown = [name for name in _COLUMNS if any(row.get(name) for row in rows)]
    table = [dict(zip(shown, shown, strict=True)), *rows]
    widths = {name: max(len(row.get(name, "")) for row in table) for name in shown}
    lines = ["  ".join(row.get(n, "").ljust(widths[n]) for n in shown).rstrip() for row in table]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
