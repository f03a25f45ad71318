"""Everything that a run reads before it trains: the model, and the data of all phases.

All data is read and tokenized first: a bad row at the end of the last phase's file must not cost a
night.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from forty2.benchmark.replies import SEVERAL
from forty2.benchmark.tasks.eval_prompts import (
    Asked,
    check_replies,
    load_eval_prompts,
    probe,
)
from forty2.benchmark.tasks.reply_style import measure_replies
from forty2.errors import ModelError, RunError
from forty2.files import read_json, write_json
from forty2.model.initial_adapter import attach_initial_adapter, warn_of_other_base
from forty2.model.kv_cache import can_pack
from forty2.model.loading import LoadedModel, load
from forty2.recipe.saved_adapter import read_adapter_file
from forty2.recipe.tags import tag_settings
from forty2.runs.context import RunContext
from forty2.runs.coverage import coverage_of, coverage_warnings
from forty2.runs.drift import drift_meter
from forty2.runs.gates import check_gate
from forty2.runs.held_out import held_out_rows
from forty2.runs.measuring import StageMeasurer
from forty2.runs.phase_data import (
    PhaseData,
    check_lengths,
    check_measured,
    course_of,
    new_stop_tokens,
    phase_data,
    stop_notice,
    style_prompts,
    weights_notice,
)
from forty2.runs.tags import unused_tags
from forty2.text.encoder import Encoder
from forty2.text.prepared import is_packed
from forty2.text.rows import first_prompts
from forty2.text.spelling import spelling_warning
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
    check_replies: Callable[[], ReplyCheck]
    """Function that has the model answer prompts, called at each evaluation."""
    measure_drift: Callable[[], Drift]
    """Function that measures the drift from the base on neutral text, called at each evaluation."""
    stop_token_ids: frozenset[int]
    """Ids that end turns in the run's rows, at which the model alone does not stop."""

    @property
    def label(self) -> str:
        """Name of its folder, and of the stage after it."""
        return f"phase{self.number}_{self.name}"


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
        trust_remote_code=run.trust_remote_code,
    )
    encoder = Encoder(loaded.tokenizer)
    finder = measurer.contamination_finder() if measurer is not None else None
    data = {
        name: phase_data(phase, recipe, encoder, run.path / "data", finder)
        for name, phase in recipe.phases.items()
    }
    if any(is_packed(part.train.rows) for part in data.values()) and not can_pack(loaded.model):
        raise ModelError(
            f"{recipe.model}: cannot keep packed rows apart; prepare the data anew, not with `pack`"
        )
    limit = loaded.row_limit
    if recipe.max_length > limit.tokens:
        for name in data:
            check_lengths(name, data[name], limit)
    _check_unchanged(run.path, data, must_agree)
    if run.group.first:
        warnings = {name: list(map(asdict, part.lint_warnings)) for name, part in data.items()}
        write_json(run.path / LINT, warnings)
    for name, phase in recipe.phases.items():
        check_measured(name, phase, data[name])
        if run.group.first:  # the others may not have the file of prompts
            check_gate(name, phase)
        course = course_of(name, recipe, data[name])  # refuses a curriculum that it cannot follow
        for message in coverage_warnings(phase, coverage_of(course, data[name])):
            run.progress("data", 0, 1, {"warning": f"{name}: {message}"})
        if data[name].ignored:
            run.progress("data", 0, 1, {"notice": f"{name}: ignored: {data[name].ignored}"})
        if spelled := spelling_warning(data[name].train.rows, loaded.tokenizer):
            run.progress("data", 0, 1, {"warning": f"{name}: {spelled}"})
        for source in data[name].replayed:
            run.progress("data", 0, 1, {"notice": f"{name}: {source}"})
    stops = new_stop_tokens(data.values(), loaded.tokenizer)
    if stops:
        run.progress("data", 0, 1, {"warning": stop_notice(stops, recipe.model)})
        loaded.tokenizer.eos_token_ids = {*loaded.tokenizer.eos_token_ids, *stops}
    for name, part in data.items():
        if notice := weights_notice(name, part, loaded.tokenizer):
            run.progress("data", 0, 1, {"warning": notice})
    if loaded.tags is not None and (unused := unused_tags(loaded.tags, data.values())):
        run.progress("data", 0, 1, {"warning" if unused.all else "notice": str(unused)})
    measure_drift = _never  # the first process measures it for all
    if run.group.first:
        measure_drift = drift_meter(loaded, run.base_key)
    phases = tuple(
        PhaseInput(
            name,
            number,
            phase,
            data[name],
            _reply_check(run, phase, loaded, data[name]),
            measure_drift,
            frozenset(stops),
        )
        for number, (name, phase) in enumerate(recipe.phases.items(), 1)
    )
    if measurer is not None:
        measurer.write_contamination(data)
        decode = functools.partial(loaded.tokenizer.decode, skip_special_tokens=True)
        measurer.take_held_out(held_out_rows(recipe, data, decode))
        # The base is measured for minutes before the adapter is attached: try the adapter now.
        trial = load(
            recipe.model,
            tags=tag_settings(recipe),
            trust_remote_code=run.trust_remote_code,
            lazy=True,
        )
        attach_initial_adapter(trial.model, recipe, seed=0, tags=trial.tags)
    if recipe.init_from is not None and run.group.first:
        warn_of_other_base(loaded.path, read_adapter_file(recipe.init_from))
    return RunInputs(loaded, phases)


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
) -> Callable[[], ReplyCheck]:
    """Make the function that has the model answer eval prompts, or else a few rows' prompts.

    If the phase chooses by the style of replies, it also answers prompts of the validation rows.
    """
    check = _fault_check(run, phase, loaded, data)
    if data.valid is None or not phase.chosen_by & {*REPLY_METRICS}:
        return check
    prompts = style_prompts(data.valid)

    def check_with_style() -> ReplyCheck:
        found = check()
        return found._replace(metrics=found.metrics | measure_replies(loaded, prompts))

    return check_with_style


def _fault_check(
    run: RunContext, phase: Phase, loaded: LoadedModel, data: PhaseData
) -> Callable[[], ReplyCheck]:
    """Make the function that answers eval prompts, or a few rows' prompts, and lists faults."""
    if phase.eval_prompts is not None and run.group.first:
        prompts = load_eval_prompts(phase.eval_prompts)
        Asked(loaded, prompts)  # a prompt that does not fit is refused before anything is trained

        def ask() -> ReplyCheck:
            return ReplyCheck(*probe(loaded, prompts))

        return ask
    first = first_prompts((data.valid or data.train).rows, SEVERAL)
    return lambda: ReplyCheck({}, check_replies(loaded, first))
