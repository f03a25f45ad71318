"""Phases in order: data, training, carrying the adapter forward, fusing, measuring, reporting."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import yaml
from mlx.utils import tree_flatten

from forty2 import machine
from forty2.benchmark.partial_results import PartialResults, partial_path
from forty2.benchmark.replies import SEVERAL
from forty2.benchmark.results import Stage
from forty2.benchmark.stages import load_measurement, measure, read_stage, summarize, table
from forty2.benchmark.tasks.divergence import Base, base_of
from forty2.benchmark.tasks.eval_prompts import (
    Asked,
    check_replies,
    load_eval_prompts,
    probe,
)
from forty2.data.checks.contamination import hits
from forty2.data.formats import read_records
from forty2.errors import (
    Interrupted,
    MemoryRanOut,
    ModelError,
    RecipeError,
    RunError,
    TrainingError,
    is_out_of_memory,
)
from forty2.export.fusing import Fused, fuse, quantised_path
from forty2.files import (
    check_free_space,
    find_damage,
    make_folder,
    read_json,
    remove_leftovers,
    seal,
    staged_folder,
    write_json,
    write_sealed,
)
from forty2.inference.logprobs import Shortcuts, can_pack, supported_shortcuts
from forty2.model.adapter import (
    adapter_weights,
    attach_adapter,
    restore_adapter,
    save_adapter,
)
from forty2.model.loading import LoadedModel, load, model_sha256, parameter_count, resolve
from forty2.model.surgery import in_fp32
from forty2.progress import Progress, silent
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.schema import AnyPhase, Recipe
from forty2.report import notices, write_report
from forty2.runs.folder import RunDir
from forty2.runs.phase_data import PhaseData, check_measured, phase_data
from forty2.text.encoder import Encoder, first_prompts
from forty2.text.prepared import is_packed
from forty2.text.row_kinds import CONVERSATIONS
from forty2.training.batched_loss import (
    BatchedLoss,
    ResponseLoss,
    batched_loss,
    micro_batches,
    reference_key,
    reference_logps,
)
from forty2.training.batches import lengths_of, weights_of
from forty2.training.checkpoints import checkpoints
from forty2.training.frozen_states import (
    WORTH,
    FrozenStates,
    frozen_states_size,
    has_room,
    store_states,
)
from forty2.training.loop import ReplyCheck, Trained, Training, due, order_of, total_steps
from forty2.training.processes import Group, joined

CONTAMINATION = "contamination.json"
DATA = "data.json"
TRAINED = ("phase*/*", "work/*/step*/*", "work/*/best*/*")
"""What of a run the other processes of a group need, to go on with it."""


@dataclass(slots=True)
class RunResult:
    """Where a run's results are."""

    path: Path
    adapter: Path
    fused: Path | None
    stages: list[dict[str, Any]]
    """One measurement per stage: base, each phase, fused. Empty if the recipe measures nothing."""
    table: str
    verdict: str
    report: Path
    warnings: list[str]
    """Of its data, its training and its fusing."""


def run(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    only: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> RunResult:
    """Run a recipe: every phase, then fuse if it says so, measuring after each.

    Args:
        recipe: from `load_recipe`.
        run_dir: default `adapters/NAME`.
        resume: go on with a run that stopped.
        only: stop after the phase of this name; earlier ones that are not done run first.
        progress: is told what goes on.

    Of several processes started by `mlx.launch` all train. The first alone writes the run, measures,
    fuses and returns; the others exit when the last phase is trained.

    Raises:
        Forty2Error: with one line that says what to do. Finished phases stay.
    """
    group = joined()
    path = Path(run_dir) if run_dir is not None else Path("adapters") / recipe.name
    if only is not None and only not in recipe.phases:
        raise RunError(f"no phase {only!r}; the recipe has {', '.join(recipe.phases)}")
    with contextlib.ExitStack() as opened:
        with group.together() as alike:
            provenance = _provenance(recipe, resolve(recipe.model))
            versions = provenance["versions"]
            alike.update(
                {f"the version of {name}": versions[name] for name in ("forty2", "mlx", "mlx-lm")},
                **{"the recipe": to_yaml(recipe), "the model": provenance["model_sha256"]},
            )
            if not group.first:
                resume, progress = False, silent
            if resume and not (path / "run.json").exists():
                warnings.warn(f"{path}: nothing to go on with, so a run begins here", stacklevel=2)
            rundir = opened.enter_context(
                RunDir.open(
                    path if group.first else opened.enter_context(_aside()),
                    to_yaml(recipe),
                    provenance,
                    resume=resume,
                    reread=lambda stored: _reread(stored, recipe),
                )
            )
        group.mirror(rundir.path, TRAINED)
        fingerprint = provenance["model_sha256"]
        under_way = _Run(recipe, rundir, fingerprint, trust_remote_code, progress, group)
        try:
            return under_way.go(only)
        except (Interrupted, TrainingError):
            if not group.first:
                sys.exit()  # all come here, and the first says why
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MemoryRanOut(
                f"{under_way.at}: memory ran out ({said}); finished phases and the last checkpoint "
                f"are saved in {path}: make room, then go on with --resume, or in another "
                "--run-dir lower max_length or adapter.layers, or set grad_checkpoint: true"
            ) from error


def train_phase(
    recipe: Recipe, phase: str, *, run_dir: str | Path | None = None, progress: Progress = silent
) -> RunResult:
    """Run a recipe as far as one phase: those before it first, as far as they are not done yet."""
    path = Path(run_dir) if run_dir is not None else Path("adapters") / recipe.name
    resume = (path / "run.json").exists()
    return run(recipe, run_dir=path, resume=resume, only=phase, progress=progress)


@contextlib.contextmanager
def _aside() -> Iterator[Path]:
    """A folder for what a process that is not the first of its group writes, removed at the end."""
    folder = machine.cache_dir() / "group" / f".run.{os.getpid()}"
    make_folder(folder.parent)
    remove_leftovers(folder.parent)
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Run:
    """One run under way."""

    def __init__(
        self,
        recipe: Recipe,
        rundir: RunDir,
        fingerprint: str,
        trust_remote_code: bool,
        progress: Progress,
        group: Group,
    ) -> None:
        self.recipe, self.rundir, self.group = recipe, rundir, group
        self.fingerprint = fingerprint
        """Of the base model."""
        self.at = "loading the model"
        """What is under way, for a message."""

        def told(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
            self.at = f"{stage}, after {done} of {total}"
            progress(stage, done, total, info)

        self.progress: Progress = told
        self.trust_remote_code = trust_remote_code
        self.measurement = (
            load_measurement(recipe.benchmark, recipe.seed)
            if recipe.benchmark is not None and group.first
            else None
        )
        self.base: Base | None = None
        self.allowed: Shortcuts | None = None
        """What the model allows, once that was tried."""

    def _read(
        self, alike: dict[str, str]
    ) -> tuple[LoadedModel, dict[str, PhaseData], dict[str, Callable[[], ReplyCheck]]]:
        """The model, and by phase its data and what has the model reply; hashes go to `alike`."""
        recipe = self.recipe
        loaded = load(recipe.model, trust_remote_code=self.trust_remote_code)
        encoder = Encoder(loaded.tokenizer)
        # All data is read and tokenised before anything is trained: a bad row at the end of the
        # last phase's file must not cost a night.
        folder = self.rundir.path / "data"
        data = {
            name: phase_data(phase, recipe, encoder, folder)
            for name, phase in recipe.phases.items()
        }
        if any(is_packed(part.train.rows) for part in data.values()) and not can_pack(loaded.model):
            raise ModelError(
                f"{recipe.model}: cannot keep packed rows apart; prepare the data without --pack"
            )
        self._check_data(data, alike)
        for name, phase in recipe.phases.items():
            check_measured(name, phase, data[name])
        asked = {
            name: self._ask(phase, loaded, data[name]) for name, phase in recipe.phases.items()
        }
        self._check_contamination(data)
        if self.measurement is not None:  # the base is measured for minutes before it is adapted
            bare = load(recipe.model, trust_remote_code=self.trust_remote_code, lazy=True)
            attach_adapter(bare.model, self.recipe.adapter, seed=0)
        return loaded, data, asked

    def go(self, only: str | None) -> RunResult:
        recipe = self.recipe
        with self.group.together() as alike:
            if only is None:
                self._check_fused_path()
            loaded, data, asked = self._read(alike)
        stages = [self._measure("base", loaded, None)]
        attach_adapter(loaded.model, self.recipe.adapter, seed=recipe.seed)
        folder = self.rundir.path
        for number, (name, phase) in enumerate(recipe.phases.items(), 1):
            self.rundir.check_there()
            folder = self.rundir.path / f"phase{number}_{name}"
            if (folder / "phase.json").exists():
                with self.group.together():
                    _refuse_damage(folder, "the phase is trained anew")
                    restore_adapter(loaded.model, folder)
                shutil.rmtree(self.rundir.path / "work" / folder.name, ignore_errors=True)
            else:
                self._train(name, number, phase, loaded, data[name], asked[name], folder)
            stages.append(self._measure(folder.name, loaded, str(folder)))
            if name == only:
                break
        if not self.group.first:
            sys.exit()
        fused = None
        if recipe.fuse is not None and only is None:
            del loaded, asked  # what asks the model holds it
            mx.clear_cache()
            fused, quantised = self._fuse(folder)
            for path in filter(None, (fused, quantised)):
                stage = "fused" if path == fused else f"fused {recipe.fuse.quantize}-bit"
                stages.append(self._measure(stage, None, None, path))
        return self._finish(folder, fused, [stage for stage in stages if stage is not None])

    def _train(
        self,
        name: str,
        number: int,
        phase: AnyPhase,
        loaded: LoadedModel,
        data: PhaseData,
        ask: Callable[[], ReplyCheck],
        folder: Path,
    ) -> None:
        label = folder.name
        seed = self.recipe.seed + 1000 * number
        work = self.rundir.path / "work" / label
        self._check_room(loaded, work)
        rows = data.train.rows
        order = order_of(phase, lengths_of(rows), weights_of(rows), seed)
        steps = total_steps(phase, order)
        # A short phase over a long file needs no reference for all of it.
        seen = order.rows_seen(steps * phase.accumulate)
        passes = max(1.0, steps * phase.accumulate / order.batches_per_epoch)  # of those seen
        objective = self._objective(phase, loaded, rows, seen, passes, label, work)
        valid = None
        if data.valid is not None:
            held_out = data.valid.rows
            evaluations = 1 + sum(
                due(phase.eval_every_steps, n, steps) for n in range(1, steps + 1)
            )
            valid = self._objective(
                phase, loaded, held_out, range(len(held_out)), evaluations, f"{label} valid", work
            )
        if isinstance(objective, ResponseLoss) and objective.reference and not checkpoints(work):
            exact = in_fp32(loaded.model) and not loaded.quantised
            objective.check_start(
                loaded.model,
                next(micro_batches(objective, list(objective.reference)[: phase.batch_size])),
                tolerance=2e-3 if exact else None,
            )
        self.at = label
        trained = Training(
            model=loaded.model,
            objective=objective,
            phase=phase,
            name=name,
            seed=seed,
            adapter=self.recipe.adapter,
            work=work,
            valid=valid,
            ask=lambda: ReplyCheck(*self.group.from_first(ask)),
            log=self.rundir.log,
            rewind=lambda step: self.rundir.forget_metrics_after(name, step),
            progress=lambda _, done, total, info: self.progress(label, done, total, info),
            group=self.group,
        ).run()
        with staged_folder(folder) as aside:
            save_adapter(loaded.model, self.recipe.adapter, aside)
            exposures = trained.steps * phase.accumulate / order.epoch_length
            record = _phase_record(name, phase, data, trained, objective, exposures)
            write_json(aside / "phase.json", record)
            seal(aside)
        shutil.rmtree(work, ignore_errors=True)  # the phase is safely stored

    def _ask(
        self, phase: AnyPhase, loaded: LoadedModel, data: PhaseData
    ) -> Callable[[], ReplyCheck]:
        """Has the model reply to the phase's eval prompts, or else to a few of its rows' prompts."""
        if phase.eval_prompts is not None and self.group.first:
            prompts = load_eval_prompts(phase.eval_prompts)
            Asked(loaded, prompts)  # what does not fit is refused before anything is trained

            def ask() -> ReplyCheck:
                return ReplyCheck(*probe(loaded, prompts))

            return ask
        some = first_prompts((data.valid or data.train).rows, SEVERAL)
        return lambda: ReplyCheck({}, check_replies(loaded, some))

    def _check_room(self, loaded: LoadedModel, work: Path) -> None:
        """Refuse to start a phase that would fill the disk at its end: checkpoints, fused model."""
        # Adapter, and an optimizer with two moments; two checkpoints are kept while one is written.
        needs = {work: 3 * 3 * sum(v.nbytes for v in adapter_weights(loaded.model).values())}
        fuse = self.recipe.fuse
        if fuse is not None and self.group.first:
            width = (
                max((v.dtype.size for v in _floats(loaded)), default=4) + (fuse.quantize or 0) / 8
            )
            needs[self._fused_path()] = int(parameter_count(loaded.model) * width)
        check_free_space(needs)

    def _fused_path(self) -> Path:
        assert self.recipe.fuse is not None
        return Path(self.recipe.fuse.out or Path("fused_models") / self.rundir.path.resolve().name)

    def _check_fused_path(self) -> None:
        """Refuse to replace another run's fused model."""
        if self.recipe.fuse is None or not self.group.first:
            return
        out = self._fused_path()
        record = read_json(out / "fused.json") if (out / "fused.json").exists() else {}
        adapter = record.get("adapter")
        if adapter and not Path(adapter).resolve().is_relative_to(self.rundir.path.resolve()):
            raise RunError(
                f"{out}: holds the model fused with {adapter}; name another folder with "
                "--set fuse.out=FOLDER, or delete it"
            )

    def _objective(
        self,
        phase: AnyPhase,
        loaded: LoadedModel,
        rows: Sequence[Any],
        which: Sequence[int],
        passes: float,
        label: str,
        work: Path,
    ) -> BatchedLoss:
        """The phase's objective over these rows.

        Args:
            which: indices of the rows that come in a batch.
            passes: how often each of them does.
        """
        model = loaded.model
        model.eval()
        self.allowed = allowed = self.allowed or supported_shortcuts(model)
        reads_prompts = phase.row_kind is not CONVERSATIONS
        possible = allowed.split_head and (allowed.shared_prompts or not reads_prompts)
        # The reference's pass counts even where it is stored: a resumed run must do the same.
        times = passes + phase.needs_reference
        replay = self._replay(phase, model, rows, which, times, possible, label, work)
        reference = None
        if phase.needs_reference:
            # The policy as the phase begins: no checkpoint has been restored yet.
            key = reference_key(self.fingerprint, adapter_weights(model), [rows[i] for i in which])
            reference = reference_logps(
                model,
                rows,
                which,
                machine.cache_dir() / "reference" / f"{key[:32]}.npz",
                allowed=allowed,
                replay=replay,
                progress=self.progress,
                stage=f"{label}: reference",
                group=self.group,
            )
        return batched_loss(phase, rows, reference, allowed, replay)

    def _replay(
        self,
        phase: AnyPhase,
        model: Any,
        rows: Sequence[Any],
        which: Sequence[int],
        passes: float,
        possible: bool,
        label: str,
        work: Path,
    ) -> FrozenStates | None:
        """The frozen blocks' states, where keeping them pays and there is room for them."""
        # Each process of a group makes all states itself: they may be larger than what a network
        # carries in that time, and in every epoch it sees other rows. It sees its share of them.
        if not possible or passes / self.group.size < WORTH or not phase.replay_gb:
            return None
        size = frozen_states_size(model, rows, which)
        if not size.depth or not has_room(size, phase.replay_gb, work):
            return None
        return store_states(
            model,
            rows,
            which,
            size,
            work / f"{label.replace(' ', '-')}.states",
            progress=self.progress,
            stage=f"{label}: frozen blocks",
        )

    def _check_data(self, data: Mapping[str, PhaseData], alike: dict[str, str]) -> None:
        """Refuse to go on with other rows than the run began with; their hashes go to `alike`."""
        now = {name: part.hashes() for name, part in data.items()}
        for name, parts in now.items():
            alike.update({f"the {part} data of {name}": str(parts[part]) for part in parts})
        file = self.rundir.path / DATA
        if not file.exists():
            write_json(file, now)
            return
        began = read_json(file)
        for name, parts in now.items():
            for part, digest in parts.items():
                if digest != began[name][part]:
                    raise RunError(
                        f"phases.{name}: its {part} rows are not those that {self.rundir.path} began "
                        "with; put the data back, or name another --run-dir"
                    )

    def _check_contamination(self, data: Mapping[str, PhaseData]) -> None:
        """Write down which training rows hold which of the benchmark's questions."""
        if self.measurement is None:
            return
        questions = self.measurement.truthfulqa
        items = [(q.question, *q.mc1.choices, *q.mc2.choices) for q in questions.items]
        found = [
            {"phase": name, "row": hit.row, "item": hit.item, "how": hit.how}
            for name, part in data.items()
            if part.source is not None
            for hit in hits(read_records(part.source), items)
        ]
        unread = [name for name, part in data.items() if part.source is None]
        record = {"hits": found, "unread_phases": unread, "questions": questions.name}
        write_json(self.rundir.path / CONTAMINATION, record)

    def _measure(
        self, stage: str, loaded: LoadedModel | None, adapter: str | None, path: Path | None = None
    ) -> Stage | None:
        """Measure a model, or the one in a folder; what was measured before is read back."""
        if self.measurement is None:
            return None
        if self.base is None:  # the first stage is the base, bare
            assert loaded is not None and adapter is None
            self.base = base_of(loaded, self.fingerprint, self.measurement.n)
        file = self.rundir.path / "benchmarks" / f"{stage.replace(' ', '-')}.json"
        if file.exists():
            partial_path(file).unlink(missing_ok=True)
            return read_stage(file)
        loaded = loaded or load(str(path))
        loaded.model.eval()
        with PartialResults.open(file, self.measurement.settings(stage), resume=True) as partial:
            measured = measure(
                loaded,
                self.measurement,
                self.base,
                stage=stage,
                adapter=adapter,
                partial=partial,
                progress=self.progress,
            )
            partial.finish(measured.to_json(), write_sealed)
        return measured

    def _fuse(self, adapter: Path) -> tuple[Path, Path | None]:
        """The fused model and, if asked for, its quantised copy."""
        assert self.recipe.fuse is not None
        out = self._fused_path()
        bits = self.recipe.fuse.quantize
        quantised = quantised_path(out, bits) if bits is not None else None
        written = [path for path in (out, quantised) if path is not None]
        record = self.rundir.path / "fused.json"
        if record.exists() and all((path / "fused.json").exists() for path in written):
            for path in written:
                _refuse_damage(path, "the model is fused anew")
        else:
            fused = fuse(
                self.recipe.model,
                adapter,
                out,
                quantize=bits,
                trust_remote_code=self.trust_remote_code,
                progress=self.progress,
            )
            for path in written:
                seal(path)
            self.rundir.check_there()
            write_json(record, fused_record(fused))
        return out, quantised

    def _finish(self, adapter: Path, fused: Path | None, stages: list[Stage]) -> RunResult:
        self.rundir.check_there()
        verdict = ""
        if self.recipe.benchmark is not None:
            hits_found = read_json(self.rundir.path / CONTAMINATION)["hits"]
            summary = summarize(stages, self.recipe.benchmark.margin, hits_found)
            verdict = summary.verdict
            write_json(self.rundir.path / "summary.json", summary.to_json())
        report = write_report(self.rundir.path)
        shown = table(stages) if stages else ""
        return RunResult(
            self.rundir.path,
            adapter,
            fused,
            [stage.to_json() for stage in stages],
            shown,
            verdict,
            report,
            notices(self.rundir.path),
        )


def fused_record(fused: Fused) -> dict[str, Any]:
    """A fuse's outcome as JSON."""
    record: dict[str, Any] = {**fused._asdict(), "path": str(fused.path)}
    if fused.quantised is not None:
        record["quantised"] = {**fused.quantised._asdict(), "path": str(fused.quantised.path)}
    return record


def _reread(path: Path, recipe: Recipe) -> str:
    """The recipe that a run was started from, as this release would write it.

    What it does not spell out was null, or is newer: null where `recipe` has that, else the default.
    """
    try:
        load_recipe(path)
        nulls = _nulls(dataclasses.asdict(recipe), yaml.safe_load(path.read_text("utf-8")))
        return to_yaml(load_recipe(path, list(nulls)))
    except RecipeError as error:
        raise RunError(
            f"{path.parent}: its recipe is none for this release ({str(error).splitlines()[0]}); "
            "go on with the release that started it, or name another --run-dir"
        ) from error


def _nulls(now: Mapping[str, Any], stored: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Overrides that set to null what is null now and not spelled out in a stored recipe."""
    for key, value in now.items():
        if value is None and key not in stored:
            yield f"{at}{key}=null"
        elif isinstance(value, Mapping) and isinstance(stored.get(key), Mapping):
            yield from _nulls(value, stored[key], f"{at}{key}.")


def _refuse_damage(folder: Path, then: str) -> None:
    reason = find_damage(folder)
    if reason is not None:
        raise RunError(f"{reason}; delete {folder}, then go on with --resume: {then}")


def _floats(loaded: LoadedModel) -> list[mx.array]:
    return [
        v for _, v in tree_flatten(loaded.model.parameters()) if mx.issubdtype(v.dtype, mx.floating)
    ]


def _provenance(recipe: Recipe, model: Path) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "model": recipe.model,
        "model_path": str(model),
        "model_sha256": model_sha256(model),
        "versions": machine.facts(),
    }


def _phase_record(
    name: str,
    phase: AnyPhase,
    data: PhaseData,
    trained: Trained,
    objective: BatchedLoss,
    exposures: float,
) -> dict[str, Any]:
    return {
        "name": name,
        "objective": phase.objective,
        "rows": len(objective.lengths),
        "valid_rows": len(data.valid.rows) if data.valid is not None else 0,
        "steps": trained.steps,
        "exposures": round(exposures, 3),
        "kept_step": trained.kept_step,
        "spared": objective.spared,
        "shortened": data.train.shortened,
        "dropped": data.train.dropped,
        "metrics": trained.metrics,
        "valid": trained.valid,
        "median_tokens": float(np.median(objective.lengths)),
    }
