"""Which models a server offers, and where they are: the base, each finished phase, the fused model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from forty2.export.record import RECORD
from forty2.files import read_json
from forty2.model.adapter import adapter_dir, choose_system, recorded_template
from forty2.model.base_model import find_model_and_adapter
from forty2.model.chat_template import TemplateSettings
from forty2.recipe.saved_adapter import CONFIG
from forty2.run_paths import expand_run_name, finished_phases

BASE = "base"
"""Id of the model that a run began with."""
FUSED = "fused"
"""Id of a fused model."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model that requests may name."""

    id: str
    model: str
    """Folder, hub name or `smollm2`."""
    adapter: Path | None
    """Folder of the adapter on it; None: it has none."""
    template: TemplateSettings
    """Settings of its chat template, for those that an adapter does not bring along."""
    shares_base: bool
    """Whether its weights are those of the first model, but for the adapter."""


@dataclass(frozen=True, slots=True)
class Sources:
    """All that a server offers."""

    name: str
    """Name of the run or of the model."""
    models: tuple[Source, ...]
    """The first has no adapter, and the others that share weights share its."""
    system: str | None
    """System message of most rows that the last phase trained on; None: none."""
    notes: tuple[str, ...] = ()
    """What a run has and the server does not offer, with the reason."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the models, in the order of training."""
        return tuple(source.id for source in self.models)


def find_sources(
    target: str | Path,
    adapter: str | Path | None = None,
    template: TemplateSettings | None = None,
) -> Sources:
    """Find the models of a run, or of a phase, an adapter or a model alone.

    Args:
        target: a model; or a run, RUN/PHASE or adapter folder, whose model is recorded. A run may be
            given by its folder, its recipe's folder or its name.
        adapter: adapter on the model.
        template: settings of the chat template; those of the run where these say nothing.

    Raises:
        ModelError: there is no such adapter, its model is not known, or there are two adapters.
        RunError: several runs have this name, or its record is damaged.
    """
    settings = template or TemplateSettings()
    model, found = find_model_and_adapter(target, adapter)
    if found is None:
        path = Path(os.path.expanduser(model))
        name = FUSED if os.path.exists(path / RECORD) else BASE
        return Sources(path.name, (Source(name, model, None, settings, True),), None)
    folder = expand_run_name(found)
    recorded = recorded_template(folder) or TemplateSettings()
    models = [Source(BASE, model, None, settings.over(recorded), True)]
    for phase, name in _phases(folder).items():
        models.append(Source(_free_id(name, phase), model, phase, settings, True))
    notes: list[str] = []
    fused = _fused_path(folder)
    if fused is not None and os.path.exists(fused / "config.json"):
        # The fused template has the run's settings written into it, but for the day.
        dated = settings.over(TemplateSettings(date=recorded.date))
        models.append(Source(FUSED, str(fused), None, dated, False))
    elif fused is not None:
        notes.append(f"the fused model is not served: it is not in {fused}")
    return Sources(folder.name, tuple(models), choose_system(None, folder), tuple(notes))


def _phases(folder: Path) -> dict[Path, str]:
    """Return the finished phases of a run, or the one phase or adapter of a folder, with their names."""
    if os.path.exists(folder / "run.json"):
        return finished_phases(folder, CONFIG)
    phase = adapter_dir(folder)
    return {phase: finished_phases(phase.parent, CONFIG).get(phase, phase.name)}


def _free_id(name: str, phase: Path) -> str:
    """Return a phase's name as its id, or its folder's where the name is another model's."""
    return phase.name if name in (BASE, FUSED) else name


def _fused_path(run: Path) -> Path | None:
    """Return where a run wrote its fused model; None: it wrote none."""
    record = run / RECORD
    return Path(read_json(record)["path"]) if record.exists() else None
