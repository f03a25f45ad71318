"""Does teaching what a model gets wrong help? Three arms, one re-test on the untouched half, one verdict.

    targeted   trained on rows made for the clusters that fail more often
    random     trained on as many tokens from the same teacher, drawn without a look at any verdict
    none       the model as it was

Both trained arms have the same recipe, seeds, original rows and number of tokens, so that what differs
is the choice of the new rows. `none` is not trained: whether teaching helps is asked of the model that
there is, and what training does by itself is in both of the others.

    F/recover/settings.json      what all of it was started with
    F/recover/ARM.jsonl          the training rows of an arm
    F/arms/ARM-SEED/             its run with a seed, as any other run
    F/recover/ARM-SEED.json      replies and verdicts on the untouched half; none.json: of the model as it was
    F/recover.json               the comparison, and the verdict

Everything goes on after a stop, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from forty2.errors import RecipeError, RunError
from forty2.failures.arms import NONE, ORIGINAL_SHARE, ArmRows, read_accepted, write_arms
from forty2.failures.examples import (
    ABOUT_ACCEPTED,
    ABOUT_GENERATED,
    ACCEPTED,
    ARMS,
    GENERATED,
    Arm,
)
from forty2.failures.find import FindSettings, answer_and_judge, verifiers_of
from forty2.failures.folder import FOUND, Item, StoredReply, about_testset, read_half
from forty2.failures.judging import Scoring
from forty2.failures.training_data import TrainingFile, about_file, training_files
from forty2.files import CHECKSUMS, JsonObject, file_sha256, make_folder, read_json, write_json
from forty2.progress import Progress, silent
from forty2.recipe.reading import load_recipe, recipe_text, to_yaml
from forty2.recipe.schema import Benchmark, Recipe
from forty2.training.objectives.sft import SftPhase

if TYPE_CHECKING:
    from forty2.benchmark.results import Stage
    from forty2.benchmark.verdict import CostChange
    from forty2.inference.chat_endpoint import ChatEndpoint
    from forty2.model.chat_template import TemplateSettings

RECOVERED, SETTINGS = "recover.json", "settings.json"
SEEDS = (42, 43, 44)
_UNEQUAL = 0.1
"""Difference of the arms' numbers of steps, as a share, that is worth a warning."""
_SHORT = 0.5
"""Part of the wanted original tokens below which their lack is worth a warning."""
_INHERITED = ("model", "init_from")
"""Keys that a recipe may leave out: they are of the model whose failures were found."""


@dataclass(frozen=True, kw_only=True)
class RecoverSettings:
    """How the arms are trained and tested again."""

    seeds: Sequence[int] = SEEDS
    """Two or more; each arm is trained once with each."""
    original: str | None = None
    """Data that the model was trained on before, as `read_rows` takes it; None: that of the run whose
    adapter the failures are of, if there is one."""
    run_untrusted_code: bool = False
    """Permission to run the programs that the models write, in the sandbox."""
    trust_remote_code: bool = False


class _Model(NamedTuple):
    """The model that the failures are of."""

    name: str
    adapter: str | None


class _Trained(NamedTuple):
    """One run of an arm."""

    path: Path
    base: Stage
    last: Stage


def recover_failures(
    folder: str | Path,
    recipe: str | Path | Mapping[str, object],
    *,
    settings: RecoverSettings | None = None,
    overrides: Sequence[str] = (),
    judge: ChatEndpoint | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> JsonObject:
    """Train the arms, test all on the untouched half, and say whether the targeted one helps.

    Args:
        folder: a failure loop with accepted rows.
        recipe: as `load_recipe` takes it, with one SFT phase. Its data is filled in with each arm's rows;
            its model may be left out.
        overrides: as `load_recipe` takes them.
        judge: endpoint of the judge that `find` asked; None: what it would score is unscored.
        resume: refuse to begin; without it, what has begun goes on, too.

    Returns:
        The content of `recover.json`.

    Raises:
        Forty2Error: with one line that says what to do. Finished runs stay.
    """
    from forty2.runs.replicates import check_draws, check_seeds, with_same_questions

    folder, settings = Path(folder), settings or RecoverSettings()
    check_seeds(settings.seeds)
    found = _found(folder)
    untouched = read_half(folder, "untouched")  # here alone is it looked at
    retest = _retest_settings(found, settings)
    verifiers_of(untouched, retest)  # a missing permission is said before anything is trained
    _check_chain(folder)
    read_accepted(folder)  # missing rows are found before a model is loaded
    model = _model_of(found)
    one = _recipe_of_arms(recipe, overrides, model, folder)
    warnings = list(_recipe_notes(recipe, one))
    original = _original_files(model, settings.original)
    work = folder / "recover"
    make_folder(work)
    one, _ = with_same_questions(one, work)
    check_draws(one, settings.seeds)
    begun = _begin(folder, one, original, settings, judge, resume=resume)
    if begun is not None:
        return begun
    rows = _rows(folder, untouched, original, one)
    warnings += _row_notes(rows, settings.original)
    trained = _train(folder, one, rows.files, settings, progress)
    warnings += _step_notes(trained)
    retested = {
        label: _retest(folder, label, run, one, model, untouched, retest, judge, trained, progress)
        for label, run in _labels(trained)
    }
    record = _record(folder, one, model, settings, rows, trained, retested, untouched, warnings)
    write_json(folder / RECOVERED, record)
    return record


# --- before anything is trained -------------------------------------------------------------------


def _found(folder: Path) -> JsonObject:
    """Return what is recorded of the failures."""
    path = folder / FOUND
    if not path.exists():
        raise RunError(f"{path}: no such file; make it with forty2 failures find {folder}")
    return dict(read_json(path))


def _retest_settings(found: JsonObject, settings: RecoverSettings) -> FindSettings:
    """Return the settings with which the failures were found, for the same test again."""
    scoring = found.get("scoring")
    return FindSettings(
        max_tokens=found["max_tokens"],
        batch_size=found["batch_size"],
        run_untrusted_code=settings.run_untrusted_code,
        scoring=Scoring(**scoring) if scoring is not None else Scoring(),
    )


def recorded_judge(folder: str | Path, api_key_env: str | None = None) -> ChatEndpoint | None:
    """Return the judge that `find` asked; None: it asked none.

    Args:
        api_key_env: environment variable that holds its key.

    Raises:
        RunError: failures were not found yet.
    """
    from forty2.inference.chat_endpoint import ChatEndpoint

    judge = _found(Path(folder)).get("judge")
    if judge is None:
        return None
    return ChatEndpoint(judge["endpoint"], judge["model"], api_key_env=api_key_env, tries=8)


def _check_chain(folder: Path) -> None:
    """Refuse rows that were made for another test set, accepted from others, or changed.

    Raises:
        RunError: says which.
    """
    score = f"score them again with forty2 failures score {folder}"
    made = f"make it again with forty2 failures generate {folder}"
    about = folder / ABOUT_ACCEPTED
    for key, name in (("accepted_sha256", ACCEPTED), ("generated_sha256", GENERATED)):
        if about.exists() and (folder / name).exists():
            known = read_json(about).get(key)
            if known is not None and known != file_sha256(folder / name):
                raise RunError(f"{folder / name}: is not the file that {about.name} names; {score}")
    about = folder / ABOUT_GENERATED
    if about.exists():
        known = read_json(about).get("testset_sha256")
        if known is not None and known != about_testset(folder)["sha256"]:
            raise RunError(f"{about}: was made for another test set; {made}")


def _model_of(found: JsonObject) -> _Model:
    from forty2.model.base_model import find_model_and_adapter

    name, adapter = find_model_and_adapter(found["model"], found["adapter"])
    return _Model(name, None if adapter is None else str(adapter))


def _recipe_of_arms(
    source: str | Path | Mapping[str, object],
    overrides: Sequence[str],
    model: _Model,
    folder: Path,
) -> Recipe:
    """Read the recipe, with what it leaves to the arms filled in.

    Raises:
        RecipeError: it has another phase than one of SFT, replays data, has no number of epochs, or
            trains another model than that whose failures were found.
    """
    tree = _tree(source)
    phases = tree.get("phases")
    if not isinstance(phases, Mapping) or len(phases) != 1:
        raise RecipeError(
            f"{_name(source)}: phases: should have one phase, of SFT, to train each arm"
        )
    (name,) = phases
    filled = [f"phases.{name}.data={json.dumps(_from_here(folder / ACCEPTED))}"]
    given = {"model": model.name, "init_from": model.adapter}
    filled += [
        f"{key}={json.dumps(value)}"
        for key, value in given.items()
        if value is not None and tree.get(key) is None
    ]
    recipe = load_recipe(source, [*filled, *overrides])
    (phase,) = recipe.phases.values()
    if not isinstance(phase, SftPhase):
        raise RecipeError(f"{_name(source)}: phases.{name}: should have objective: sft")
    if phase.epochs is None:
        raise RecipeError(
            f"{_name(source)}: phases.{name}: give epochs in place of steps, so that both arms learn "
            "from as many tokens"
        )
    if phase.replay:
        raise RecipeError(
            f"{_name(source)}: phases.{name}.replay: remove it; a tenth of the tokens of each arm is "
            "original data already (`original`)"
        )
    _check_model(_name(source), recipe, model)
    benchmark = dataclasses.replace(recipe.benchmark or Benchmark(), held_out=True)
    return dataclasses.replace(recipe, fuse=None, benchmark=benchmark)


def _from_here(path: Path) -> str:
    """Return a path relative to the working directory, if it is below it: the folder can then be moved."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith(os.pardir) else inside


def _tree(source: str | Path | Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(source, Mapping):
        return source
    tree = yaml.safe_load(recipe_text(str(source)))
    return tree if isinstance(tree, Mapping) else {}


def _name(source: str | Path | Mapping[str, object]) -> str:
    return "the recipe" if isinstance(source, Mapping) else str(source)


def _check_model(source: str, recipe: Recipe, model: _Model) -> None:
    """Refuse a recipe for another model than the one that fails."""
    from forty2.model.adapter import adapter_dir
    from forty2.model.loading import model_sha256, resolve_model

    ours, theirs = resolve_model(recipe.model), resolve_model(model.name)
    if ours.resolve() != theirs.resolve() and model_sha256(ours) != model_sha256(theirs):
        raise RecipeError(
            f"{source}: model: {recipe.model}, but the failures are those of {model.name}; leave model "
            "out"
        )
    begins, has = (
        None if adapter is None else adapter_dir(adapter).resolve()
        for adapter in (recipe.init_from, model.adapter)
    )
    if begins != has:
        raise RecipeError(
            f"{source}: init_from: {recipe.init_from}, but the failures are those of "
            f"{model.adapter or 'the model without an adapter'}; leave init_from out"
        )


def _recipe_notes(source: str | Path | Mapping[str, object], recipe: Recipe) -> Iterator[str]:
    """Say what of a recipe the arms do without."""
    tree = _tree(source)
    (name,) = recipe.phases
    phases = tree["phases"]
    assert isinstance(phases, Mapping)
    if isinstance(phases[name], Mapping) and phases[name].get("data") is not None:
        yield (
            f"phases.{name}.data: {phases[name]['data']}: not read; each arm is trained on its own rows"
        )
    if tree.get("fuse") is not None:
        yield "fuse: nothing is fused"


def _original_files(model: _Model, named: str | None) -> list[TrainingFile]:
    """Return what the model was trained on before; nothing if that is not known."""
    from forty2.model.adapter import trained_on

    if named is not None:
        return training_files(named)
    run = None if model.adapter is None else trained_on(model.adapter).run
    return [] if run is None else training_files(str(run))


def _begin(
    folder: Path,
    recipe: Recipe,
    original: Sequence[TrainingFile],
    settings: RecoverSettings,
    judge: ChatEndpoint | None,
    *,
    resume: bool,
) -> JsonObject | None:
    """Record what all of it is started with, or compare it with what is there.

    Returns:
        What came out, if it is all done.

    Raises:
        RunError: it was started in another way, or there is nothing to resume.
    """
    now: JsonObject = {
        "recipe": to_yaml(recipe, folder / "recover"),
        "testset": about_testset(folder)["sha256"],
        "accepted rows": file_sha256(folder / ACCEPTED),
        "original data": [about_file(file) for file in original],
        "judge": None if judge is None else {"endpoint": judge.url, "model": judge.model},
        "seeds": list(settings.seeds),
    }
    path = folder / "recover" / SETTINGS
    if not path.exists():
        if resume:
            raise RunError(f"{folder}: no recovery has begun here; leave `resume=True` out")
        write_json(path, now)
        return None
    before = read_json(path)
    for key, value in now.items():
        more = key == "seeds" and {*before[key]} <= {*settings.seeds}
        if before.get(key) != value and not more:
            raise RunError(
                f"{path}: was started with other {key}; put that back, or remove recover.json, "
                f"recover/ and arms/ in {folder} to start again"
            )
    done = folder / RECOVERED
    if before["seeds"] == now["seeds"]:
        return dict(read_json(done)) if done.exists() else None
    write_json(path, now)
    return None


# --- the arms -------------------------------------------------------------------------------------


def _rows(
    folder: Path, untouched: Sequence[Item], original: Sequence[TrainingFile], recipe: Recipe
) -> ArmRows:
    from forty2.model.chat_template import settings_of
    from forty2.model.loading import load
    from forty2.recipe.tags import tag_settings
    from forty2.text.encoder import Encoder

    loaded = load(recipe.model, template=settings_of(recipe), tags=tag_settings(recipe), lazy=True)
    (phase,) = recipe.phases.values()
    encoder = phase.encoder(Encoder(loaded.tokenizer))
    return write_arms(folder, untouched, original, encoder, recipe.max_length, recipe.seed)


def _row_notes(rows: ArmRows, named: str | None) -> Iterator[str]:
    """Say where the original data is missing, or is less than a tenth."""
    old = rows.record["original"]
    if old is None:
        yield (
            "no original data: the model has no training run of ours, and none was named (`original`), so "
            "the arms are trained on new rows alone"
        )
    elif old["tokens"] < _SHORT * old["wanted_tokens"]:
        yield (
            f"the original data gives {old['tokens']:,} tokens, not the {old['wanted_tokens']:,} that are "
            f"{ORIGINAL_SHARE:.0%} of each arm's"
        )


def _train(
    folder: Path,
    recipe: Recipe,
    files: Mapping[Arm, Path],
    settings: RecoverSettings,
    progress: Progress,
) -> dict[Arm, dict[int, _Trained]]:
    """Train each arm with each seed, or read back what was trained before."""
    from forty2.runs.pipeline import run
    from forty2.runs.replicates import begin_with_base, prefixed

    (name,) = recipe.phases
    found: dict[Arm, dict[int, _Trained]] = {arm: {} for arm in ARMS}
    first = folder / "arms" / f"{ARMS[0]}-{settings.seeds[0]}"
    for seed in settings.seeds:
        for arm in ARMS:
            path = folder / "arms" / f"{arm}-{seed}"
            phase = dataclasses.replace(recipe.phases[name], data=_from_here(files[arm]))
            one = dataclasses.replace(recipe, seed=seed, phases={name: phase})
            if path != first:
                begin_with_base(path, one, first)
            done = run(
                one,
                run_dir=path,
                resume=(path / "run.json").exists(),
                trust_remote_code=settings.trust_remote_code,
                progress=prefixed(progress, f"{arm}, seed {seed}"),
            )
            found[arm][seed] = _Trained(path, done.stages[0], done.stages[-1])
    return found


def _steps(run: _Trained) -> int:
    (phase,) = run.path.glob("phase1_*/phase.json")
    return int(read_json(phase)["steps"])


def _step_notes(trained: Mapping[Arm, Mapping[int, _Trained]]) -> Iterator[str]:
    """Say so if one arm takes many more steps than the other."""
    steps = {arm: _steps(next(iter(runs.values()))) for arm, runs in trained.items()}
    least, most = min(steps.values()), max(steps.values())
    if most - least > _UNEQUAL * most:
        counts = ", ".join(f"{arm} {count}" for arm, count in steps.items())
        yield (
            f"the arms take different numbers of steps for the same tokens ({counts}); give batch_tokens in "
            "place of batch_size, and they take the same"
        )


# --- the test again -------------------------------------------------------------------------------


def _labels(
    trained: Mapping[Arm, Mapping[int, _Trained]],
) -> Iterator[tuple[str, _Trained | None]]:
    """Yield what is tested, the model as it was first."""
    yield NONE, None
    for arm, runs in trained.items():
        yield from ((f"{arm}-{seed}", run) for seed, run in runs.items())


def _retest(
    folder: Path,
    label: str,
    run: _Trained | None,
    recipe: Recipe,
    model: _Model,
    items: Sequence[Item],
    settings: FindSettings,
    judge: ChatEndpoint | None,
    trained: Mapping[Arm, Mapping[int, _Trained]],
    progress: Progress,
) -> JsonObject:
    """Answer the untouched half with a model, or read back what it answered before."""
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.adapter import adapter_dir
    from forty2.model.loading import load, model_sha256, resolve_model
    from forty2.recipe.saved_adapter import read_adapter_file
    from forty2.runs.replicates import prefixed

    if run is not None:
        adapter: str | None = str(run.path)
        digest: str | None = file_sha256(adapter_dir(run.path) / CHECKSUMS)
    else:
        adapter = model.adapter
        digest = None if adapter is None else read_adapter_file(adapter).sha256()
    header = {
        "tested": label,
        "model_sha256": model_sha256(resolve_model(recipe.model)),
        "adapter_sha256": digest,
        "untouched_sha256": about_testset(folder)["sha256"]["untouched"],
        "max_tokens": settings.max_tokens,
        "batch_size": settings.batch_size,
        "scoring": dataclasses.asdict(settings.scoring) if judge is not None else None,
        "judge": None if judge is None else {"endpoint": judge.url, "model": judge.model},
    }
    out = folder / "recover" / f"{label}.json"
    if out.exists():
        before = dict(read_json(out))
        if all(before.get(key) == value for key, value in header.items()):
            return before
        raise RunError(f"{out}: is of another model or test; remove it, then go on")
    loaded = load(model.name, adapter, template=_template(trained))
    with PartialResults.open(out, header, resume=True) as partial:
        answered = answer_and_judge(
            loaded,
            items,
            partial,
            settings=settings,
            judge=judge,
            progress=prefixed(progress, f"untouched half, {label}"),
        )
        record = {**header, **answered.figures, "items": []}
        for item in items:
            reply = answered.replies[item.id]
            stored = reply if isinstance(reply, StoredReply) else StoredReply(item.id, "", False, 0)
            verdict = answered.verdicts[item.id]
            record["items"].append({**stored._asdict(), **verdict._asdict()})
        partial.finish(record, write_json)
    return record


def _template(trained: Mapping[Arm, Mapping[int, _Trained]]) -> TemplateSettings | None:
    """Return the chat template's settings of the arms, with their day, for the model as it was, too."""
    from forty2.model.adapter import recorded_template

    first = next(iter(trained[ARMS[0]].values()))
    return recorded_template(first.path)


# --- the record -----------------------------------------------------------------------------------


def _record(
    folder: Path,
    recipe: Recipe,
    model: _Model,
    settings: RecoverSettings,
    rows: ArmRows,
    trained: Mapping[Arm, Mapping[int, _Trained]],
    retested: Mapping[str, JsonObject],
    untouched: Sequence[Item],
    warnings: Sequence[str],
) -> JsonObject:
    from forty2.benchmark.stats import LEVEL, RESAMPLES, SEED
    from forty2.failures.recovery_verdict import judge_recovery

    by_arm: dict[str, list[JsonObject]] = {
        arm: [retested[f"{arm}-{seed}"] for seed in settings.seeds] for arm in ARMS
    }
    by_arm[NONE] = [retested[NONE]]
    costs = {arm: _costs(list(runs.values()), recipe) for arm, runs in trained.items()}
    passed = {arm: [_passed(one) for one in found] for arm, found in by_arm.items()}
    judged = judge_recovery(untouched, passed, costs["targeted"])
    run = read_json(next(iter(trained["targeted"].values())).path / "run.json")
    return {
        "verdict": judged.verdict,
        "sentence": judged.sentence,
        "warnings": list(warnings),
        "model": model.name,
        "adapter": model.adapter,
        "model_sha256": run["model_sha256"],
        "seeds": list(settings.seeds),
        "items": judged.items,
        "groups": judged.groups,
        "unscored": judged.unscored,
        "rates": judged.rates,
        "differences": [one._asdict() for one in judged.differences],
        "costs": {arm: [cost._asdict() for cost in found] for arm, found in costs.items()},
        "arms": {arm: _arm_figures(found) for arm, found in by_arm.items()},
        "rows": rows.record,
        "steps": {
            arm: {str(seed): _steps(run) for seed, run in runs.items()}
            for arm, runs in trained.items()
        },
        "runs": {
            arm: [str(run.path.relative_to(folder)) for run in runs.values()]
            for arm, runs in trained.items()
        },
        "statistics": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "testset_sha256": about_testset(folder)["sha256"],
        "accepted_sha256": file_sha256(folder / ACCEPTED),
        "recipe": to_yaml(recipe, folder / "recover"),
        "versions": run["versions"],
    }


def _passed(record: JsonObject) -> dict[str, bool]:
    """Return whether each scored item passed."""
    return {
        item["id"]: item["verdict"] == "pass"
        for item in record["items"]
        if item["verdict"] != "unscored"
    }


def _arm_figures(seeds: Sequence[JsonObject]) -> JsonObject:
    """Sum up an arm's verdicts over seeds, in all and by stratum."""
    strata: dict[str, JsonObject] = {}
    for name in seeds[0]["strata"]:
        strata[name] = _summed([one["strata"][name] for one in seeds])
    return {
        "all": _summed([one["all"] for one in seeds]),
        "strata": strata,
        "stop_rate": [one["replies"]["stop_rate"] for one in seeds],
    }


def _summed(parts: Sequence[JsonObject]) -> JsonObject:
    counts: JsonObject = {
        key: [part[key] for part in parts] for key in ("pass", "fail", "unscored")
    }
    scored = sum(counts["pass"]) + sum(counts["fail"])
    return {**counts, "pass_rate": sum(counts["pass"]) / scored if scored else None}


def _costs(runs: Sequence[_Trained], recipe: Recipe) -> tuple[CostChange, ...]:
    """Judge the loss in general of an arm over its seeds, by the recipe's margins.

    All that the recipe's benchmarks measure counts: what the arms are taught for is measured apart.
    """
    from forty2.runs.seed_statistics import costs_over_seeds

    assert recipe.benchmark is not None
    return costs_over_seeds(
        [run.base for run in runs], [run.last for run in runs], recipe.benchmark
    )


def format_recovery(record: JsonObject) -> str:
    """Format the arms and the verdict for the terminal."""
    lines = [f"{'arm':<10}{'pass rate':>10}{'rows':>8}{'tokens':>10}{'original':>10}{'steps':>8}"]
    for arm, figures in record["arms"].items():
        rate = figures["all"]["pass_rate"]
        shown = "—" if rate is None else f"{rate:.1%}"
        line = f"{arm:<10}{shown:>10}"
        if (own := record["rows"]["arms"].get(arm)) is not None:
            steps = next(iter(record["steps"][arm].values()))
            line += (
                f"{own['rows']:>8,}{own['tokens']:>10,}{own['original_share']:>10.1%}{steps:>8,}"
            )
        lines.append(line)
    for arm, own in record["rows"]["arms"].items():
        if own["left_out"]:
            what = ", ".join(f"{count:,} {why}" for why, count in own["left_out"].items())
            lines.append(f"{arm}: of {own['accepted']:,} accepted rows left out: {what}")
    if record["unscored"]:
        lines.append(f"{record['unscored']:,} items without a verdict in some arm are not compared")
    return "\n".join([*lines, "", f"Verdict: {record['sentence']}"])
