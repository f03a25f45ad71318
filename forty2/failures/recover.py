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
    F/recover/none-elsewhere.json    what else it could do, where it has an adapter
    F/recover.json               the comparison, and the verdict

Everything goes on after a stop, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.errors import RunError
from forty2.failures.arms import NONE, ORIGINAL_SHARE, ArmRows, read_accepted, write_arms
from forty2.failures.arms_recipe import FailingModel, from_here, recipe_notes, recipe_of_arms
from forty2.failures.asking import Limits, Tokens
from forty2.failures.elsewhere import measure_as_it_was
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
from forty2.failures.recovery_record import TrainedArm, build_record, steps_of
from forty2.failures.training_data import TrainingFile, about_file, training_files
from forty2.files import CHECKSUMS, JsonObject, file_sha256, make_folder, read_json, write_json
from forty2.progress import Progress, silent
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Recipe

if TYPE_CHECKING:
    from forty2.failures.chat_models import ChatModel
    from forty2.model.chat_template import TemplateSettings

RECOVERED, SETTINGS = "recover.json", "settings.json"
SEEDS = (42, 43, 44)
_UNEQUAL = 0.1
"""Difference of the arms' numbers of steps, as a share, that is worth a warning."""
_SHORT = 0.5
"""Part of the wanted original tokens below which their lack is worth a warning."""


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
    limits: Limits = field(default_factory=Limits)
    """How fast the judge is asked, and what it may cost over all tests."""


def recover_failures(
    folder: str | Path,
    recipe: str | Path | Mapping[str, object],
    *,
    settings: RecoverSettings | None = None,
    overrides: Sequence[str] = (),
    judge: ChatModel | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> JsonObject:
    """Train the arms, test all on the untouched half, and say whether the targeted one helps.

    Args:
        folder: a failure loop with accepted rows.
        recipe: as `load_recipe` takes it, with one SFT phase. Its data is filled in with each arm's rows;
            its model may be left out.
        overrides: as `load_recipe` takes them.
        judge: the judge that `find` asked; None: what it would score is unscored.
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
    one = recipe_of_arms(recipe, overrides, model, from_here(folder / ACCEPTED))
    warnings = list(recipe_notes(recipe, one))
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
    template = _template(trained)
    test = _Test(folder, one, model, untouched, retest, judge, settings, template, progress)
    retested = test.all(trained)
    before = measure_as_it_was(
        work,
        one,
        model,
        template,
        trust_remote_code=settings.trust_remote_code,
        progress=progress,
    )
    record = build_record(
        folder, one, model, settings.seeds, rows, trained, retested, before, untouched, warnings
    )
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


def recorded_judge(folder: str | Path, api_key_env: str | None = None) -> ChatModel | None:
    """Return the judge that `find` asked; None: it asked none.

    Args:
        api_key_env: environment variable that holds its key.

    Raises:
        RunError: failures were not found yet.
    """
    from forty2.failures.chat_models import ChatModel

    judge = _found(Path(folder)).get("judge")
    if judge is None:
        return None
    return ChatModel(**judge, api_key_env=api_key_env, role="judge")


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


def _model_of(found: JsonObject) -> FailingModel:
    from forty2.model.base_model import find_model_and_adapter

    name, adapter = find_model_and_adapter(found["model"], found["adapter"])
    return FailingModel(name, None if adapter is None else str(adapter))


def _original_files(model: FailingModel, named: str | None) -> list[TrainingFile]:
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
    judge: ChatModel | None,
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
        "judge": None if judge is None else judge.about(),
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
) -> dict[Arm, dict[int, TrainedArm]]:
    """Train each arm with each seed, or read back what was trained before."""
    from forty2.runs.pipeline import run
    from forty2.runs.replicates import begin_with_base, prefixed

    (name,) = recipe.phases
    found: dict[Arm, dict[int, TrainedArm]] = {arm: {} for arm in ARMS}
    first = folder / "arms" / f"{ARMS[0]}-{settings.seeds[0]}"
    for seed in settings.seeds:
        for arm in ARMS:
            path = folder / "arms" / f"{arm}-{seed}"
            phase = dataclasses.replace(recipe.phases[name], data=from_here(files[arm]))
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
            found[arm][seed] = TrainedArm(path, done.stages[0], done.stages[-1])
    return found


def _step_notes(trained: Mapping[Arm, Mapping[int, TrainedArm]]) -> Iterator[str]:
    """Say so if one arm takes many more steps than the other."""
    steps = {arm: steps_of(next(iter(runs.values()))) for arm, runs in trained.items()}
    least, most = min(steps.values()), max(steps.values())
    if most - least > _UNEQUAL * most:
        counts = ", ".join(f"{arm} {count}" for arm, count in steps.items())
        yield (
            f"the arms take different numbers of steps for the same tokens ({counts}); give batch_tokens in "
            "place of batch_size, and they take the same"
        )


# --- the test again -------------------------------------------------------------------------------


def _labels(
    trained: Mapping[Arm, Mapping[int, TrainedArm]],
) -> Iterator[tuple[str, TrainedArm | None]]:
    """Yield what is tested, the model as it was first."""
    yield NONE, None
    for arm, runs in trained.items():
        yield from ((f"{arm}-{seed}", run) for seed, run in runs.items())


@dataclass(frozen=True)
class _Test:
    """The test of each model on the untouched half."""

    folder: Path
    recipe: Recipe
    model: FailingModel
    items: Sequence[Item]
    how: FindSettings
    judge: ChatModel | None
    settings: RecoverSettings
    template: TemplateSettings | None
    progress: Progress

    def all(self, trained: Mapping[Arm, Mapping[int, TrainedArm]]) -> dict[str, JsonObject]:
        """Test the model as it was and every trained one, within one budget."""
        found: dict[str, JsonObject] = {}
        limits = self.settings.limits
        for label, run in _labels(trained):
            found[label] = self.one(label, run, limits)
            if judged := found[label].get("judged"):
                asked = Tokens(judged["tokens"]["prompt"], judged["tokens"]["reply"])
                limits = limits.less(asked)
        return found

    def one(self, label: str, run: TrainedArm | None, limits: Limits) -> JsonObject:
        """Answer the untouched half with a model, or read back what it answered before."""
        from forty2.benchmark.partial_results import PartialResults
        from forty2.model.adapter import adapter_dir
        from forty2.model.loading import load
        from forty2.recipe.saved_adapter import read_adapter_file
        from forty2.runs.replicates import prefixed

        if run is not None:
            adapter: str | None = str(run.path)
            digest: str | None = file_sha256(adapter_dir(run.path) / CHECKSUMS)
        else:
            adapter = self.model.adapter
            digest = None if adapter is None else read_adapter_file(adapter).sha256()
        header = self._header(label, digest)
        out = self.folder / "recover" / f"{label}.json"
        if out.exists():
            before = dict(read_json(out))
            if all(before.get(key) == value for key, value in header.items()):
                return before
            raise RunError(f"{out}: is of another model or test; remove it, then go on")
        loaded = load(
            self.model.name,
            adapter,
            template=self.template,
            trust_remote_code=self.settings.trust_remote_code,
        )
        with PartialResults.open(out, header, resume=True) as partial:
            answered = answer_and_judge(
                loaded,
                self.items,
                partial,
                settings=dataclasses.replace(self.how, limits=limits),
                judge=self.judge,
                progress=prefixed(self.progress, f"untouched half, {label}"),
            )
            record = {**header, **answered.figures, "items": []}
            for item in self.items:
                reply = answered.replies[item.id]
                if not isinstance(reply, StoredReply):
                    reply = StoredReply(item.id, "", False, 0)
                verdict = answered.verdicts[item.id]
                record["items"].append({**reply._asdict(), **verdict._asdict()})
            partial.finish(record, write_json)
        return record

    def _header(self, label: str, adapter_sha256: str | None) -> JsonObject:
        """Describe the test: results are read back only if it is the same."""
        from forty2.model.loading import model_sha256, resolve_model

        judge = self.judge
        return {
            "tested": label,
            "model_sha256": model_sha256(resolve_model(self.recipe.model)),
            "adapter_sha256": adapter_sha256,
            "untouched_sha256": about_testset(self.folder)["sha256"]["untouched"],
            "max_tokens": self.how.max_tokens,
            "batch_size": self.how.batch_size,
            "scoring": dataclasses.asdict(self.how.scoring) if judge is not None else None,
            "judge": None if judge is None else judge.about(),
        }


def _template(trained: Mapping[Arm, Mapping[int, TrainedArm]]) -> TemplateSettings | None:
    """Return the chat template's settings of the arms, with their day, for the model as it was, too."""
    from forty2.model.adapter import recorded_template

    first = next(iter(trained[ARMS[0]].values()))
    return recorded_template(first.path)
