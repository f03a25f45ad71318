"""A model or an adapter from the hub into a folder: safe files alone, and only if it can be loaded.

What was downloaded before a connection was cut is kept beside the folder, and the next pull goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, metadata_load, snapshot_download

from forty2.errors import Forty2Error, HubError, ModelError, on_one_line
from forty2.export.hub import ADAPTER_FILES, CODE, MODEL_FILES, check_name, hub_errors, is_one_of
from forty2.files import (
    CARD,
    check_free_space,
    make_folder,
    refuse_no_folder,
    staged_folder,
    write_errors,
)
from forty2.model.adapter import adapter_dir, load_arrays
from forty2.model.adapter_files import read_adapter_config
from forty2.model.loading import load
from forty2.recipe.peft_adapter import CONFIG
from forty2.run_paths import HOME

_MODELS = Path("fused_models")
_RUN = "run.json"


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was downloaded, and where it is."""

    path: Path
    kind: Literal["model", "adapter"]
    commit: str
    """Commit on the hub that it was taken from."""
    files: int
    size: int
    """Bytes of all files."""
    base: str | None
    """An adapter's base as its card names it."""
    left_out: tuple[str, ...]
    """Files that were not downloaded: code, pickles and what else no loader of ours reads."""


def pull(
    name: str,
    out: str | Path | None = None,
    *,
    replace: bool = False,
    trust_remote_code: bool = False,
) -> Pulled:
    """Download a model or an adapter from the hub.

    The folder appears whole or not at all, after its files were loaded.

    Args:
        name: OWNER/NAME.
        out: the folder to write. Default: fused_models/NAME, or adapters/NAME for an adapter.
        replace: write over a model or adapter that is there; never over a run.
        trust_remote_code: take the model's own Python code along, and run it to see that it loads.

    Raises:
        HubError: the hub does not have it, refuses it, or cannot be reached.
        ModelError: it holds nothing that can be loaded safely, or the folder holds something else.
        RunError: the folder cannot be written.
    """
    check_name(name)
    if out is not None:
        _check_target(Path(out), replace)
    unchanged = "nothing was changed here"
    with hub_errors(name, unchanged, writing=False):
        api = HfApi(library_name="forty2")
        info = api.model_info(name, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    kind: Literal["model", "adapter"] = "adapter" if CONFIG in sizes else "model"
    patterns: tuple[str, ...] = ADAPTER_FILES if kind == "adapter" else MODEL_FILES
    patterns += CODE if trust_remote_code else ()
    wanted = sorted(file for file in sizes if is_one_of(file, patterns))
    _check_contents(name, kind, wanted, sizes)
    folder = Path(out) if out is not None else _place(kind) / name.partition("/")[2]
    _check_target(folder, replace)
    partial = folder.with_name(f".{folder.name}.download")
    size = sum(sizes[file] for file in wanted)
    with write_errors(folder):
        make_folder(folder.parent)
    check_free_space({folder: size - _bytes_in(partial)})
    with hub_errors(name, "what was downloaded is kept; the same command goes on", writing=False):
        snapshot_download(
            name, revision=info.sha, local_dir=partial, allow_patterns=wanted, library_name="forty2"
        )
    try:
        _check_files(name, partial, {file: sizes[file] for file in wanted})
        _check_loads(name, partial, kind, trust_remote_code)
    except Forty2Error:  # what the hub has is of no use: nothing to go on from
        shutil.rmtree(partial, ignore_errors=True)
        raise
    base = _base(partial)
    with staged_folder(folder) as unfinished:
        for file in wanted:
            (partial / file).replace(unfinished / file)
    shutil.rmtree(partial, ignore_errors=True)
    left_out = tuple(sorted(sizes.keys() - set(wanted) - {".gitattributes"}))
    return Pulled(folder, kind, info.sha or "", len(wanted), size, base, left_out)


def _place(kind: str) -> Path:
    """Return the folder in which models, or adapters, are kept."""
    return HOME if kind == "adapter" else _MODELS


def _check_contents(name: str, kind: str, wanted: list[str], sizes: Mapping[str, int]) -> None:
    """Refuse what holds no safetensors, or neither a model nor an adapter."""
    if kind == "model" and "config.json" not in wanted:
        raise ModelError(
            f"{name}: holds neither a model (config.json) nor an adapter ({CONFIG}) at its top; download its "
            "files with `hf download`"
        )
    if not any(file.endswith(".safetensors") for file in wanted):
        others = sorted(file for file in sizes if file.endswith((".bin", ".pt", ".pth", ".gguf")))
        there = f" ({others[0]} is none)" if others else ""
        raise ModelError(
            f"{name}: has no weights as safetensors{there}; only those are read, because other kinds can run "
            "code"
        )


def _check_target(folder: Path, replace: bool) -> None:
    """Refuse to write over what is there, unless it is a model or adapter that may be replaced.

    Raises:
        ModelError: it holds something else, or may not be replaced.
        RunError: it is `/`, `.` or `..`.
    """
    refuse_no_folder(folder)
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink():
        raise ModelError(f"{folder}: is a link; name another `out`")
    if not any(folder.iterdir()):
        return
    if (folder / _RUN).exists():
        raise ModelError(f"{folder}: holds a run, which is never replaced; name another `out`")
    if not any((folder / file).exists() for file in (CONFIG, "config.json")):
        raise ModelError(f"{folder}: exists and holds something else; name another `out`")
    if not replace:
        raise ModelError(
            f"{folder}: exists already; name another `out`, or replace it with `replace=True`"
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_files(name: str, folder: Path, sizes: Mapping[str, int]) -> None:
    """Make sure that every file is there in full, and is a file."""
    for file, size in sizes.items():
        path = folder / file
        if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
            raise HubError(f"{name}: {file} did not arrive whole; run the same command again")


def _check_loads(name: str, folder: Path, kind: str, trust_remote_code: bool) -> None:
    """Refuse what cannot be loaded, in words about the hub's files."""
    try:
        if kind == "model":
            load(str(folder), lazy=True, trust_remote_code=trust_remote_code)
        else:
            read_adapter_config(adapter_dir(folder))
            for file in folder.glob("*.safetensors"):
                load_arrays(file)
    except Forty2Error as error:
        reason = on_one_line(error).replace(str(folder), name)
        reason = reason.removeprefix(f"{name}: ")
        raise ModelError(f"{name}: cannot be loaded: {reason}; nothing was changed here") from error


def _base(folder: Path) -> str | None:
    """Return the base that an adapter's card names; None: none or several."""
    try:
        data: object = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except Exception:  # a card by anybody: broken YAML raises errors of any kind
        return None
    found = data.get("base_model") if isinstance(data, Mapping) else None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, str) and found and "\n" not in found else None
