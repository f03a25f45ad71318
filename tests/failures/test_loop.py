"""The loop from one file: each step once, and never in another way than before."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.cli import forty2, refused
from support.failure_folder import topic_text
from support.processes import run_python
from support.recovery import accept
from support.small_run import make_inputs

from forty2.errors import Forty2Error, RecipeError, RunError
from forty2.failures import loop as loop_module
from forty2.failures.loop import STEPS, run_loop
from forty2.failures.loop_file import read_loop
from forty2.files import JsonObject, file_sha256
from forty2.progress import silent

LOOP = """\
version: 1
name: mine
model: {model}
testset: {{from: [rows.jsonl], strata: {{trains: 40, cooking: 40, code: 40}}}}
find: {{max_tokens: 4}}
cluster: {{k: 3}}
generate: {{size: 6}}
recover:
  seeds: [1, 2]
  recipe:
    version: 1
    name: arms
    adapter: {{rank: 2, layers: 2}}
    phases: {{sft: {{objective: sft, epochs: 1, lr: 1.0e-3}}}}
"""


RECOVER = loop_module._recover


class Made(NamedTuple):
    """A loop's file, and the steps that ran."""

    path: Path
    ran: list[str]

    @property
    def folder(self) -> Path:
        return self.path.with_name("F")

    def run(self, **settings: Any) -> loop_module.Ended:
        self.ran.clear()
        return run_loop(self.path, out=self.folder, **settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_inputs(tmp_path_factory.mktemp("loop") / "inputs") / "model")


def write_loop(folder: Path, model: str) -> Path:
    """Write a loop's file, and rows of which the model fails one topic."""
    rng, rows = random.Random(1), []
    for topic in ("trains", "cooking", "code"):
        pattern = "what no random model says" if topic == "trains" else ""
        for n in range(60):
            verifier = {"kind": "regex", "pattern": pattern}
            text = f"{topic_text(topic, rng)} Case {n * n} of {topic}."
            rows.append({"prompt": text, "stratum": topic, "verifier": verifier})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "loop.yaml"
    path.write_text(LOOP.format(model=model), "utf-8")
    return path


@pytest.fixture(scope="module")
def done(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a loop whose steps are all done. Tests must not change it."""
    path = write_loop(tmp_path_factory.mktemp("done"), model)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        made = replaced(Path(path.name), patch)
        ended = made.run()
    assert made.ran == list(STEPS[:-1]) and ended.sentence == "Helps."
    assert {*ended.steps.values()} == {"done"} and ended.report == made.folder / "failures.html"
    return path.with_name("F")


@pytest.fixture
def fresh(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A loop that has not begun."""
    monkeypatch.chdir(tmp_path)
    return replaced(Path(write_loop(tmp_path, model).name), monkeypatch)


@pytest.fixture
def made(fresh: Made, done: Path) -> Made:
    """A loop that is done, to change."""
    shutil.copytree(done, fresh.folder)
    return fresh


def replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Put a teacher and a training in place that only write what they would."""
    ran: list[str] = []

    def generated(loop: Any) -> JsonObject:
        accept(loop.folder, 3, 3)
        for name in ("generated", "accepted"):
            (loop.folder / f"{name}.jsonl").write_text("{}")
        counts = {"kept": 3, "accepted": 3}
        about = {
            "arms": {"targeted": counts, "random": counts},
            "sentence": "Made.",
            "clusters_sha256": "",
        }
        for name in ("generated", "accepted"):
            (loop.folder / f"{name}.json").write_text(json.dumps(about))
        return about

    def recovered(loop: Any, folder: Path) -> JsonObject:
        part = {"pass": [1], "fail": [1], "unscored": [0], "pass_rate": 0.5}
        record: JsonObject = {
            "sentence": "Helps.",
            "warnings": ["no original data"],
            "testset_sha256": json.loads((folder / "testset.json").read_text())["sha256"],
            "seeds": [1, 2],
            "items": 9,
            "groups": 9,
            "unscored": 0,
            "differences": [],
            "arms": {"none": {"all": part, "strata": {}}},
            "rows": {"arms": {}},
            "costs": {},
        }
        (folder / "recover.json").write_text(json.dumps(record))
        return record

    monkeypatch.setattr(loop_module, "_generate", generated)
    monkeypatch.setattr(loop_module, "_score", lambda loop: {})
    monkeypatch.setattr(loop_module, "_recover", recovered)
    for step in STEPS[:-1]:
        monkeypatch.setattr(loop_module, f"_{step}", counted(step, ran))
    return Made(path, ran)


def counted(step: str, ran: list[str]) -> Callable[..., JsonObject]:
    do = getattr(loop_module, f"_{step}")

    def run(*args: Any) -> JsonObject:
        ran.append(step)
        return dict(do(*args))

    return run


def test_steps_that_are_done_are_not_done_again(made: Made) -> None:
    before = {path.name: file_sha256(path) for path in made.folder.iterdir() if path.is_file()}
    again = made.run(resume=True)
    assert made.ran == [] and again.steps["recover"] == "kept"
    assert before == {p.name: file_sha256(p) for p in made.folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("step", ["testset", "find", "label", "recover"])
def test_a_step_killed_before_it_was_recorded_is_done_again_with_the_same_bytes(
    made: Made, step: str
) -> None:
    written = {p.name: p.read_bytes() for p in made.folder.glob("*.json*")}
    entries = json.loads(written["loop.json"])["steps"]
    later = STEPS[STEPS.index(step) : -1]
    for name in later:
        for file in () if name == step else entries[name]["wrote"]:
            (made.folder / file).unlink()
        del entries[name]
    (made.folder / "loop.json").write_text(json.dumps({"steps": entries}))
    made.run(resume=True)
    assert made.ran == list(later)
    for name, content in written.items():
        assert (made.folder / name).read_bytes() == content, name


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trains: 40", "trains: 30", "testset was done with another strata"),
        ("max_tokens: 4", "max_tokens: 5", "find was done with another max_tokens"),
        ("k: 3", "k: 4", "cluster was done with another k"),
        ("size: 6", "size: 7", "generate was done with another size"),
        ("lr: 1.0e-3", "lr: 1.0e-2", "recover was done with another recipe"),
        ("name: mine", "name: mine\nseed: 7", "testset was done with another seed"),
    ],
)
def test_a_changed_setting_is_refused_by_its_step(
    made: Made, old: str, new: str, said: str
) -> None:
    made.path.write_text(made.path.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(RunError, match=said):
        made.run()


def test_a_changed_source_or_result_is_refused(made: Made) -> None:
    rows = made.path.with_name("rows.jsonl")
    content = rows.read_bytes()
    rows.write_bytes(content + b"\n")
    with pytest.raises(RunError, match="testset was done with another files"):
        made.run()
    rows.write_bytes(content)
    (made.folder / "accepted.jsonl").write_text("[]")
    with pytest.raises(RunError, match=r"accepted\.jsonl: is not what score wrote"):
        made.run()


def test_a_lost_result_is_made_again(made: Made) -> None:
    (made.folder / "recover.json").unlink()
    made.run()
    assert made.ran == ["recover"]


def test_nothing_to_teach_ends_with_a_report(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(loop: Any) -> JsonObject:
        about = {
            "arms": {arm: {"kept": 0, "accepted": 0} for arm in ("targeted", "random")},
            "sentence": "There is nothing to teach.",
            "clusters_sha256": "",
        }
        for name in ("generated", "accepted"):
            (loop.folder / f"{name}.json").write_text(json.dumps(about))
            (loop.folder / f"{name}.jsonl").write_text("")
        return about

    monkeypatch.setattr(loop_module, "_generate", nothing)
    entries = json.loads((made.folder / "loop.json").read_text("utf-8"))["steps"]
    kept = {name: entries[name] for name in STEPS[:4]}
    (made.folder / "loop.json").write_text(json.dumps({"steps": kept}))
    ended = made.run()
    assert "recover" not in made.ran and ended.steps["recover"] == "left out"
    assert ended.sentence == "Nothing was trained. There is nothing to teach."
    assert ended.report is not None and ended.report.exists()


def test_other_folders_are_left_alone(fresh: Made) -> None:
    with pytest.raises(RunError, match="no loop has begun"):
        fresh.run(resume=True)
    fresh.folder.mkdir()
    (fresh.folder / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not an empty folder"):
        fresh.run()


def test_a_budget_that_ended_stops_the_loop() -> None:
    with pytest.raises(
        RunError, match=r"score: the budget in limits has ended; raise limits\.tokens"
    ):
        loop_module._complete({"complete": False}, "score")


def test_a_wrong_recipe_is_said_with_its_line(fresh: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    text = fresh.path.read_text("utf-8").replace("lr: 1.0e-3", "lr: 1.0e-3, lrr: 2")
    fresh.path.write_text(text, "utf-8")

    def fails(*_: Any, **__: Any) -> Mapping[str, object]:
        raise RecipeError("the mapping: phases.sft.lrr: unknown key")

    monkeypatch.setattr(loop_module, "recover_failures", fails)
    read = read_loop(fresh.path)
    with pytest.raises(RecipeError, match=r"loop\.yaml:14: recover\.recipe\.phases\.sft\.lrr"):
        RECOVER(loop_module._Loop(read, fresh.folder, False, silent), fresh.folder)


# --- at the command line --------------------------------------------------------------------------


def test_the_command_says_what_was_kept(made: Made) -> None:
    command: list[str | Path] = ["failures", "run", made.path, "--out", made.folder]
    first = forty2(*command, "--json")
    assert first.exit_code == 0, first.output
    record = json.loads(first.output.splitlines()[-1])
    assert record["schema"] == "forty2.failures.run/1" and record["steps"]["find"] == "kept"
    assert record["recovered"]["sentence"] == "Helps." and "no original data" in first.output
    assert "no such loop" in refused("failures", "run", "nothing")


@pytest.mark.slow
def test_a_loop_killed_anywhere_ends_with_the_same_bytes_and_asks_nothing_twice() -> None:
    """A sample; `make chaos` tries more events."""
    lines = run_python("chaos_loop.py", "--points", "4").splitlines()
    figures = dict(line.rsplit(maxsplit=1) for line in lines)
    assert int(figures["ended with the same bytes"]) == int(figures["faults tried"]) == 4
    assert int(figures["requests of the loop"]) > 50


@pytest.mark.slow
def test_the_packaged_loop_runs_on_the_starter_model(tmp_path: Path) -> None:
    """At a size at which it ends in minutes."""
    small = ["testset.size=300", "find.max_tokens=24", "generate.size=12", "cluster.k=5"]
    small += ["recover.seeds=[1, 2]", "recover.recipe.phases.sft.epochs=1"]
    small += ["recover.recipe.benchmark.n=4"]
    try:
        ended = run_loop("builtin-loop", overrides=small, out=tmp_path / "F")
    except Forty2Error as error:
        pytest.fail(str(error))
    assert ended.report is not None and ended.report.exists()
    assert ended.steps["score"] == "done"
