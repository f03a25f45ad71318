"""Time of a sweep beside single runs. Run: python benchmarks/sweep_cost.py RECIPE GRID [--set KEY=VALUE]…

Runs the whole sweep, then some of its configurations as a user would run them one by one: with a
cache of their own, and measured as the recipe says, but not fused. Prints the seconds of each, and
the sweep's share of what all configurations would take as single runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import forty2  # isort: skip
from forty2 import machine
from forty2.progress import silent
from forty2.recipe.differences import on_one_line
from forty2.recipe.reading import load_recipe
from forty2.runs.sweep.folder import configuration_folders


class Cost(NamedTuple):
    """Seconds of a sweep and of single runs."""

    sweep: float
    runs: int
    """Configurations times seeds."""
    single: tuple[float, ...]

    @property
    def share(self) -> float:
        """The sweep's time as a share of that of all its runs one by one."""
        return self.sweep / (self.runs * statistics.fmean(self.single))


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Compute everything anew, but for the models."""
    models = machine.cache_dir() / "models"
    folder.mkdir()
    if models.exists():
        (folder / "models").symlink_to(models)
    before = os.environ.get("FORTY2_CACHE")
    os.environ["FORTY2_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["FORTY2_CACHE"]
        if before is not None:
            os.environ["FORTY2_CACHE"] = before


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(
    recipe: str, grid: str, seeds: Sequence[int], overrides: Sequence[str], singles: int, home: Path
) -> Cost:
    """Time a sweep in a folder, and some of its configurations as single runs."""
    out = home / "sweep"
    with own_cache(home / "sweep-cache"):
        total = seconds_of(
            lambda: forty2.sweep(recipe, grid, seeds, overrides=overrides, out=out, progress=silent)
        )
    folders = configuration_folders(out)
    chosen = folders[:: max(1, len(folders) // singles)][:singles]
    times = []
    for folder in chosen:
        settings = [f"{k}={on_one_line(v)}" for k, v in folder.read().settings.items()]
        one = load_recipe(recipe, [*overrides, *settings, f"seed={seeds[0]}"])
        one = dataclasses.replace(one, fuse=None)
        with own_cache(home / f"{folder.name}-cache"):
            times.append(
                seconds_of(
                    lambda: forty2.run(one, run_dir=home / folder.name, progress=silent)  # noqa: B023
                )
            )
    return Cost(total, len(folders) * len(seeds), tuple(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("grid")
    parser.add_argument("--seeds", default="42,43")
    parser.add_argument("--singles", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cost = measure(given.recipe, given.grid, seeds, given.overrides, given.singles, Path(home))
    print(f"sweep   {cost.sweep:8.1f} s for {cost.runs} runs")
    print(f"single  {', '.join(f'{one:.1f}' for one in cost.single)} s")
    print(f"share   {cost.share:.0%} of {cost.runs} single runs")


if __name__ == "__main__":
    main()
