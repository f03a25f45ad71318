"""A model or an adapter to the hub: chosen files, a card, no path of this machine, and one commit.

Large files are uploaded first and become visible with the commit alone. What the hub has already is
not sent again, so an interrupted push goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError

from forty2.errors import HubError, ModelError
from forty2.export.card import build_card, is_owners, result_files
from forty2.export.hub import (
    ADAPTER_FILES,
    CODE,
    MODEL_FILES,
    TOKENIZER_FILES,
    check_name,
    connect,
    hub_errors,
    is_one_of,
)
from forty2.export.origin import (
    RUN,
    STAGE,
    Origin,
    fused_folder,
    origin_of_adapter,
    origin_of_model,
)
from forty2.export.private_paths import find_path, machine_paths
from forty2.files import CARD, JsonObject, find_damage, read_json
from forty2.model.adapter import TEMPLATE, adapter_dir
from forty2.model.configuration import read_config
from forty2.model.weights import check_weight_files, tensor_names
from forty2.recipe.peft_adapter import CONFIG, RECORD
from forty2.run_paths import find_run, suggest_run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAMES_BASE = "base_model_name_or_path"
_OWN_NAMES = ("_name_or_path", "name_or_path")
"""Keys of JSON files under which some releases of transformers keep the folder of a model."""
_WEIGHTS = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "*adapter*.safetensors",
    "tags.safetensors",
)
"""Files that a loader would read even if they are of an earlier push."""
_NOTHING = "nothing was published"


@dataclass(frozen=True, slots=True)
class PushedFile:
    """One file to send."""

    name: str
    """Its path on the hub."""
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class Push:
    """What will be sent, and what stays."""

    folder: Path
    repository: str
    origin: Origin
    files: tuple[PushedFile, ...]
    left_out: tuple[str, ...]
    """Files of the folder that are not sent."""
    own_card: bool
    """Whether the README is its owner's own text."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub has under the name."""

    api: HfApi
    name: str
    sha: str | None
    """Its last commit; None: the hub has nothing under this name."""
    removed: tuple[str, ...]
    """Weights of an earlier push that this one has no more."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The outcome of a push."""

    url: str
    changed: bool
    """False: the hub had every file already, and there is no new commit."""


# --- what to send ---------------------------------------------------------------------------------


def plan_push(target: str | Path, repository: str, *, model: str | None = None) -> Push:
    """Choose what to send; nothing is sent, and the hub is not asked.

    Args:
        target: a run, whose fused model is sent; RUN/PHASE, whose adapter is sent; or a folder of a
            fused model or of an adapter. A run may be given by its folder, its recipe's folder or its
            name.
        repository: OWNER/NAME.
        model: name on the hub of what it was made from. Default: the recorded base.

    Raises:
        HubError: the name is none on the hub.
        ModelError: there is no such model or adapter, it is damaged, or a file would tell a path of
            this machine.
    """
    name = check_name(repository).partition("/")[2]
    folder, origin = _find(target, model)
    _refuse_links(folder)
    if (folder / "SHA256SUMS").exists() and (damage := find_damage(folder)):
        raise ModelError(f"{damage}; make it again before you push it")
    _check_weights(folder, origin)
    wanted = ADAPTER_FILES if origin.kind == "adapter" else MODEL_FILES + _code(folder)
    inside = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    contents: dict[str, Path | bytes] = {
        file: folder / file for file in inside if is_one_of(file, wanted)
    }
    own = is_owners(folder)
    if not own:
        contents[CARD] = build_card(name, origin, repository=repository).encode()
    template = origin.run / TEMPLATE if origin.run is not None else None
    if origin.kind == "adapter" and template is not None and template.is_file():
        contents.setdefault(TEMPLATE, template)
    contents |= result_files(origin) if not own else {}
    for file, content in contents.items():
        if file.endswith(".json") and not is_one_of(file, TOKENIZER_FILES[:1]):
            contents[file] = _portable(content, folder / file, origin)
    files = tuple(PushedFile(file, content) for file, content in sorted(contents.items()))
    left_out = tuple(file for file in inside if file not in contents)
    _refuse_paths(files, folder, origin)
    return Push(folder, repository, origin, files, left_out, own)


def _find(target: str | Path, model: str | None) -> tuple[Path, Origin]:
    """Find the folder that a user means, and where it comes from."""
    path = Path(os.path.expanduser(target))
    if (path / "config.json").exists():
        return path, origin_of_model(path, base=model)
    run = None if (path / CONFIG).exists() else find_run(path)
    if run is None:
        if not path.exists() and len(path.parts) == 1:
            raise ModelError(
                f"{target}: no run, model or adapter of this name{suggest_run(target)}"
            )
        folder = adapter_dir(target)
        return folder, origin_of_adapter(folder, base=model)
    fused = fused_folder(run)
    if fused is None:
        raise ModelError(
            f"{target}: the run {run} has no fused model here; make one with `forty2 fuse`, or push the adapter "
            f"of a phase: {target}/PHASE"
        )
    return fused, origin_of_model(fused, run=run, base=model)


def _check_weights(folder: Path, origin: Origin) -> None:
    """Refuse weights that are missing or cut short: nobody could load what is published."""
    if origin.kind == "adapter":
        for file in folder.glob("*.safetensors"):
            tensor_names(file)
    else:
        check_weight_files(folder, read_config(folder))


def _code(folder: Path) -> tuple[str, ...]:
    """Return the pattern of code files if the model needs code of its own."""
    config = read_json(folder / "config.json")
    needs = isinstance(config, Mapping) and (config.get("model_file") or config.get("auto_map"))
    return CODE if needs else ()


def _refuse_links(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it: the other file was not meant to be sent."""
    inside = folder.resolve()
    for path in folder.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise ModelError(
                f"{path}: is a link that leads out of the folder, and is not followed; put the file "
                "itself in its place"
            )


def _portable(content: Path | bytes, file: Path, origin: Origin) -> Path | bytes:
    """Return a JSON file without the folders of this machine that some releases write into it."""
    value: Any = read_json(content) if isinstance(content, Path) else json.loads(content)
    if not isinstance(value, dict):
        return content
    changed: JsonObject = {
        key: inner for key, inner in value.items() if key not in _OWN_NAMES or not _is_local(inner)
    }
    if file.name == RECORD:
        for key in (RUN, STAGE):
            changed.pop(key, None)
    if _is_local(changed.get(_NAMES_BASE)):
        if origin.base.hub is None:
            raise ModelError(
                f"{file}: names a folder of this machine as its base; name the base's own name on the hub "
                "with `model=OWNER/BASE`"
            )
        changed[_NAMES_BASE] = origin.base.hub
    if changed == value:
        return content
    return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def _is_local(value: object) -> bool:
    """Return whether a name of a model is a folder of this machine."""
    return isinstance(value, str) and (
        os.path.isabs(value) or os.path.exists(os.path.expanduser(value))
    )


def _refuse_paths(files: tuple[PushedFile, ...], folder: Path, origin: Origin) -> None:
    """Refuse to send a file that names a folder of this machine."""
    paths = machine_paths(str(folder.resolve()), str(origin.run or ""))
    for file in files:
        for text in _texts(file):
            path = find_path(text, paths)
            if path is not None:
                raise ModelError(
                    f"{folder / file.name}: names a path of this machine ({path}), which would be "
                    "published; take it out of the file"
                )


def _texts(file: PushedFile) -> Iterator[str]:
    """Yield the texts of a file in which a path may be: not the tokens of a vocabulary, nor numbers."""
    vocabularies = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
    if file.name in vocabularies or file.name.endswith(".tiktoken"):
        return
    if isinstance(file.content, bytes):
        yield file.content.decode("utf-8", "replace")
        return
    with file.content.open("rb") as data:
        if file.name.endswith(".safetensors"):
            length = int.from_bytes(data.read(8), "little")
            yield data.read(min(length, 1 << 26)).decode("utf-8", "replace")
        else:
            yield data.read().decode("utf-8", "replace")


# --- sending --------------------------------------------------------------------------------------


def look_up(push: Push, *, private: bool) -> Repository:
    """Ask the hub what it has under the name; nothing is sent.

    Raises:
        HubError: nobody is logged in, the hub cannot be reached, or something else has the name.
    """
    name = push.repository
    api = connect(name)
    with hub_errors(name, _NOTHING):
        try:
            info = api.model_info(name)
        except RepositoryNotFoundError:
            return Repository(api, name, None, ())
    if private and not info.private:
        raise HubError(
            f"{name}: is on the hub already and is public; make it private in its settings there first, or "
            f"give another name; {_NOTHING}"
        )
    there = [sibling.rfilename for sibling in info.siblings or ()]
    holds_adapter, sends_adapter = CONFIG in there, push.origin.kind == "adapter"
    if holds_adapter != sends_adapter and (holds_adapter or "config.json" in there):
        what = "an adapter" if holds_adapter else "a model"
        raise HubError(f"{name}: holds {what} already; give another name; {_NOTHING}")
    sent = {file.name for file in push.files}
    removed = tuple(file for file in there if is_one_of(file, _WEIGHTS) and file not in sent)
    return Repository(api, name, info.sha, removed)


def send(push: Push, repository: Repository, *, private: bool) -> Pushed:
    """Send the files in one commit, which the hub takes whole or not at all.

    Args:
        private: only its owner sees it, if the hub has nothing under this name yet.

    Raises:
        HubError: a request failed. Nothing is published then, unless the message says that this is not
            known.
    """
    api, name = repository.api, push.repository
    additions = [
        CommitOperationAdd(
            file.name, str(file.content) if isinstance(file.content, Path) else file.content
        )
        for file in push.files
    ]
    deletions = [CommitOperationDelete(file) for file in repository.removed]
    if repository.sha is None:
        with hub_errors(name, _NOTHING):
            api.create_repo(name, private=private, exist_ok=True)
    with hub_errors(name, f"{_NOTHING}, and what was uploaded is not sent again"):
        api.preupload_lfs_files(name, additions, free_memory=False)
    with hub_errors(
        name, "the hub has taken all files or none; the same command sends only what it lacks"
    ):
        commit = api.create_commit(
            name,
            [*additions, *deletions],
            commit_message=f"Push {push.origin.kind} with forty2",
            parent_commit=repository.sha,
        )
    return Pushed(f"{api.endpoint}/{name}", commit.oid != repository.sha)
