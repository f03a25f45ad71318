"""The context that every part of a run shares."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from forty2 import machine
from forty2.errors import RecipeError, RunError
from forty2.files import JsonObject, make_folder, read_json, remove_leftovers, write_json
from forty2.model.adapter import TEMPLATE
from forty2.model.chat_template import TemplateSettings, settings_of
from forty2.model.loading import model_sha256, resolve_model
from forty2.progress import Progress, silent
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.saved_adapter import read_adapter_file
from forty2.recipe.schema import Recipe
from forty2.recipe.tags import with_tags
from forty2.run_paths import close_runs
from forty2.runs.extending import BEGUN_WITH
from forty2.runs.folder import RunFolder
from forty2.runs.records import Provenance
from forty2.training.processes import Group, joined

NEEDED_BY_ALL = (
    "template.json",
    "phase*/*",
    "work/*/step*/*",
    "work/*/best*/*",
    f"work/*/{BEGUN_WITH}",
)
"""Files of a run that the other processes of a group need to continue it."""


class Activity:
    """Progress that remembers the work under way, for the message if memory runs out."""

    def __init__(self, progress: Progress) -> None:
        self.current = "loading the model"
        self._progress = progress

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        self.current = f"{stage}, after {done} of {total}"
        self._progress(stage, done, total, info)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run goes, apart from its recipe."""

    resume: bool = False
    """Continue the run in the folder. One that was interrupted while it took over phases takes over the
    rest."""
    only: str | None = None
    """Name of the phase that it stops after; None: the last one, and the recipe may have changed; see
    `runs.extending`."""
    reuse: Path | None = None
    """Folder of a run of whose phases a new one takes over those that are the same. Their template took
    some day for today, which this run's then takes, too."""
    states: Path | None = None
    """Folder of frozen blocks' states that other runs use, too; None: the run has its own."""
    day: str | None = None
    """Day that a new run's chat template takes for today; None: today."""
    trust_remote_code: bool = False


@dataclass(frozen=True)
class RunContext:
    """A run under way: its recipe, its folder, and the processes that share it."""

    recipe: Recipe
    options: RunOptions
    folder: RunFolder
    provenance: Provenance
    group: Group
    progress: Activity
    template: TemplateSettings
    """Settings of the chat template, with the day that it takes for today."""
    whole_epochs: bool
    """Whether epochs are whole passes; see `training.schedule.plan_phase`."""

    @property
    def base_key(self) -> str:
        """Fingerprint of the base with the recipe's tags, as they are before training."""
        return with_tags(self.provenance.model_sha256, self.recipe)

    @property
    def path(self) -> Path:
        """The run folder; in all but the first process of a group, a scratch folder."""
        return self.folder.path


@contextlib.contextmanager
def open_run(
    recipe: Recipe, path: Path, options: RunOptions, progress: Progress
) -> Iterator[RunContext]:
    """Open or continue the run in `path`, in all processes of the group.

    Raises:
        RunError: see `RunFolder.open`; or there is no run to resume; or versions, recipe or model
            differ between processes.
    """
    group = joined()
    with contextlib.ExitStack() as opened:
        with group.synchronized() as must_agree:
            provenance = provenance_of(recipe)
            must_agree.update(_shared_facts(recipe, provenance))
            resume = options.resume and group.first
            if not group.first:
                progress = silent
            if resume and not any((path / name).exists() for name in ("run.json", "run.lock")):
                raise RunError(
                    f"{path}: there is no run to resume; {close_runs(path)} Leave `resume=True` out to "
                    "begin a new one"
                )
            folder = opened.enter_context(
                RunFolder.open(
                    path if group.first else opened.enter_context(_scratch_folder()),
                    to_yaml(recipe, path),
                    provenance,
                    resume=resume,
                    # up to one phase, the changed recipe would remove those after it
                    extend=options.only is None,
                    reread=lambda stored: reread(stored, recipe, path),
                )
            )
            if folder.notice is not None:
                progress("run", 0, 1, {"notice": folder.notice})
        if group.first:
            _record_template(folder.path, recipe, options)
        group.broadcast_files(folder.path, NEEDED_BY_ALL)
        yield RunContext(
            recipe=recipe,
            options=options,
            folder=folder,
            provenance=provenance,
            group=group,
            progress=Activity(progress),
            template=TemplateSettings.from_json(read_json(folder.path / TEMPLATE)),
            whole_epochs=group.broadcast(folder.counts_whole_epochs),
        )


def _shared_facts(recipe: Recipe, provenance: Provenance) -> dict[str, str]:
    """Return what must be the same in all processes of a group, by what it is."""
    versions = ("forty2", "mlx", "mlx-lm")
    return {
        **{f"the version of {name}": provenance.versions[name] for name in versions},
        "the recipe": to_yaml(recipe),
        "the model": provenance.model_sha256,
        "the adapter of init_from": str(provenance.init_from_sha256),
    }


def _record_template(path: Path, recipe: Recipe, options: RunOptions) -> None:
    """Write the settings of the chat template into the run folder, or compare them with those there.

    The template takes the day on which the run was started for today, so that a run that is resumed
    on another day goes on with the same rows.

    Raises:
        RunError: the file of the template has changed since the run was started.
    """
    file = path / TEMPLATE
    if file.exists():
        recorded = TemplateSettings.from_json(read_json(file))
        if recorded != settings_of(recipe, recorded.date):
            raise RunError(
                f"chat_template: {recipe.chat_template}: has changed since {path} was started; put it "
                "back, or name another `run_dir`"
            )
        return
    day = options.day or read_json(path / "run.json")["started"][:10]
    if options.reuse is not None and (options.reuse / TEMPLATE).exists():
        day = read_json(options.reuse / TEMPLATE)["date"]
    write_json(file, settings_of(recipe, day).to_json())


def provenance_of(recipe: Recipe) -> Provenance:
    """Look up the model, its weights' hash and the versions that a run of this recipe starts from."""
    model = resolve_model(recipe.model)
    initial = read_adapter_file(recipe.init_from) if recipe.init_from is not None else None
    return Provenance(
        name=recipe.name,
        model=recipe.model,
        model_path=os.path.abspath(model),
        model_sha256=model_sha256(model),
        versions=machine.facts(),
        init_from=str(initial.folder) if initial is not None else None,
        init_from_sha256=initial.sha256() if initial is not None else None,
    )


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Make a run folder for a process that is not the first of its group; remove it at the end."""
    folder = machine.cache_dir() / "group" / f".run.{os.getpid()}"
    make_folder(folder.parent)
    remove_leftovers(folder.parent)
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def reread(path: Path, recipe: Recipe, folder: Path | None = None) -> str:
    """Return the recipe that a run was started from, as this release writes it into a folder.

    A key missing from it was null, or is newer than the release that wrote it: it becomes null where
    `recipe` has null, else the default.

    Raises:
        RunError: this release cannot read it.
    """
    try:
        load_recipe(path)
        stored = yaml.safe_load(path.read_text("utf-8"))
        nulls = list(_nulls(dataclasses.asdict(recipe), stored))
        return to_yaml(load_recipe(path, nulls), folder)
    except RecipeError as error:
        raise RunError(
            f"{path.parent}: this release cannot read its recipe ({str(error).splitlines()[0]}); "
            "go on with the release that started it, or name another `run_dir`"
        ) from error


def _nulls(recipe: JsonObject, stored: JsonObject, at: str = "") -> Iterator[str]:
    """Yield overrides to null for the keys that are null in `recipe` and missing from `stored`."""
    for key, value in recipe.items():
        if value is None and key not in stored:
            yield f"{at}{key}=null"
        elif isinstance(value, Mapping) and isinstance(stored.get(key), Mapping):
            yield from _nulls(dict(value), stored[key], f"{at}{key}.")
