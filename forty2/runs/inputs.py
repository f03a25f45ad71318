"""Everything that a run reads before it trains: the model, and the data of all phases.

All data is read and tokenized first: a bad row at the end of the last phase's file must not cost a
night.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from forty2.benchmark.eval_prompt_files import load_eval_prompts
from forty2.benchmark.probing import check_replies, probe
from forty2.benchmark.replies import SEVERAL
from forty2.benchmark.tasks.eval_prompts import Asked
from forty2.benchmark.tasks.reply_style import measure_replies
from forty2.errors import RunError
from forty2.files import check_free_space, read_json, write_json
from forty2.model.initial_adapter import attach_initial_adapter, begin_phase, warn_of_other_base
from forty2.model.loading import LoadedModel, load
from forty2.progress import Progress
from forty2.recipe.saved_adapter import read_adapter_file
from forty2.recipe.tags import tag_settings
from forty2.run_paths import phase_label
from forty2.runs.all_phase_data import CheckedData, check_all_phase_data, read_all_phase_data
from forty2.runs.context import RunContext
from forty2.runs.disk import checkpoint_bytes, kept_bytes
from forty2.runs.drift import drift_meter
from forty2.runs.extending import STEPS_PER_EPOCH
from forty2.runs.held_out import held_out_rows
from forty2.runs.measuring import StageMeasurer
from forty2.runs.phase_data import PhaseData, style_prompts
from forty2.text.rows import first_exchanges
from forty2.training.evaluation import Drift, ReplyCheck
from forty2.training.objectives.phase import REPLY_METRICS, Phase

DATA_HASHES = "data.json"
LINT = "lint.json"
"""File with the lint's warnings about the rows of each phase, by the phase's name."""


@dataclass(frozen=True)
class PhaseInput:
    """A phase of the run with its rows."""

    name: str
    number: int
    """Its place in the recipe, from 1."""
    settings: Phase
    """Its keys in the recipe."""
    data: PhaseData
    check_replies: Callable[[Progress], ReplyCheck]
    """Function that has the model answer prompts, called at each evaluation."""
    measure_drift: Callable[[], Drift]
    """Function that measures the drift from the base on neutral text, called at each evaluation."""
    stop_token_ids: frozenset[int]
    """Ids that end turns in the run's rows, at which the model alone does not stop."""

    @property
    def label(self) -> str:
        """Name of its folder, and of the stage after it."""
        return phase_label(self.number, self.name)


@dataclass(frozen=True)
class RunInputs:
    """The base model, and all phases with their rows."""

    loaded: LoadedModel
    phases: tuple[PhaseInput, ...]


def read_inputs(
    run: RunContext, measurer: StageMeasurer | None, must_agree: dict[str, str]
) -> RunInputs:
    """Load the model; read, check and tokenize the data of all phases.

    Args:
        must_agree: takes hashes of the data, which must be the same in all processes.

    Raises:
        DataError: a row is bad, the lint finds errors, or no row fits.
        ModelError: the model cannot take the data or the adapter.
        RunError: the rows differ from those that the run began with.
    """
    recipe = run.recipe
    loaded = load(
        recipe.model,
        template=run.template,
        tags=tag_settings(recipe),
        trust_remote_code=run.options.trust_remote_code,
    )
    finder = measurer.contamination_finder() if measurer is not None else None
    data = read_all_phase_data(recipe, loaded, run.path / "data", finder)
    _check_unchanged(run.path, data, must_agree)
    if run.group.first:
        warnings = {name: list(map(asdict, part.lint_warnings)) for name, part in data.items()}
        write_json(run.path / LINT, warnings)
    # the other processes may not have the files of prompts that gates need
    checked = check_all_phase_data(recipe, data, loaded, gates=run.group.first)
    if run.group.first and run.whole_epochs:
        _record_epochs(run, checked)
    for kind, message in _messages(checked, data):
        run.progress("data", 0, 1, {kind: message})
    loaded.tokenizer.eos_token_ids = {*loaded.tokenizer.eos_token_ids, *checked.stop_tokens}
    measure_drift = _never  # the first process measures it for all
    if run.group.first:
        measure_drift = drift_meter(loaded, run.base_key, run.progress)
    phases = tuple(
        PhaseInput(
            name,
            number,
            phase,
            data[name],
            _reply_check(run, phase, loaded, data[name]),
            measure_drift,
            frozenset(checked.stop_tokens),
        )
        for number, (name, phase) in enumerate(recipe.phases.items(), 1)
    )
    if measurer is not None:
        measurer.write_contamination(data)
        decode = functools.partial(loaded.tokenizer.decode, skip_special_tokens=True)
        measurer.take_held_out(held_out_rows(recipe, data, decode))
    if measurer is not None or any(phase.train for phase in recipe.phases.values()):
        _try_phases(run)
    if recipe.init_from is not None and run.group.first:
        warn_of_other_base(loaded.path, read_adapter_file(recipe.init_from))
    return RunInputs(loaded, phases)


def _record_epochs(run: RunContext, checked: CheckedData) -> None:
    """Record the steps of an epoch of each phase, by which other lengths are compared with it."""
    steps = {
        name: part.course.order.batches_per_epoch / run.recipe.phases[name].accumulate
        for name, part in checked.phases.items()
    }
    record = read_json(run.path / "run.json")
    if record.get(STEPS_PER_EPOCH) != steps:
        write_json(run.path / "run.json", {**record, STEPS_PER_EPOCH: steps})


def _messages(checked: CheckedData, data: Mapping[str, PhaseData]) -> Iterator[tuple[str, str]]:
    """Yield what a user should know of the rows: each a warning or a notice."""
    for name, part in data.items():
        for warning in checked.phases[name].warnings:
            yield "warning", f"{name}: {warning}"
        if part.ignored:
            yield "notice", f"{name}: ignored: {part.ignored}"
        for source in part.replayed:
            yield "notice", f"{name}: {source}"
    for warning in checked.warnings:
        yield "warning", warning
    if (unused := checked.unused_tags) is not None:
        yield "notice", unused


def _try_phases(run: RunContext) -> None:
    """Refuse adapters that the model cannot have, and a disk that is too small, before anything is measured.

    The base is measured for minutes before an adapter is attached; a phase may begin hours later.
    """
    recipe = run.recipe
    trial = load(
        recipe.model,
        tags=tag_settings(recipe),
        trust_remote_code=run.options.trust_remote_code,
        lazy=True,
    )
    attach_initial_adapter(trial.model, recipe, seed=0, tags=trial.tags)
    kept = most = 0
    for number, name in enumerate(recipe.phases, 1):
        begin_phase(trial.model, recipe, name, seed=0, tags=trial.tags)
        if not (run.path / phase_label(number, name) / "phase.json").exists():
            kept += kept_bytes(trial.model, recipe.phases[name])
            most = max(most, kept + checkpoint_bytes(trial.model))
    check_free_space({run.path: most})


def _never() -> Drift:
    raise AssertionError("only the first process of a group measures the drift")


def _check_unchanged(path: Path, data: dict[str, PhaseData], must_agree: dict[str, str]) -> None:
    """Refuse to continue with other rows than the run began with."""
    hashes = {name: part.hashes() for name, part in data.items()}
    for name, parts in hashes.items():
        must_agree.update({f"the {part} data of {name}": str(parts[part]) for part in parts})
    file = path / DATA_HASHES
    before = read_json(file) if file.exists() else {}
    write_json(file, {**hashes, **before})
    for name, parts in before.items():
        for part, digest in parts.items():
            if digest != hashes[name][part]:
                raise RunError(
                    f"phases.{name}: its {part} rows are not those that {path} began "
                    "with; put the data back, or name another `run_dir`"
                )


def _reply_check(
    run: RunContext, phase: Phase, loaded: LoadedModel, data: PhaseData
) -> Callable[[Progress], ReplyCheck]:
    """Make the function that has the model answer eval prompts, or else a few rows' prompts.

    If the phase chooses by the style of replies, it also answers prompts of the validation rows.
    """
    check = _fault_check(run, phase, loaded, data)
    if data.valid is None or not phase.chosen_by & {*REPLY_METRICS}:
        return check
    prompts = style_prompts(data.valid)

    def check_with_style(progress: Progress) -> ReplyCheck:
        found = check(progress)
        return found._replace(metrics=found.metrics | measure_replies(loaded, prompts))

    return check_with_style


def _fault_check(
    run: RunContext, phase: Phase, loaded: LoadedModel, data: PhaseData
) -> Callable[[Progress], ReplyCheck]:
    """Make the function that answers eval prompts, or a few rows' prompts, and lists faults."""
    if phase.eval_prompts is not None and run.group.first:
        prompts = load_eval_prompts(phase.eval_prompts)
        Asked(loaded, prompts)  # a prompt that does not fit is refused before anything is trained

        def ask(progress: Progress) -> ReplyCheck:
            return ReplyCheck(*probe(loaded, prompts, progress=progress))

        return ask
    first = first_exchanges((data.valid or data.train).rows, SEVERAL)

    def check(progress: Progress) -> ReplyCheck:
        faults = check_replies(loaded, first, progress)
        return ReplyCheck({}, list(faults.replies), "", faults.broken_tags, faults.missing_tags)

    return check
