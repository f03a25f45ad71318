"""The whole failure loop from one file: test set, failures, clusters, labels, new rows, arms, report.

A step whose files are there, made with the same settings from the same files, is not done again.
`F/loop.json` holds, for each step that is done, its settings and the sha256 of what it read and wrote.
The loop ends early, with a report, where there is nothing to teach.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from forty2.errors import RecipeError, RunError
from forty2.failures.chat_models import ChatModel
from forty2.failures.clustering import CLUSTERS
from forty2.failures.examples import (
    ABOUT_ACCEPTED,
    ABOUT_GENERATED,
    ACCEPTED,
    ARMS,
    GENERATED,
)
from forty2.failures.find import FindSettings, find_failures
from forty2.failures.folder import ABOUT, FOUND, REPLIES, TESTSET, VERDICTS
from forty2.failures.judging import Scoring
from forty2.failures.labels import LABELS, label_clusters
from forty2.failures.loop_checks import chat_model, check_loop, limits_of
from forty2.failures.loop_file import LoopFile, ReadLoop, read_loop
from forty2.failures.recover import (
    RECOVERED,
    RecoverSettings,
    recover_failures,
)
from forty2.failures.sources import BUILTIN
from forty2.failures.testset import TestsetSettings, make_testset
from forty2.files import JsonObject, file_sha256, make_folder, read_json, write_json
from forty2.progress import Progress, silent
from forty2.recipe.reading import recipe_file

LOOP = "loop.json"
HOME = Path("failures")
"""Where loops are written unless the user names another folder."""
STEPS = ("testset", "find", "cluster", "label", "generate", "score", "recover", "report")


class Step(NamedTuple):
    """One step of a loop."""

    name: str
    settings: JsonObject
    """All that it depends on, apart from files."""
    reads: Sequence[str]
    """Files of the folder that it reads."""
    writes: Sequence[str]
    """Files of the folder that it writes; the first is what the others belong to."""
    run: Callable[[], JsonObject]
    """Function that does it; returns its record."""


class Ended(NamedTuple):
    """A loop that has ended."""

    folder: Path
    steps: dict[str, str]
    """What became of each step: `done`, `kept` from before, or `left out`."""
    sentence: str
    """What came out."""
    report: Path | None
    """None: it ended before there were clusters."""


@dataclass(frozen=True)
class _Loop:
    """A loop under way."""

    read: ReadLoop
    folder: Path
    trust_remote_code: bool
    progress: Progress

    @property
    def file(self) -> LoopFile:
        return self.read.loop


def run_loop(
    source: str | Path,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    started: Callable[[str, str], None] = lambda step, what: None,
    progress: Progress = silent,
) -> Ended:
    """Do all steps of a loop that are not done.

    Args:
        source: its file, or the name of a packaged loop.
        overrides: as `read_loop` takes them.
        out: folder to write; None: that of the file, else failures/NAME.
        resume: refuse to begin; without it, what has begun goes on, too.
        started: called with each step's name, and `now` or `kept`.

    Raises:
        RecipeError: the file is wrong; the message lists every problem.
        RunError: the folder holds a loop that was made in another way.
        Forty2Error: a step's own, with one line that says what to do. Finished steps stay.
    """
    read = read_loop(source, overrides)
    folder = Path(out or read.loop.out or HOME / read.loop.name)
    check_loop(read, _entries(folder))
    _begin(folder, resume)
    loop = _Loop(read, folder, trust_remote_code, progress)
    steps: dict[str, str] = dict.fromkeys(STEPS, "left out")
    sentence = ""
    for step in _steps(loop):
        if step.name == "recover" and (sentence := _nothing_to_teach(folder)):
            break
        kept = _is_done(folder, step)
        started(step.name, "kept" if kept else "now")
        if not kept:
            step.run()
            _record_done(folder, step)
        steps[step.name] = "kept" if kept else "done"
    if not sentence:
        sentence = str(read_json(folder / RECOVERED)["sentence"])
    steps["report"] = "done"
    started("report", "now")
    return Ended(folder, steps, sentence, _report(folder))


def _begin(folder: Path, resume: bool) -> None:
    """Make the folder ours, or find that it is.

    Raises:
        RunError: it holds something else, or there is nothing to resume.
    """
    if (folder / LOOP).exists():
        return
    if resume:
        raise RunError(f"{folder}: no loop has begun here; leave `resume=True` out")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(f"{folder}: is not an empty folder; name another `out`")
    make_folder(folder)
    write_json(folder / LOOP, {"steps": {}})


def _report(folder: Path) -> Path:
    from forty2.report.failures import write_failures

    return write_failures(folder)


def _nothing_to_teach(folder: Path) -> str:
    """Return why no arm can be trained; "" if both have rows."""
    generated, accepted = read_json(folder / ABOUT_GENERATED), read_json(folder / ABOUT_ACCEPTED)
    empty = [arm for arm in ARMS if not accepted["arms"][arm]["accepted"]]
    if not empty:
        return ""
    if any(generated["arms"][arm]["kept"] for arm in ARMS):
        return f"Nothing was trained: no row of the arm {' and '.join(empty)} was accepted."
    return f"Nothing was trained. {generated['sentence']}"


# --- the steps ------------------------------------------------------------------------------------


def _steps(loop: _Loop) -> list[Step]:
    """List the steps in their order, but for the report."""
    file, folder = loop.file, loop.folder
    model = _model(loop)
    judge = None if file.judge is None else dataclasses.asdict(file.judge)
    teacher = dataclasses.asdict(file.teacher)
    by_teacher = file.label.by == "teacher"
    original = [] if file.recover.original is None else [file.recover.original]
    return [
        Step(
            "testset",
            {
                "seed": file.seed,
                **dataclasses.asdict(file.testset),
                "sources": _names(file.testset.sources),
                "disjoint_from": _names(file.testset.disjoint_from),
                "files": _hashes([*file.testset.sources, *file.testset.disjoint_from]),
            },
            (),
            (ABOUT, TESTSET),
            lambda: _testset(loop),
        ),
        Step(
            "find",
            {"model": model, "judge": judge, **dataclasses.asdict(file.find)},
            (ABOUT, TESTSET),
            (FOUND, REPLIES, VERDICTS),
            lambda: _find(loop),
        ),
        Step(
            "cluster",
            {"seed": file.seed, **dataclasses.asdict(file.cluster)},
            (TESTSET, VERDICTS),
            (CLUSTERS, "cluster_items.jsonl"),
            lambda: _cluster(loop),
        ),
        Step(
            "label",
            {"teacher": teacher if by_teacher else None},
            (TESTSET, CLUSTERS),
            (LABELS,),
            lambda: _label(loop),
        ),
        Step(
            "generate",
            {"seed": file.seed, "teacher": teacher, **dataclasses.asdict(file.generate)},
            (TESTSET, VERDICTS, CLUSTERS, LABELS),
            (ABOUT_GENERATED, GENERATED),
            lambda: _generate(loop),
        ),
        Step(
            "score",
            {"seed": file.seed, "judge": judge, **dataclasses.asdict(file.score)},
            (GENERATED,),
            (ABOUT_ACCEPTED, ACCEPTED),
            lambda: _score(loop),
        ),
        Step(
            "recover",
            {
                "recipe": _recipe(file),
                "seeds": file.recover.seeds,
                "original": _names(original),
                "files": _hashes(original),
                "judge": judge,
            },
            (TESTSET, FOUND, ACCEPTED),
            (RECOVERED,),
            lambda: _recover(loop, folder),
        ),
    ]


def _model(loop: _Loop) -> JsonObject:
    """Describe the model, by names that do not depend on the working directory, and by hash."""
    from forty2.model.base_model import find_model_and_adapter
    from forty2.model.loading import model_sha256, resolve_model
    from forty2.recipe.saved_adapter import read_adapter_file

    name, adapter = find_model_and_adapter(loop.file.model, loop.file.adapter)
    return {
        "name": loop.file.model if not os.path.exists(loop.file.model) else None,
        "sha256": model_sha256(resolve_model(name)),
        "adapter_sha256": None if adapter is None else read_adapter_file(str(adapter)).sha256(),
    }


def _names(sources: Sequence[str]) -> list[str]:
    """Return names that do not depend on the working directory: of what is there, that alone."""
    return [os.path.basename(one.rstrip("/")) if os.path.exists(one) else one for one in sources]


def _hashes(sources: Sequence[str]) -> dict[str, str]:
    """Return the sha256 of those sources that are files."""
    return {
        os.path.basename(source): file_sha256(Path(source))
        for source in sources
        if os.path.isfile(source)
    }


def _recipe(file: LoopFile) -> object:
    """Return the recipe as text or mapping."""
    recipe = file.recover.recipe
    if isinstance(recipe, Mapping):
        return recipe
    found = recipe_file(recipe)
    return found.read_text("utf-8") if found.is_file() else recipe


def _judge(file: LoopFile) -> ChatModel | None:
    return None if file.judge is None else chat_model(file.judge, "judge")


def _testset(loop: _Loop) -> JsonObject:
    part = loop.file.testset
    (loop.folder / ABOUT).unlink(missing_ok=True)  # made by us, and stopped before it was recorded
    settings = TestsetSettings(
        sources=part.sources,
        strata=part.strata,
        size=part.size,
        disjoint_from=part.disjoint_from,
        seed=loop.file.seed,
    )
    return make_testset(loop.folder, settings, loop.progress)


def _find(loop: _Loop) -> JsonObject:
    file = loop.file
    settings = FindSettings(
        max_tokens=file.find.max_tokens,
        batch_size=file.find.batch_size,
        run_untrusted_code=file.run_untrusted_code,
        scoring=Scoring(at_least=file.find.at_least, repeats=file.find.repeats),
        limits=limits_of(file),
    )
    return find_failures(
        loop.folder,
        _whole_path(file.model),
        None if file.adapter is None else _whole_path(file.adapter),
        judge=_judge(file),
        settings=settings,
        trust_remote_code=loop.trust_remote_code,
        progress=loop.progress,
    ).record


def _whole_path(name: str) -> str:
    """Return the absolute path of a folder: a loop may go on from another working directory."""
    return os.path.abspath(name) if os.path.exists(name) else name


def _cluster(loop: _Loop) -> JsonObject:
    from forty2.failures.clustering import cluster_items

    part = loop.file.cluster
    return cluster_items(
        loop.folder, k=part.k, seed=loop.file.seed, model=part.model, progress=loop.progress
    )


def _label(loop: _Loop) -> JsonObject:
    file = loop.file
    by_teacher = file.label.by == "teacher"
    teacher = chat_model(file.teacher, "teacher") if by_teacher else None
    return label_clusters(loop.folder, teacher, limits=limits_of(file), progress=loop.progress)


def _generate(loop: _Loop) -> JsonObject:
    from forty2.failures.generate import TeacherSettings, generate

    file, part = loop.file, loop.file.generate
    record = generate(
        loop.folder,
        BUILTIN if file.teacher.name == BUILTIN else chat_model(file.teacher, "teacher"),
        size=part.size,
        seed=file.seed,
        settings=TeacherSettings(temperature=part.temperature, max_tokens=part.max_tokens),
        limits=limits_of(file),
        progress=loop.progress,
    )
    return _complete(record, "generate")


def _score(loop: _Loop) -> JsonObject:
    from forty2.failures.score import score

    file, part = loop.file, loop.file.score
    record = score(
        loop.folder,
        _judge(file),
        at_least=part.at_least,
        repeats=part.repeats,
        run_untrusted_code=file.run_untrusted_code,
        seed=file.seed,
        limits=limits_of(file),
        progress=loop.progress,
    )
    return _complete(record, "score")


def _complete(record: JsonObject, step: str) -> JsonObject:
    """Stop where a budget has ended: what is made with less would not be what the file asks for."""
    if not record["complete"]:
        raise RunError(
            f"{step}: the budget in limits has ended; raise limits.tokens or limits.cost, then go on with "
            "`resume=True`, or lower what is asked for"
        )
    return record


def _recover(loop: _Loop, folder: Path) -> JsonObject:
    file = loop.file
    settings = RecoverSettings(
        seeds=file.recover.seeds,
        original=file.recover.original,
        run_untrusted_code=file.run_untrusted_code,
        trust_remote_code=loop.trust_remote_code,
        limits=limits_of(file),
    )
    try:
        return recover_failures(
            folder,
            file.recover.recipe,
            settings=settings,
            judge=_judge(file),
            progress=loop.progress,
        )
    except RecipeError as error:
        if isinstance(file.recover.recipe, Mapping):
            raise loop.read.in_recipe(error) from error
        raise


# --- what is done ---------------------------------------------------------------------------------


def _is_done(folder: Path, step: Step) -> bool:
    """Return whether a step is done, with these settings and from these files.

    Raises:
        RunError: it was done in another way, or what it wrote has changed since.
    """
    entry = _entries(folder).get(step.name)
    if entry is None:
        return False
    for key, value in step.settings.items():
        if entry["settings"].get(key) != value:
            raise RunError(
                f"{folder}: {step.name} was done with another {key}; put that back in the loop's file, or "
                "name another `out`"
            )
    missing = [name for name in step.writes if not (folder / name).exists()]
    if missing:
        return False
    for key, names in (("read", step.reads), ("wrote", step.writes)):
        for name in names:
            if entry[key].get(name) != file_sha256(folder / name):
                raise RunError(
                    f"{folder / name}: is not what {step.name} {key}; put it back, or name another `out`"
                )
    return True


def _record_done(folder: Path, step: Step) -> None:
    entries = _entries(folder)
    entries[step.name] = {
        "settings": step.settings,
        "read": {name: file_sha256(folder / name) for name in step.reads},
        "wrote": {name: file_sha256(folder / name) for name in step.writes},
    }
    write_json(folder / LOOP, {"steps": entries})


def _entries(folder: Path) -> JsonObject:
    path = folder / LOOP
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("steps"), dict):
        raise RunError(f"{path}: damaged; put it back, or name another `out`")
    return dict(found["steps"])
