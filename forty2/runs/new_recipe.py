"""From a user's files to a folder with recipe, training rows, held-out rows and eval prompts."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forty2 import machine
from forty2.data.checks.lint import Linter
from forty2.data.columns import Kind, read_kind
from forty2.data.eval_proposals import propose_eval_prompts, system_of
from forty2.data.formats import to_row
from forty2.data.holding_out import FEWEST, hold_out, smallest_visible_change
from forty2.data.messages import plain_turn
from forty2.data.record_texts import texts_of
from forty2.data.records import Chat, Record, Text
from forty2.errors import DataError, ModelError, first_line
from forty2.files import staged_folder
from forty2.recipe.paths import RECIPE, STARTER, moved
from forty2.recipe.proposal import BY_INIT, Material, Situation, propose
from forty2.recipe.reading import load_recipe
from forty2.run_paths import find_run
from forty2.runs.archive.entry import is_running

EVAL_PROMPTS = "eval_prompts.json"
_OURS = {RECIPE, "data", EVAL_PROMPTS}
_CHARACTERS_PER_TOKEN = 3
"""Fewer than most tokenizers need for English, so that lengths are not underestimated."""
_NAMED = 5
"""Most rows with a fault that are named."""
_TOO_MUCH_MEMORY = 0.75
"""Share of the machine's memory from which blocks are computed again to save some."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that a user starts from."""

    chats: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    thumbs: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Our name of each column that has another, by theirs."""
    system: str | None = None
    """System prompt for rows that have none; None: they stay without."""

    def by_kind(self) -> list[tuple[Kind, tuple[str, ...]]]:
        """Return the kinds that there are files of, in the order of their phases."""
        kinds: list[tuple[Kind, tuple[str, ...]]] = [
            ("chats", self.chats),
            ("pairs", self.pairs),
            ("thumbs", self.thumbs),
        ]
        return [(kind, files) for kind, files in kinds if files]


@dataclass(frozen=True)
class Started:
    """The folder that was written, and facts about it."""

    folder: Path
    name: str
    """Name of the run to come."""
    materials: list[Material]
    eval_prompts: int
    notes: list[str]
    """Sentences about the data that deserve a look."""


def start(folder: Path, files: Files, *, model: str = STARTER, replace: bool = False) -> Started:
    """Write a folder from which a run can begin; all of it or nothing.

    Args:
        replace: write over a folder that an earlier call wrote.

    Raises:
        UnknownColumns: a table has columns of other names; `files.mapping` must say what they are.
        DataError: a file cannot be read, has rows of another kind, or too few; or the folder holds
            something already.
        ModelError: the model cannot take the rows.
    """
    _check_free(folder, replace)
    notes: list[str] = []
    records = _read(files, notes)
    notes += _about_systems(records)
    held = hold_out({str(kind): rows for kind, rows in records.items()})
    sides = {
        (kind, side): [r for r, out in zip(rows, held[kind], strict=True) if out == side]
        for kind, rows in records.items()
        for side in (False, True)
    }
    prompts = propose_eval_prompts(
        [r for (_, out), rows in sides.items() if out for r in rows],
        [r for (_, out), rows in sides.items() if not out for r in rows],
    )
    encoder, blocks = _model_at_hand(model, notes)
    with staged_folder(folder) as staged:
        materials = []
        for kind, rows in records.items():
            lengths = [_tokens(encoder, record) for record in rows]
            training, out = sides[kind, False], sides[kind, True]
            _write_rows(staged / "data" / f"{kind}.train.jsonl", training)
            _write_rows(staged / "data" / f"{kind}.held_out.jsonl", out)
            materials.append(
                Material(
                    kind=kind,
                    training=len(training),
                    held_out=len(out),
                    median=int(statistics.median(lengths)),
                    longest=max(lengths),
                )
            )
            notes += [
                *_about_few(kind, len(out), len(training) + len(out)),
                *_about_lint(kind, training, out, folder),
            ]
        if prompts is not None:
            text = json.dumps(prompts, indent=1, ensure_ascii=False) + "\n"
            (staged / EVAL_PROMPTS).write_text(text, "utf-8")
        situation = Situation(
            name=_name(folder),
            model=_model_from(model, folder),
            sources=[os.path.basename(file) for _, given in files.by_kind() for file in given],
            materials=materials,
            counted=encoder is not None,
            blocks=blocks,
            memory_bytes=machine.memory_bytes(),
            eval_prompts=len(prompts["prompts"]) if prompts is not None else 0,
        )
        _write_recipe(staged, situation, model if encoder is not None else None)
    return Started(folder, situation.name, materials, situation.eval_prompts, notes)


def _check_free(folder: Path, replace: bool) -> None:
    """Refuse a folder that holds something, or with `replace` something that we did not write."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: the working directory is in it; name a folder of its own")
    if os.path.lexists(folder) and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    there = {path.name for path in folder.iterdir()} - {".DS_Store"} if folder.exists() else set()
    if not there:
        return
    foreign = sorted(there - _OURS)
    recipe = folder / RECIPE
    ours = recipe.is_file() and recipe.read_text("utf-8", "replace").startswith(BY_INIT)
    if foreign or not ours:
        what = foreign[0] if foreign else sorted(there)[0]
        raise DataError(
            f"{folder}: is not empty and {what} in it was not written by forty2 init; name another "
            "folder"
        )
    if not replace:
        raise DataError(
            f"{folder}: was written by an earlier forty2 init; name another folder, or give `replace=True` "
            "to write it anew, without the changes that you made in it"
        )
    run = find_run(folder)
    if run is not None and is_running(run):
        raise DataError(
            f"{folder}: its run {run} is under way; wait until it ends, or stop it first"
        )


def _read(files: Files, notes: list[str]) -> dict[Kind, list[Record]]:
    """Read all files, leave out bad and repeated rows, and give rows without a system prompt the one given."""
    used: set[str] = set()
    records: dict[Kind, list[Record]] = {}
    for kind, given in files.by_kind():
        read = [read_kind(file, kind, files.mapping, used) for file in given]
        rows = [record for file in read for record in file.records]
        notes += _about_faults(kind, [fault for file in read for fault in file.faults])
        seen: dict[str, Record] = {}
        for record in rows:  # other columns, a number of each row, say, make no other row
            seen.setdefault(_line(dataclasses.replace(record, meta={})), record)
        if len(seen) < len(rows):
            count = len(rows) - len(seen)
            notes.append(
                f"{kind}: {count:,} of {len(rows):,} rows repeat another and were left out."
            )
        records[kind] = [_with_system(record, files.system) for record in seen.values()]
    unused = [column for column in files.mapping if column not in used]
    if unused:
        raise DataError(
            f"`mapping` {unused[0]}={files.mapping[unused[0]]}: no file has that column"
        )
    if not records:
        raise DataError("no files; give `chats`, `pairs` or `thumbs`")
    return records


def _with_system(record: Record, system: str | None) -> Record:
    if system is None or isinstance(record, Text) or system_of(record):
        return record
    turn = plain_turn("system", system)
    if isinstance(record, Chat):
        return dataclasses.replace(record, messages=(turn, *record.messages))
    return dataclasses.replace(record, prompt=(turn, *record.prompt))


def _about_systems(records: Mapping[Kind, Sequence[Record]]) -> Iterator[str]:
    """Say that rows have different system prompts, and what to do."""
    counts = {
        kind: Counter(system_of(record) for record in rows if not isinstance(record, Text))
        for kind, rows in records.items()
    }
    if len({system for count in counts.values() for system in count}) < 2:
        return
    parts = []
    for kind, count in counts.items():
        named = [
            f"{number:,} with {_quoted(system) if system else 'none'}"
            for system, number in count.most_common(3)
        ]
        more = [f"and {len(count) - 3:,} other ones"] if len(count) > 3 else []
        parts.append(f"{kind}: {', '.join([*named, *more])}")
    none = any("" in count for count in counts.values())
    advice = (
        'Give the rows without one the same: `system="TEXT"`.'
        if none
        else "Use one for all rows if they are about the same job."
    )
    yield (
        f"The rows have different system prompts ({'; '.join(parts)}). What is learned under one shows "
        f"less under another. {advice}"
    )


def _about_faults(kind: str, faults: Sequence[DataError]) -> Iterator[str]:
    """Say which rows were left out, and why."""
    if faults:
        named = "; ".join(map(first_line, faults[:_NAMED]))
        more = f"; and {len(faults) - _NAMED:,} more" if len(faults) > _NAMED else ""
        rows = "1 row was" if len(faults) == 1 else f"{len(faults):,} rows were"
        yield f"{kind}: {rows} left out: {named}{more}."


def _about_few(kind: str, held_out: int, rows: int) -> Iterator[str]:
    if held_out < FEWEST:
        points = round(100 * smallest_visible_change(held_out))
        yield (
            f"{kind}: only {held_out} of {rows} {'is' if held_out == 1 else 'are'} held out. That can show "
            f"changes of about {points} points of 100 and more; smaller ones look like chance. With 60 "
            "rows or more, 20 would be held out."
        )


def _about_lint(
    kind: str, training: Sequence[Record], held_out: Sequence[Record], folder: Path
) -> Iterator[str]:
    """Say in words what the lint found."""
    linter = Linter()
    for record in training:
        linter.add(record, "train")
    for record in held_out:
        linter.add(record, "valid")
    for found in linter.findings():
        rows = f"{found.count:,} {'row' if found.count == 1 else 'rows'}"
        where = f" (first: {found.origins[0]})" if found.origins else ""
        must = (
            f" The run refuses this: correct the rows, or set lint: false in {folder / RECIPE}."
            if found.level == "error"
            else ""
        )
        yield f"{kind}: {rows}: {found.message}{where}.{must}"
    if linter.ignored.rows:
        yield f"{kind}: not used: {linter.ignored}."


def _write_rows(file: Path, records: Sequence[Record]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{_line(record)}\n" for record in records), "utf-8")


def _line(record: Record) -> str:
    return json.dumps(to_row(record), ensure_ascii=False)


def _model_at_hand(model: str, notes: list[str]) -> tuple[object | None, int | None]:
    """Return the encoder and the number of blocks of the starter model, or of a folder; else None."""
    if model != STARTER and not os.path.isdir(os.path.expanduser(model)):
        return None, None
    from forty2.model.configuration import read_config
    from forty2.model.loading import load_tokenizer, resolve_model
    from forty2.text.encoder import Encoder

    try:
        folder = resolve_model(model)
    except ModelError as error:
        if model != STARTER:
            raise
        notes.append(f"lengths are estimated, since the starter model is not here: {error}")
        return None, None
    blocks = read_config(folder).get("num_hidden_layers")
    return Encoder(load_tokenizer(model)), blocks if isinstance(blocks, int) else None


def _tokens(encoder: object | None, record: Record) -> int:
    """Count the tokens of a record's longest sequence; without a tokenizer, estimate them."""
    from forty2.text.encoder import Encoder
    from forty2.text.rows import AnyPair

    if not isinstance(encoder, Encoder):
        return sum(map(len, texts_of(record))) // _CHARACTERS_PER_TOKEN + 1
    return max(
        len(row.prompt) + max(map(len, row.responses)) if isinstance(row, AnyPair) else len(row.ids)
        for row in encoder.encode(record)
    )


def _model_from(model: str, folder: Path) -> str:
    """Write a model folder as a path that leads from the recipe; a name stays."""
    if os.path.isabs(model) or not os.path.isdir(model) or model == STARTER:
        return model
    return moved(model, os.curdir, str(folder))


def _write_recipe(staged: Path, situation: Situation, model: str | None) -> None:
    """Write the recipe; if a run would take too much memory, one that saves some."""
    file = staged / RECIPE
    file.write_text(propose(situation), "utf-8")
    if model is None:
        return
    from forty2.runs.planning import plan

    # The notes hold the lint's findings; here its error would name the staging folder.
    phases = [f"phases.{one.objective}.lint=false" for one in situation.materials]
    recipe = load_recipe(file, [f"model={json.dumps(model)}", *phases])
    peak = plan(recipe, quick=True).peak_memory_gb
    memory = situation.memory_bytes / 1e9
    if peak > _TOO_MUCH_MEMORY * memory:
        reason = f"without it, about {peak:.0f} of {memory:.0f} GB of memory; slower"
        saving = dataclasses.replace(situation, checkpoint_reason=reason)
        file.write_text(propose(saving), "utf-8")


def _name(folder: Path) -> str:
    """Make a run's name of the folder's."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.absolute().name).strip("-._")[:64]
    return name or "mine"


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= 50 else line[:49] + '…'}”"
