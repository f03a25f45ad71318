"""The origin of a model or adapter folder: its kind, its base, its run and the stage of that run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import metadata_load

from forty2.errors import ModelError, RunError
from forty2.export.record import RECORD, adapter_of
from forty2.files import CARD, JsonObject, read_json
from forty2.model.adapter import TrainedOn, trained_on
from forty2.model.base_model import is_folder
from forty2.model.starter import STARTER
from forty2.recipe.peft_adapter import is_peft, read_peft
from forty2.run_paths import finished_phases

Kind = Literal["model", "quantized", "adapter"]
RUN, STAGE = "run", "stage"
"""Keys of the record in a PEFT folder of ours: the run's folder, and the phase's name."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""Name of a model on the hub: owner and name, neither of which is a path."""
_STARTER, _STARTER_LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
"""The starter's name on the hub, and its licence."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a folder was made from."""

    name: str
    """Name for a reader: that on the hub, or the last part of its folder's path."""
    hub: str | None
    """Name on the hub; None: only a folder is recorded."""
    sha256: str | None = None
    """Checksum of its weights and config."""
    licence: str | None = None
    """Identifier of its licence, as its own card gives it; None: not known."""
    given: bool = False
    """True if the user named it; False if a record does."""
    quantized_start: bool = False
    """True if training began with dequantized weights, as with the starter."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The content of a folder and its origin."""

    kind: Kind
    base: Base
    run: Path | None
    """Folder of the run that made it; None: there is none here."""
    stage: str = ""
    """Name of the stage at which the run measured it; "": not known."""
    bits: int | None = None
    """Bits per weight of a quantized copy."""
    peft: bool = False
    """True if an adapter has PEFT's form."""

    @property
    def relation(self) -> str:
        """Relation to the base, by the hub's name for it.

        A quantized copy was fine-tuned, too: it is one only of a full-precision model that its owner names.
        """
        if self.kind == "adapter":
            return "adapter"
        return "quantized" if self.kind == "quantized" and self.base.given else "finetune"


def origin_of_model(folder: Path, *, run: Path | None = None, base: str | None = None) -> Origin:
    """Read where a fused model, or its quantized copy, comes from.

    Args:
        run: the run that fused it. Default: the one of the recorded adapter.
        base: name on the hub of what it was made from. Default: the recorded base.

    Raises:
        RunError: the record is damaged.
    """
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    record = record if isinstance(record, dict) else {}
    adapter = adapter_of(folder)
    return origin_of_record(record, Path(adapter) if adapter else None, run=run, base=base)


def origin_of_record(
    record: JsonObject, adapter: Path | None, *, run: Path | None = None, base: str | None = None
) -> Origin:
    """Read where a fused model comes from, by the record that fusing writes into its folder."""
    bits = record.get("bits")
    trained = trained_on(adapter) if adapter is not None and adapter.exists() else None
    if run is None and trained is not None:
        run = trained.run
    if trained is None or trained.name is None:
        trained = trained_on(run) if run is not None else None
    recorded = record.get("base")
    found = _base(trained, recorded if isinstance(recorded, str) else None, base)
    stage = f"fused {bits}-bit" if bits else "fused"
    return Origin("quantized" if bits else "model", found, run, stage, bits)


def origin_of_adapter(folder: Path, *, base: str | None = None) -> Origin:
    """Read where an adapter comes from.

    Args:
        folder: the adapter's own, such as a phase of a run.
        base: name on the hub of its base. Default: the recorded one.
    """
    trained = trained_on(folder)
    run = trained.run if trained.run in (folder.absolute(), folder.absolute().parent) else None
    stage = folder.name if run is not None and folder in finished_phases(folder.parent) else ""
    peft = is_peft(folder)
    if peft and run is None:
        record = read_peft(folder).record
        place = Path(str(record.get(RUN) or ""))
        if (place / "run.json").exists() and place.is_absolute():
            run, stage = place, str(record.get(STAGE) or "")
    return Origin("adapter", _base(trained, None, base), run, stage, peft=peft)


def _base(trained: TrainedOn | None, recorded: str | None, given: str | None) -> Base:
    """Describe a base by its recorded name, or by the one that the user gives."""
    name = (trained.name if trained is not None else None) or recorded
    sha256 = trained.sha256 if trained is not None else None
    if given is not None and not HUB_NAME.fullmatch(given):
        raise ModelError(f"{given}: is no name on the hub; give the base as `model=OWNER/NAME`")
    if name == STARTER:
        if given is None:
            return Base(_STARTER, _STARTER, sha256, _STARTER_LICENCE, quantized_start=True)
        return Base(given, given, sha256, _STARTER_LICENCE, given=True)
    folder = trained.path if trained is not None else None
    licence = licence_of(Path(folder)) if folder is not None else None
    if given is not None:
        return Base(given, given, sha256, licence, given=True)
    if name is None:
        return Base("a model that is not recorded", None, sha256, licence)
    local = os.path.isdir(os.path.expanduser(name))
    if trained is not None and trained.run is not None:
        local = is_folder(trained)
    if HUB_NAME.fullmatch(name) and not local:
        return Base(name, name, sha256, licence)
    return Base(Path(name).name or name, None, sha256, licence)


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model's own card names; None: it names none, or there is no card."""
    try:
        data: object = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except Exception:  # a card by anybody: broken YAML raises errors of any kind
        return None
    found = data.get("license") if isinstance(data, Mapping) else None
    return found if isinstance(found, str) and re.fullmatch(r"[\w.+-]+", found) else None


def fused_folder(run: Path) -> Path | None:
    """Return the folder of a run's fused model; None: it has none here.

    A recorded path is relative to the folder in which the run was started.
    """
    try:
        recorded = read_json(run / RECORD).get("path")
    except (RunError, AttributeError):
        recorded = None
    places = [Path("fused_models") / run.resolve().name]
    if isinstance(recorded, str):
        places = [Path(os.path.expanduser(recorded)), *places]
    for place in places:
        adapter = adapter_of(place) if (place / RECORD).exists() else None
        if adapter is not None and Path(adapter).resolve().is_relative_to(run.resolve()):
            return place
    return None
