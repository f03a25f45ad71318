"""A run's log and results in files outside its folder, where another package's layout has them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from forty2.files import JsonObject, read_json, write_json
from forty2.progress import Progress
from forty2.run_paths import finished_phases


class LoggedProgress:
    """Passes progress on, and appends every message and every step of training to a file."""

    def __init__(self, progress: Progress, file: Path) -> None:
        self._progress, self._file = progress, file
        file.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        messages = [f"{key}: {info[key]}" for key in ("notice", "warning") if key in info]
        if not messages and "loss" in info:
            figures = ", ".join(f"{name} {value}" for name, value in info.items())
            messages = [f"step {done} of {total}: {figures}"]
        if messages:
            now = datetime.datetime.now().isoformat(" ", "seconds")
            with self._file.open("a", encoding="utf-8") as log:
                log.writelines(f"{now} {stage}: {message}\n" for message in messages)
        self._progress(stage, done, total, info)


def write_results(run: Path, file: Path) -> None:
    """Write the results of a finished run into one file: its phases, measurements and verdicts."""
    results: JsonObject = {"run": str(run)}
    results |= {"phases": [read_json(phase / "phase.json") for phase in finished_phases(run)]}
    for name in ("run.json", "summary.json"):
        if (run / name).exists():
            results[name.removesuffix(".json").replace("run", "started_with")] = read_json(
                run / name
            )
    results["stages"] = {
        one.stem: read_json(one) for one in sorted((run / "benchmarks").glob("*.json"))
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, results)
