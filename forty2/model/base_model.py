"""The base model of an adapter, found by the record of the run that trained it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from forty2.errors import ModelError
from forty2.model.adapter import CONFIG, TrainedOn, adapter_dir, trained_on
from forty2.model.loading import model_sha256
from forty2.model.starter import STARTER
from forty2.run_paths import expand_run_name

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_base_model(adapter: str | Path) -> str | None:
    """Return a name by which the model that an adapter was trained on can be loaded.

    A model folder is found from any working directory: where the run recorded it; where it is seen
    from the run folder, if both were moved; and, for a relative name, in the folders that the run
    is in, and here. Only the recorded place is taken without comparing the weights' hash.

    Args:
        adapter: a run folder, an adapter folder inside one, or a PEFT folder.

    Returns:
        The name; None: it is not recorded.

    Raises:
        ModelError: the folder is in none of these places, or holds other weights.
    """
    base = trained_on(adapter)
    if base.run is None:
        return _named_by_peft(adapter, base.name)
    if base.name is None or not is_folder(base):
        return base.name
    others = []
    for place in _places(base):
        if not (place / "config.json").exists():
            continue
        if str(place) == base.path or base.sha256 in (None, model_sha256(place)):
            here = Path(os.path.expanduser(base.name))
            return base.name if here.exists() and here.samefile(place) else str(place)
        others.append(place)
    wanted = f"{adapter}: was trained on the model folder {base.path or base.name}"
    if others:
        raise ModelError(
            f"{wanted}, and {others[0]} holds other weights: give the model as `model`"
        )
    raise ModelError(f"{wanted}, which is neither there nor near the run: give it as `model`")


def find_model_and_adapter(
    target: str | Path, adapter: str | Path | None = None
) -> tuple[str, str | Path | None]:
    """Tell a run or an adapter from a model; return the names of the model and of its adapter.

    Args:
        target: a model; or a run, RUN/PHASE or adapter folder, whose model is recorded. A run may be
            given by its folder, its recipe's folder or its name.
        adapter: adapter on the model.

    Raises:
        ModelError: there is no such adapter, its model is not known, or there are two adapters.
        RunError: several runs have this name.
    """
    if target == STARTER:
        return STARTER, adapter
    folder = expand_run_name(target)
    run = os.path.exists(folder / "run.json")
    phase = not os.path.exists(folder) and os.path.exists(folder.parent / "run.json")
    if not (run or phase or os.path.exists(folder / CONFIG)):
        return str(target), adapter
    if adapter is not None:
        raise ModelError(
            f"{target}: has an adapter of its own; give the model, or no other adapter"
        )
    adapter_dir(folder)  # says what is wrong where there is no finished phase
    model = find_base_model(folder)
    if model is None:
        raise ModelError(
            f"{target}: does not record which model it is for; name the model, and this as its adapter"
        )
    return model, str(folder)


def _named_by_peft(adapter: str | Path, name: str | None) -> str | None:
    """Return the model that a PEFT folder names: a folder that is there, or a name for the hub.

    Raises:
        ModelError: it is a folder that is not there.
    """
    if name is None or os.path.isdir(name) or _HUB_NAME.fullmatch(name):
        return name
    raise ModelError(
        f"{adapter}: was trained on {name}, which is not here; give its base as `model`"
    )


def is_folder(base: TrainedOn) -> bool:
    """Return whether the recorded name is that of a folder, not of a hub's model or the starter."""
    name = os.path.expanduser(base.name or "")
    if name == STARTER:
        return False
    if base.path is None:
        return os.path.isdir(name)
    # A hub's model was loaded from the hub's cache, where folders have other names.
    parts = Path(os.path.normpath(name)).parts
    named_so = Path(os.path.normpath(base.path)).parts[-len(parts) :] == parts
    return named_so or name.startswith((".", "/")) or not os.path.isabs(base.path)


def _places(base: TrainedOn) -> Iterator[Path]:
    """Yield the places where the model's folder may be, the likeliest first."""
    assert base.name is not None and base.run is not None
    if base.path is not None and os.path.isabs(base.path):
        yield Path(base.path)
    if base.from_run is not None:
        yield Path(os.path.normpath(base.run / base.from_run))
    name = os.path.expanduser(base.name)
    for folder in (base.run, *base.run.parents, Path.cwd()):
        yield Path(os.path.normpath(folder / name))
