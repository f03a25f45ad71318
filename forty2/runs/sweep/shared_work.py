"""Work that several runs of a sweep share, done once: the base's measurement, and first phases."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from forty2.errors import TrainingError, first_line
from forty2.files import JsonObject, read_json, write_json
from forty2.progress import Progress
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Benchmark, Recipe
from forty2.runs.context import RunOptions
from forty2.runs.pipeline import run_in_folder
from forty2.runs.replicates import BASE, begin_with_base, keep_base, prefixed
from forty2.runs.reusing import settings_of_phases
from forty2.runs.sweep.folder import STATES, locked

_KEY = 12
"""Letters of a hash in the name of a folder."""
_MEASURED_BY = (
    "model",
    "chat_template",
    "template_options",
    "system_turn",
    "max_length",
    "benchmark",
)
"""Keys of a recipe on which the base's measurement depends, beside its rows."""


def shared_lengths(recipes: Sequence[Recipe], path: Path) -> list[list[int]]:
    """Return for each recipe the numbers of first phases that it shares with others, smallest first.

    Of several numbers that the same recipes share, only the largest counts.

    Args:
        recipes: those of the sweep.
        path: folder of the sweep.
    """
    keys = [
        [_hashed(settings_of_phases(one, n, path)) for n in range(1, len(one.phases))]
        for one in recipes
    ]
    alike = Counter(key for one in keys for key in one)
    lengths = []
    for own in keys:
        sharing = [*(alike[key] for key in own), 1]
        lengths.append([n for n in range(1, len(sharing)) if sharing[n - 1] > sharing[n]])
    return lengths


def untouched_length(recipe: Recipe, keys: Sequence[str]) -> list[int]:
    """Return the number of first phases that none of a grid's keys changes; none if there are none."""
    names = list(recipe.phases)
    touched = [key.split(".") for key in keys]
    if any(key[0] != "phases" or len(key) < 2 or key[1] not in names for key in touched):
        return []
    length = min((names.index(key[1]) for key in touched), default=0)
    return [length] if length else []


@dataclass(frozen=True)
class SharedWork:
    """The folder of a sweep, as the home of work that its runs share."""

    path: Path
    day: str
    """The day that chat templates take for today."""
    trust_remote_code: bool
    progress: Progress

    def run(self, recipe: Recipe, folder: Path, lengths: Sequence[int], name: str) -> None:
        """Start a run of a recipe in a folder, resume it, or read back a finished one.

        Args:
            recipe: with its seed.
            lengths: numbers of first phases that other runs share.
            name: words for the run, for progress.

        Raises:
            TrainingError: the training of one of its phases broke off.
        """
        source = self._phases(recipe, lengths)
        alike = _measured_alike(recipe, self.path)
        any_seed = self.path / "base" / _hashed(alike)
        same_rows = any_seed.with_name(f"{any_seed.name}-seed{recipe.seed}")
        for base in (same_rows, any_seed):
            if (base / BASE).exists():
                begin_with_base(folder, recipe, base)
                break
        try:
            self._run(recipe, folder, source, name)
        finally:
            for base in (any_seed, same_rows):
                if (folder / BASE).exists() and not (base / BASE).exists():
                    keep_base(folder, base)

    def _run(self, recipe: Recipe, folder: Path, source: Path | None, name: str) -> None:
        options = RunOptions(
            resume=(folder / "run.json").exists(),
            reuse=source,
            states=self.path / STATES,
            day=self.day,
            trust_remote_code=self.trust_remote_code,
        )
        run_in_folder(recipe, folder, options, prefixed(self.progress, name))

    def _phases(self, recipe: Recipe, lengths: Sequence[int]) -> Path | None:
        """Train the first phases that other runs share, or find them trained; return their run."""
        source = None
        for length in lengths:
            unseeded = dataclasses.replace(recipe, seed=0)
            home = self.path / "shared" / _hashed(settings_of_phases(unseeded, length, self.path))
            folder = home / f"seed{recipe.seed}"
            done, failed = (home / f"{folder.name}{end}.json" for end in ("", ".failed"))
            with locked(home / f"{folder.name}.lock"):
                if failed.exists():
                    raise TrainingError(read_json(failed)["error"])
                if not done.exists():
                    names = list(recipe.phases)[:length]
                    one = dataclasses.replace(
                        recipe,
                        phases={name: recipe.phases[name] for name in names},
                        benchmark=Benchmark(tasks=[], held_out=False),
                    )
                    try:
                        self._run(
                            one,
                            folder,
                            source,
                            f"{' and '.join(names)} for several, seed {recipe.seed}",
                        )
                    except TrainingError as error:
                        write_json(failed, {"error": first_line(error)})
                        raise
                    write_json(done, {"phases": names})
            source = folder
        return source


def _measured_alike(recipe: Recipe, path: Path) -> JsonObject:
    """Return what the base's measurement depends on.

    Held-out rows that a seed draws are measured again by the first run with that seed.
    """
    tree: JsonObject = yaml.safe_load(to_yaml(recipe, path))
    benchmark = tree["benchmark"]
    others = [entry for entry in benchmark["tasks"] if entry["task"] != "truthfulqa"]
    drawn = any(entry["n"] or benchmark["n"] for entry in others)
    return {
        **{key: tree[key] for key in _MEASURED_BY},
        **({"tags": [tree["tags"], tree["tags_init"]]} if tree["tags"] is not None else {}),
        "rows": [
            [
                name,
                recipe.phases[name].row_kind.name,
                *(phase[key] for key in ("data", "valid", "eval_prompts")),
            ]
            for name, phase in tree["phases"].items()
        ],
        "seed": recipe.seed if drawn else None,
    }


def _hashed(settings: JsonObject) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]
