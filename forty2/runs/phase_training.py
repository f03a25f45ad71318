"""Training one phase of a run: its reference, its loss, the loop, and the adapter that it leaves."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forty2 import machine
from forty2.errors import ModelError, RunError
from forty2.files import (
    check_free_space,
    find_damage,
    read_json,
    seal,
    staged_folder,
    write_json,
)
from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.model.adapter import kept_weights, restore_adapter, save_adapter
from forty2.model.initial_adapter import begin_phase
from forty2.model.loading import LoadedModel, parameter_count
from forty2.model.replaced import replaced_names
from forty2.model.surgery import frozen_depth, in_fp32
from forty2.model.tag_rows import tag_weights
from forty2.run_paths import phase_label
from forty2.runs.context import RunContext
from forty2.runs.coverage import coverage_of, coverage_warnings
from forty2.runs.disk import checkpoint_bytes, fused_bytes, kept_bytes
from forty2.runs.extending import BEGUN_WITH
from forty2.runs.fused import fused_path
from forty2.runs.gates import failed_buckets, in_words, longest
from forty2.runs.inputs import PhaseInput
from forty2.runs.phase_data import course_of
from forty2.runs.records import PhaseRecord
from forty2.runs.tags import check_other_rows, tables_replaced
from forty2.training.batched_loss import (
    BatchedLoss,
    KlPenalty,
    ResponseLoss,
    batched_loss,
    micro_batches,
)
from forty2.training.checkpoints import (
    Checkpoints,
    drop_checkpoints_after,
    find_checkpoints,
    keep_one_checkpoint,
    save_optimizer,
    step_of,
)
from forty2.training.evaluation import Evaluator
from forty2.training.frozen_states import (
    FrozenStates,
    has_room,
    states_key,
    states_to_store,
    store_states,
    worth_storing,
)
from forty2.training.loop import Trained, Training, train
from forty2.training.objectives.phase import REFERENCE_MARGIN, Phase
from forty2.training.reference import (
    TokenLogps,
    reference_key,
    reference_logps,
    token_margins,
)
from forty2.training.reference_states import reference_states_size, store_reference_states
from forty2.training.schedule import PhasePlan, longer, shared_steps


def finish_phase(run: RunContext, phase: PhaseInput, loaded: LoadedModel) -> Path:
    """Train a phase, or restore its adapter if it is trained; return its folder.

    Args:
        loaded: the base with the adapter of the phase before; holds this phase's afterwards.

    Raises:
        TrainingError, RunError, Interrupted: see `training.loop.train`.
    """
    folder = run.path / phase.label
    work = run.path / "work" / phase.label
    recipe = run.recipe
    begin_phase(loaded.model, recipe, phase.name, seed=recipe.seed, tags=loaded.tags)
    if (folder / "phase.json").exists():
        with run.group.synchronized():
            refuse_damage(folder, "the phase is trained anew")
            restore_adapter(loaded.model, folder)
    else:
        _train(run, phase, loaded, folder, work)
    _clear(work, _plan(run, phase))
    return folder


def tokens_trained(run: RunContext, phase: PhaseInput) -> float:
    """Estimate the tokens of the rows that a phase's steps use, each as often as it is used."""
    plan = _plan(run, phase)
    return plan.exposures(plan.steps) * plan.order.tokens


def _plan(
    run: RunContext,
    phase: PhaseInput,
    difficulty: Sequence[float] | None = None,
    settings: Phase | None = None,
) -> PhasePlan:
    return course_of(
        phase.name,
        run.recipe,
        phase.data,
        settings=settings,
        difficulty=difficulty,
        whole_epochs=run.whole_epochs,
    )


def _clear(work: Path, plan: PhasePlan) -> None:
    """Delete a stored phase's working files, but for a checkpoint from which it can be extended."""
    for file in filter(Path.is_file, list(work.glob("*"))):
        file.unlink()
    keep_one_checkpoint(work, shared_steps(plan, longer(plan)))
    if plan.phase.course_depends_on_length or not find_checkpoints(work):
        shutil.rmtree(work, ignore_errors=True)


def refuse_damage(folder: Path, then: str) -> None:
    """Refuse a sealed folder whose files have changed.

    Args:
        then: words for the message: what happens once the folder is deleted.
    """
    damage = find_damage(folder)
    if damage is not None:
        raise RunError(f"{damage}; delete {folder}, then go on with `resume=True`: {then}")


def _train(
    run: RunContext,
    phase: PhaseInput,
    loaded: LoadedModel,
    folder: Path,
    work: Path,
) -> None:
    _check_free_space(run, phase, loaded, work)
    loaded.model.eval()
    # No checkpoint has been restored yet: the reference is the policy as the phase begins.
    shortcuts = supported_shortcuts(loaded.model)
    maker = _LossMaker(run, phase, loaded, shortcuts, work)
    difficulty = maker.difficulty()
    plan = _plan(run, phase, difficulty)
    _drop_unfit_checkpoints(run, phase, plan, difficulty, loaded, work)
    times = longest(phase.settings)
    train_loss, valid_loss, hold_out_loss = maker.losses(longer(plan, times))
    if isinstance(train_loss, ResponseLoss) and train_loss.reference and not find_checkpoints(work):
        first_rows = list(train_loss.reference)[: phase.settings.batch_size]
        exact = in_fp32(loaded.model) and not loaded.quantized
        train_loss.check_start(
            loaded.model,
            next(micro_batches(train_loss, first_rows)),
            tolerance=2e-3 if exact else None,
        )
    training = Training(
        name=phase.name,
        plan=plan,
        model=loaded.model,
        loss=train_loss,
        evaluator=Evaluator(valid_loss, phase.check_replies, phase.measure_drift, hold_out_loss),
        checkpoints=Checkpoints(work, run.recipe.adapter),
        log=run.folder,
        progress=lambda stage, *rest: run.progress(
            phase.label + stage.removeprefix(phase.name), *rest
        ),
        group=run.group,
        carried=_carried(run, phase),
    )
    trained, plan = _train_to_gate(run, phase, training, times)
    if loaded.tags is not None and not tables_replaced(loaded.model):
        check_other_rows(loaded, trust_remote_code=run.options.trust_remote_code)
    with staged_folder(folder) as staged:
        save_adapter(
            loaded.model,
            run.recipe.adapter,
            staged,
            stop_token_ids=sorted(phase.stop_token_ids),
        )
        if phase.settings.carry_optimizer:
            save_optimizer(trained.optimizer, staged)
        record = _record(phase, trained, train_loss, plan)
        write_json(staged / "phase.json", record.to_json())
        seal(staged)


def _carried(run: RunContext, phase: PhaseInput) -> Path | None:
    """Return the folder of the phase before, if it hands its optimizer on; None: it does not."""
    if phase.number == 1:
        return None
    before = list(run.recipe.phases)[phase.number - 2]
    if not run.recipe.phases[before].carry_optimizer:
        return None
    return run.path / phase_label(phase.number - 1, before)


def _train_to_gate(
    run: RunContext, phase: PhaseInput, training: Training, times: int
) -> tuple[Trained, PhasePlan]:
    """Train a phase to its end; where a gate fails, for as many steps again if the recipe says so.

    Args:
        times: how many times its steps it may take at most.

    Returns:
        The outcome, and the plan of all steps.
    """
    plan, last = training.plan, find_checkpoints(training.checkpoints.work)
    begun = -(-step_of(last[0]) // plan.steps) if last else 1
    for time in range(min(max(1, begun), times), times + 1):
        so_long = longer(plan, time)
        trained = train(dataclasses.replace(training, plan=so_long))
        if not failed_buckets(phase.settings, trained.valid):
            break
        if run.group.first:
            step, found = trained.steps, in_words(phase.settings, trained.valid)
            again = f"; it is trained for {plan.steps} steps again" if time < times else ""
            message = f"{phase.name}, step {step}: {found}{again}"
            record = {"phase": phase.name, "step": step, "red_line": "gate", "warning": message}
            if record not in run.folder.metrics():  # a run that was killed since comes here again
                run.folder.log(record)
            run.progress(phase.label, step, so_long.steps, {"warning": message})
    return trained, so_long


def _drop_unfit_checkpoints(
    run: RunContext,
    phase: PhaseInput,
    plan: PhasePlan,
    difficulty: Sequence[float] | None,
    loaded: LoadedModel,
    work: Path,
) -> None:
    """Delete the checkpoints that an extended phase would not have had, had it begun so long."""
    marker = work / BEGUN_WITH
    if not marker.exists():
        return
    begun = dataclasses.replace(phase.settings, **read_json(marker))
    before = _plan(run, phase, difficulty, begun)
    if _computes_alike(run, loaded, before, plan):
        drop_checkpoints_after(work, shared_steps(before, plan))
        if find_checkpoints(work):
            marker.unlink()
            return
    shutil.rmtree(work)
    message = (
        f"phases.{phase.name} begins again at its first step: with its new length it reads other "
        "rows, or evaluations that have a say in its training come at other steps"
    )
    run.progress(phase.label, 0, plan.steps, {"warning": message})


def _computes_alike(
    run: RunContext, loaded: LoadedModel, before: PhasePlan, plan: PhasePlan
) -> bool:
    """Return whether two plans round alike: what is stored for rows is computed in batches of them."""
    same_rows = before.rows_used == plan.rows_used
    if plan.phase.needs_reference and not same_rows:
        return False
    if not (plan.phase.replay_gb and frozen_depth(loaded.model)):
        return True
    stores, stored = (
        [
            worth_storing(plan.phase, passes, run.group.size)
            for passes in (one.passes, one.evaluations)
        ]
        for one in (plan, before)
    )
    return stores == stored and (same_rows or not stores[0])


def _check_free_space(run: RunContext, phase: PhaseInput, loaded: LoadedModel, work: Path) -> None:
    """Refuse to start a phase that would fill the disk at its end: checkpoints, adapter, fused model."""
    left = kept_bytes(loaded.model, phase.settings)
    needs = {work: checkpoint_bytes(loaded.model) + left}
    fuse = run.recipe.fuse
    if fuse is not None and run.group.first:
        out = fused_path(run.path, fuse)
        needs |= fused_bytes(loaded.model, parameter_count(loaded.model), fuse, out)
    check_free_space(needs)


class _RowsUsed(NamedTuple):
    """The rows of a file that the batches use."""

    rows: Sequence[Any]
    which: Sequence[int]
    """Indices of the rows used."""
    passes: float
    """Average number of times that each of them is used."""
    label: str
    """For progress and file names."""


@dataclass(frozen=True)
class _LossMaker:
    """Makes a phase's losses, with stored states and reference where it needs them."""

    run: RunContext
    phase: PhaseInput
    loaded: LoadedModel
    shortcuts: Shortcuts
    work: Path

    @property
    def _orders_by_margin(self) -> bool:
        curriculum = self.phase.settings.curriculum
        return curriculum is not None and curriculum.by == REFERENCE_MARGIN

    def difficulty(self) -> list[float] | None:
        """Compute how hard the training rows are for the policy as the phase begins.

        Returns:
            The margins, negative; None where the recipe does not order rows by them.
        """
        if not self._orders_by_margin:
            return None
        margins = token_margins(self.phase.data.train.rows, self._reference_of_all())
        return [-margin for margin in margins]

    def losses(self, plan: PhasePlan) -> tuple[BatchedLoss, BatchedLoss | None, BatchedLoss | None]:
        """Make the losses over the training rows, the validation rows, and those held out by keys."""
        data, label = self.phase.data, self.phase.label
        # A short phase needs no reference for all of a long file.
        used = _RowsUsed(data.train.rows, plan.rows_used, plan.passes, label)
        train_loss = self._loss(used, self._reference_of_all() if self._orders_by_margin else None)
        measured = [
            self._loss(
                _RowsUsed(part.rows, range(len(part.rows)), plan.evaluations, f"{label} {name}")
            )
            if part is not None
            else None
            for name, part in (("valid", data.valid), ("hold-out", data.hold_out))
        ]
        return train_loss, measured[0], measured[1]

    def _loss(self, used: _RowsUsed, scored: TokenLogps | None = None) -> BatchedLoss:
        """Make the loss over some rows.

        Args:
            scored: the reference of these rows and others, if it is computed already.
        """
        frozen = self._frozen_states(used)
        reference = None
        if self.phase.settings.needs_reference:
            if scored is not None:
                reference = {index: scored[index] for index in used.which}
            else:
                reference = self._reference(used, frozen)
        kl = self._kl_penalty(used, frozen)
        return batched_loss(
            self.phase.settings,
            used.rows,
            reference,
            self.shortcuts,
            frozen,
            kl,
            self.phase.data.token_weights,
        )

    def _kl_penalty(self, used: _RowsUsed, frozen: FrozenStates | None) -> KlPenalty | None:
        """Compute and store what the term λ·KL reads of the reference, if the phase has one."""
        term = self.phase.settings.kl_term
        if term is None:
            return None
        if not self.shortcuts.split_head:
            raise ModelError(
                f"phases.{self.phase.name}.kl: this model's head cannot be run alone, which the term "
                "needs; remove kl"
            )
        size = reference_states_size(self.loaded.model, used.rows, used.which)
        check_free_space({self.work: size.bytes})
        states = store_reference_states(
            self.loaded.model,
            used.rows,
            used.which,
            self.work / f"{used.label.replace(' ', '-')}-reference.states",
            shortcuts=self.shortcuts,
            frozen=frozen,
            progress=lambda stage, *rest: self.run.progress(f"{used.label}: {stage}", *rest),
        )
        return KlPenalty(term, states)

    def _frozen_states(self, used: _RowsUsed) -> FrozenStates | None:
        """Compute and store the frozen blocks' states, if it saves time and there is room."""
        model = self.loaded.model
        size = states_to_store(
            model,
            self.phase.settings,
            used.rows,
            used.which,
            used.passes,
            shortcuts=self.shortcuts,
            processes=self.run.group.size,
        )
        if size is None or not has_room(size, self.work):
            return None
        file = self.work / f"{used.label.replace(' ', '-')}.states"
        if self.run.options.states is not None and not replaced_names(model):
            key = states_key(self.run.base_key, size, used.rows, used.which)
            file = self.run.options.states / f"{key[:32]}.states"
        return store_states(
            model,
            used.rows,
            used.which,
            size,
            file,
            progress=self.run.progress,
            stage=f"{used.label}: frozen blocks",
        )

    def _reference_of_all(self) -> TokenLogps:
        """Compute the reference of all training rows, to order them by; used ones train with it."""
        rows = self.phase.data.train.rows
        used = _RowsUsed(rows, range(len(rows)), 1.0, f"{self.phase.label} margins")
        return self._reference(used, None)

    def _reference(self, used: _RowsUsed, frozen: FrozenStates | None) -> TokenLogps:
        """Compute the policy's log-probabilities as the phase begins, or read stored ones."""
        model, progress = self.loaded.model, self.run.progress
        rows = [used.rows[i] for i in used.which]
        changed = kept_weights(model) | tag_weights(model)
        key = reference_key(self.run.base_key, changed, rows)
        return reference_logps(
            model,
            used.rows,
            used.which,
            machine.cache_dir() / "reference" / f"{key[:32]}.npz",
            shortcuts=self.shortcuts,
            frozen=frozen,
            progress=lambda stage, done, total, info: progress(
                f"{used.label}: {stage}", done, total, info
            ),
            group=self.run.group,
        )


def _record(
    phase: PhaseInput, trained: Trained, train_loss: BatchedLoss, plan: PhasePlan
) -> PhaseRecord:
    data = phase.data
    coverage = coverage_of(plan, data, trained.steps)
    return PhaseRecord(
        name=phase.name,
        objective=phase.settings.objective,
        rows=len(train_loss.lengths),
        valid_rows=len(data.valid.rows) if data.valid is not None else 0,
        steps=trained.steps,
        exposures=round(plan.exposures(trained.steps), 3),
        kept_step=trained.kept_step,
        spared=train_loss.shortcuts_taken,
        shortened=data.train.shortened,
        dropped=data.train.dropped,
        metrics=trained.metrics,
        valid=trained.valid,
        median_tokens=float(np.median(train_loss.lengths)),
        system=data.system,
        coverage=coverage,
        warnings=coverage_warnings(phase.settings, coverage),
        replayed=[source._asdict() for source in data.replayed],
    )
