"""The run's fused model, and its quantized copy where the recipe asks for one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from forty2.errors import RunError
from forty2.export.card import write_card
from forty2.export.fusing import fuse, quantized_path
from forty2.export.origin import origin_of_model
from forty2.export.record import adapter_of
from forty2.files import find_damage, seal, write_json
from forty2.recipe.schema import Fuse
from forty2.runs.context import RunContext


class FusedModels(NamedTuple):
    """Folders of a run's fused models."""

    full: Path
    quantized: Path | None


def fused_path(run: Path, fuse: Fuse) -> Path:
    """Return the fused model's folder: the recipe's, else fused_models/NAME, named as the run folder."""
    return Path(fuse.out or Path("fused_models") / run.resolve().name)


def check_fused_path(run: RunContext) -> None:
    """Refuse to replace another run's fused model."""
    if run.recipe.fuse is None or not run.group.first:
        return
    out, bits = fused_path(run.path, run.recipe.fuse), run.recipe.fuse.quantize
    for folder in (out, *([quantized_path(out, bits)] if bits is not None else [])):
        adapter = adapter_of(folder)
        if adapter and not Path(adapter).resolve().is_relative_to(run.path.resolve()):
            raise RunError(
                f"{folder}: holds the model fused with {adapter}; name another folder with "
                "fuse.out in the recipe, or delete it"
            )


def fuse_run(run: RunContext, settings: Fuse, adapter: Path) -> FusedModels:
    """Fuse the run's adapter into its base, or check the model that the run fused before it stopped.

    Args:
        adapter: folder of the last phase.

    Raises:
        ModelError: the fused model does not compute what base + adapter do.
        RunError: the fused model of an earlier start is damaged.
    """
    out = fused_path(run.path, settings)
    bits = settings.quantize
    models = FusedModels(out, quantized_path(out, bits) if bits is not None else None)
    folders = [folder for folder in models if folder is not None]
    record = run.path / "fused.json"
    if record.exists() and all((folder / "fused.json").exists() for folder in folders):
        for folder in folders:
            damage = find_damage(folder)
            if damage is not None:
                raise RunError(
                    f"{damage}; delete {folder}, then go on with `resume=True`: the model is fused anew"
                )
        return models
    check_fused_path(run)  # again: another run may have fused to it meanwhile
    fused = fuse(
        run.recipe.model,
        adapter,
        out,
        quantize=bits,
        replace=True,  # what is there is of this run
        trust_remote_code=run.options.trust_remote_code,
        progress=run.progress,
    )
    for folder in folders:
        seal(folder)
    run.folder.check_there()
    write_json(record, fused.to_json())
    return models


def write_cards(run: Path, models: FusedModels) -> None:
    """Write the cards of a run's fused models, with the results that the run has now."""
    for folder in models:
        if folder is not None:
            write_card(folder, origin_of_model(folder, run=run))
